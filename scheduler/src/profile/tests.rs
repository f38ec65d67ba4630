use super::*;

fn text(name: &str) -> String {
    toml::to_string(&shipped(name).expect("ships")).expect("plain data")
}

/// What a profile with one replacement is refused with.
fn refusal(from: &str, to: &str) -> String {
    let good = include_str!("../../profiles/desktop-radeon.toml");
    assert!(good.contains(from), "{from}");
    let bad = good.replacen(from, to, 1);
    Profile::parse("test", &bad).expect_err("wrong").to_string()
}

#[test]
fn every_shipped_profile_is_read_and_survives_the_round_trip() {
    for name in shipped_names() {
        let profile = shipped(name).expect(name);
        assert_eq!(profile.name, name);
        assert_eq!(Profile::parse(name, &text(name)).expect(name), profile);
        assert!(!profile.published.is_empty(), "{name} is held against something");
    }
}

#[test]
fn bad_profiles_are_refused_with_the_value_and_the_nearest_valid_one() {
    let got = refusal("bandwidth = 640e9", "bandwidth = 640");
    assert!(got.contains("bandwidth = 640") && got.contains("bytes per second"), "{got}");
    let got = refusal("handoff = ", "hand_off = ");
    assert!(got.contains("hand_off") && got.ends_with("did you mean \"handoff\"?"), "{got}");
    let got = refusal("launch = 1e-6", "");
    assert!(got.contains("missing field `launch`"), "{got}");
    let got = refusal("domain = \"vram0\"", "domain = \"vram\"");
    assert!(got.contains("gpu0.domain") && got.ends_with("did you mean \"vram0\"?"), "{got}");
    let got = refusal("q4_k = ", "q4_kk = ");
    assert!(got.contains("\"q4_kk\"") && got.ends_with("did you mean \"q4_k\"?"), "{got}");
    let got = refusal("peak = 389e12", "peak = 38e12");
    assert!(got.contains("at most the peak"), "{got}");
    let got = refusal("from = \"vram0\"", "from = \"ram\"");
    assert!(got.contains("link"), "{got}");
    let got = refusal("[[1, 0.045], [4, 0.16]", "[[4, 0.045], [1, 0.16]");
    assert!(got.contains("compute.rows"), "{got}");
    let got = refusal("size = \"16GiB\"", "size = \"plenty\"");
    assert!(got.contains("\"plenty\""), "{got}");
    let unknown = shipped("strix").expect_err("none of that name").to_string();
    assert!(unknown.ends_with("did you mean \"strix-halo\"?"), "{unknown}");
}

#[test]
fn the_share_by_rows_meets_its_points_and_rises_between() {
    let profile = shipped("strix-halo").expect("ships");
    let compute = &profile.device("gpu0").expect("has one").compute;
    for (rows, share) in &compute.rows {
        assert!((compute.row_share(*rows) - share.get()).abs() < 1e-12, "{rows}");
    }
    let shares: Vec<f64> = (1..600).map(|rows| compute.row_share(f64::from(rows))).collect();
    assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
    assert_eq!(compute.row_share(0.5), compute.row_share(1.0));
    assert_eq!(compute.row_share(1e6), 1.0);
}
