//! `trefoil plan` for a machine by its profile.

use crate::support::program::trefoil;

#[test]
fn a_known_shape_is_planned_on_a_shipped_machine() {
    let base = ["plan", "--shape", "qwen3-0.6b", "--profile", "desktop-radeon"];
    let text = trefoil(&base).ok();
    for part in ["predicted for a prompt of 512", "gpu0 alone", "cpu0 alone", "lower bound", "why:"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let plan = trefoil(&[&base[..], &["--json", "--objective", "latency"]].concat()).json();
    assert_eq!(plan["profile"], "desktop-radeon");
    assert!(plan["prediction"]["gap"].as_f64().expect("a number") <= 0.01);
    let both = trefoil(&[&base[..], &["--problem"]].concat()).json();
    let units = both["problem"]["units"].as_array().expect("a list").len();
    assert_eq!(both["solution"]["homes"].as_array().expect("a list").len(), units);
    assert_eq!(units, 2 + 4 * 28);
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let plan = |args: &[&str]| trefoil(&[&["plan"], args].concat());
    let got = plan(&["--shape", "qwen3-8", "--profile", "phoenix"]).fails(2);
    assert!(got.contains("did you mean qwen3-8b?"), "{got}");
    let got = plan(&["demo", "--profile", "phoenixx"]).fails(2);
    assert!(got.contains("did you mean \"phoenix\"?"), "{got}");
    let got = plan(&["demo", "--profile", "phoenix", "--device", "gpu1"]).fails(2);
    assert!(got.contains("did you mean gpu0?"), "{got}");
    let got = plan(&["--shape", "qwen2.5-32b", "--quant", "F16", "--profile", "krackan"]).fails(4);
    assert!(got.contains("does not fit") && got.contains("ram has"), "{got}");
}
