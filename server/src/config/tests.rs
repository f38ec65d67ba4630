use std::fmt::Write;

use super::list::{FIXED, defaults, keys_of};
use super::*;

/// A configuration of files (the last one that of the current folder if `local`) and variables.
fn read(files: &[&str], local: bool, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().expect("a folder");
    let places = files.iter().enumerate().map(|(index, text)| {
        let path = folder.path().join(format!("{index}.toml"));
        std::fs::write(&path, text).expect("writes");
        Place { path, local: local && index + 1 == files.len(), given: false }
    });
    let places: Vec<Place> = places.collect();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::read(&places, variables.collect())
}

fn refusal(text: &str) -> String {
    read(&[text], false, &[]).expect_err(text).to_string()
}

#[test]
fn later_sources_win_key_by_key() {
    let config = read(
        &[
            "[server]\nport = 1\nmax_body = '1MiB'\n[policy]\nobjective = 'energy'\nphases = 'joint'",
            "[server]\nport = 2\nallowed_hosts = ['a']\n[policy]\nobjective = 'latency'",
        ],
        false,
        &[("TREFOIL__SERVER__MAX_QUEUE", "7"), ("TREFOIL_HOST", "::1"), ("TREFOIL__POLICY__PINS", "[]")],
    )
    .expect("valid");
    let server = &config.sections.server;
    assert_eq!((server.port, server.max_queue.get(), server.host.as_str()), (2, 7, "::1"));
    assert_eq!(server.max_body, "1MiB".parse().expect("a size"));
    assert_eq!(server.sse_ping.duration().as_secs(), 15);
    let policy = config.policy(None).expect("valid");
    assert_eq!(policy.name, "latency");
    assert_eq!(policy.policy.phases, trefoil_scheduler::policy::Phases::Joint);
    let origin = |key: &str| config.get(key).expect("known").origin.to_string();
    assert!(origin("server.port").ends_with("1.toml:2"), "{}", origin("server.port"));
    assert!(origin("policy.phases").ends_with("0.toml:6"), "{}", origin("policy.phases"));
    assert_eq!(origin("server.host"), "environment TREFOIL_HOST");
    assert_eq!(origin("server.sse_ping"), "default");
}

#[test]
fn variables_are_toml_or_text_and_the_long_name_wins() {
    let config = read(
        &[],
        false,
        &[
            ("TREFOIL_PORT", "1"),
            ("TREFOIL__SERVER__PORT", "2"),
            ("TREFOIL_OFFLINE", "1"),
            ("TREFOIL__SERVER__STRICT_FIELDS", "true"),
            ("TREFOIL__SERVER__ALLOWED_HOSTS", "['a', 'b']"),
            ("TREFOIL__SERVER__API_KEY", "123"),
            ("TREFOIL__POLICY__ON_BATTERY__OBJECTIVE", "latency"),
            ("TREFOIL__POLICY__MAX_DEVICE_MEMORY", "{ gpu0 = '50%' }"),
            ("TREFOIL__DEVICES__GPU0__MEMORY", "4GiB"),
            ("TREFOIL_DEVICE", "not a key"),
        ],
    )
    .expect("valid");
    let server = &config.sections.server;
    assert_eq!((server.port, server.offline, server.strict_fields), (2, true, true));
    assert_eq!(server.allowed_hosts, ["a", "b"]);
    assert_eq!(server.api_key.get(), Some("123"));
    assert_eq!(
        config.policy(Some("on_battery")).expect("valid").policy.objective.name(),
        "latency"
    );
    assert!(config.sections.devices.each.contains_key("gpu0"));
    let fail = |name, value| read(&[], false, &[(name, value)]).expect_err(name).to_string();
    let got = fail("TREFOIL__SERVER__PRT", "1");
    assert!(
        got.contains("TREFOIL__SERVER__PRT") && got.ends_with("did you mean \"port\"?"),
        "{got}"
    );
    let got = fail("TREFOIL_PORT", "many");
    assert!(got.contains("TREFOIL_PORT") && got.contains("many") && got.contains("u16"), "{got}");
    let got = fail("TREFOIL__SERVER", "1");
    assert!(got.contains("TREFOIL__SECTION__KEY"), "{got}");
    // A value stays one value.
    let got = read(&[], false, &[("TREFOIL_HOST", "a\nport = 4")]).expect("text");
    assert_eq!(got.sections.server.host, "a\nport = 4");
    assert_eq!(got.sections.server.port, 9378);
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_nearest_name() {
    for (text, line, near) in [
        ("[server]\nprt = 1", "line 2", "did you mean \"port\"?"),
        ("[servr]", "line 1", "did you mean \"server\"?"),
        ("[engine]\n\nkv_typ = 'f16'", "line 3", "did you mean \"kv_type\"?"),
        ("[policy]\nobjectiv = 'energy'", "line 2", "did you mean \"objective\"?"),
        ("[policies.a]\nobjective = 'energie'", "line 2", "did you mean \"energy\"?"),
        ("[policy.on_batery]", "line 1", "did you mean \"on_battery\"?"),
        ("[devices]\ngpu_apj = 'off'", "line 2", "did you mean \"gpu_api\"?"),
        ("[devices.gpu0]\nmemori = 'auto'", "line 2", "did you mean \"memory\"?"),
        ("[models.x]\npth = 'a'", "line 2", "did you mean \"path\"?"),
        ("[models.x.sampling]\ntemperatur = 1", "line 2", "did you mean \"temperature\"?"),
        ("[engine]\nkv_type = 'f15'", "line 2", "did you mean \"f16\"?"),
    ] {
        let got = refusal(text);
        assert!(got.contains("0.toml") && got.contains(line) && got.ends_with(near), "{got}");
    }
    for (text, part) in [
        ("[server]\nport = 70000", "port = 70000"),
        ("[server]\nsse_ping = '0s'", "1ms to 24h"),
        ("[server]\nmax_queue = 0", "nonzero"),
        ("[engine]\nkv_page_tokens = 12", "power of two"),
        ("[engine]\nkv_type = 'q8_0'", "not there yet"),
        ("[devices]\ngpu_api = 'hip'", "not there yet"),
        ("[devices.gpu0]\nmemory = -1", "memory = -1"),
        ("[server]\napi_key = 'a'\napi_key_file = 'b'", "one of api_key and api_key_file"),
        ("[policy]\nweights = { ttft = 0, decode = 0, energy = 0 }", "weights"),
        ("[policies.x]\nmax_temperature_celsius = 5", "max_temperature_celsius"),
        ("[server]\nport = 1\nport = 2", "line 3"),
        ("port", "line 1"),
    ] {
        let got = refusal(text);
        assert!(got.contains(part), "{text}: {got}");
    }
    let config = read(&[], false, &[]).expect("valid");
    let got = config.get("server.prt").expect_err("unknown").to_string();
    assert!(got.contains("did you mean \"server.port\"?"), "{got}");
    let got = config.policy(Some("latenci")).expect_err("unknown").to_string();
    assert!(got.contains("did you mean \"latency\"?"), "{got}");
}

#[test]
fn a_file_of_the_current_folder_opens_no_doors() {
    let text = "[server]\nhost = '0.0.0.0'\napi_key = 'k'\nadmin_api_key = 'k'\napi_key_file = 'f'\n\
                allowed_hosts = ['x']\nallowed_origins = ['y']\nport = 5\n";
    let config = read(&["[server]\nhost = '::1'", text], true, &[]).expect("valid");
    let server = &config.sections.server;
    assert_eq!((server.host.as_str(), server.port), ("::1", 5));
    assert!(server.api_key.get().is_none() && server.allowed_hosts.is_empty());
    assert_eq!(config.warnings.len(), 6);
    assert!(config.warnings[0].contains("server.") && config.warnings[0].contains("--config"));
    let same =
        read(&[text.replace("api_key_file = 'f'\n", "").as_str()], false, &[]).expect("valid");
    assert_eq!(same.sections.server.host, "0.0.0.0");
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_text() {
    let place = Place { path: "/nowhere/trefoil.toml".into(), local: false, given: true };
    let error = Config::read(std::slice::from_ref(&place), BTreeMap::new()).expect_err("missing");
    assert!(error.to_string().contains("/nowhere/trefoil.toml"), "{error}");
    let other = Place { given: false, ..place };
    assert!(Config::read(&[other], BTreeMap::new()).is_ok());
}

#[test]
fn secrets_are_never_shown() {
    let config = read(&["[server]\napi_key = 'hunter2'"], false, &[]).expect("valid");
    let entry = config.get("server.api_key").expect("known");
    assert_eq!(entry.text(), "(set)");
    assert!(!format!("{:?}", config.sections).contains("hunter2"));
    for wrong in
        ["[server]\napi_key = 48151", "[server]\nadmin_api_key = 48151 # x", "api_key = 48151"]
    {
        let got = refusal(wrong);
        assert!(got.contains("api_key") && !got.contains("48151"), "{got}");
    }
}

#[test]
fn policies_are_found_by_name_and_lie_over_the_rest() {
    let text = "[policy]\nmin_npu_prompt_tokens = 9\n[policies.quiet]\nobjective = 'energy'\n\
                [policy.on_battery]\nobjective = 'energy'\nmax_power_watts = 15\n";
    let config = read(&[text], false, &[]).expect("valid");
    let of = |name| config.policy(name).expect("valid");
    let quiet = of(Some("quiet"));
    assert_eq!((quiet.name.as_str(), quiet.policy.min_npu_prompt_tokens), ("quiet", 9));
    assert_eq!(of(Some("on_battery")).policy.max_power_watts.get(), 15.0);
    assert_eq!(of(None).policy.max_power_watts.get(), 0.0);
    assert_eq!(of(Some("throughput")).policy.objective.name(), "throughput");
    assert_eq!(of(Some("throughput")).policy.min_npu_prompt_tokens, 9);
    assert!(
        config.is_policy("quiet") && config.is_policy("energy") && !config.is_policy("phoenix")
    );
}

#[test]
fn devices_are_kept_out_by_the_key_that_says_so() {
    let text =
        "[policy]\ndeny_devices = ['npu*']\n[devices]\ncpu = false\nvisible = ['gpu0', 'cpu0']";
    let rules =
        read(&[text], false, &[]).expect("valid").settings(None, None).expect("valid").devices;
    let why = |device| rules.refusal(device).unwrap_or_default();
    assert!(why("npu0").contains("visible"), "{}", why("npu0"));
    assert!(why("cpu0").contains("devices.cpu = false"), "{}", why("cpu0"));
    assert!(why("gpu1").contains("visible"), "{}", why("gpu1"));
    assert_eq!(rules.refusal("gpu0"), None);
    assert_eq!(rules.only(), None);
    let one = read(&["[policy]\nallow_devices = ['gpu0']"], false, &[]).expect("valid");
    assert_eq!(one.settings(None, None).expect("valid").devices.only(), Some("gpu0"));
}

#[test]
fn models_are_found_by_name_and_by_the_name_they_are_served_under() {
    let text = "[models.small]\npath = '/m/a.gguf'\nctx = 64\npolicy = 'energy'\n\
                [models.small.sampling]\ntemperature = 0.5\n[models.b]\nctx = 32\n\
                [engine]\nuse_model_sampling = false\n";
    let config = read(&[text], false, &[]).expect("valid");
    let small = config.settings(None, Some("small")).expect("valid");
    assert_eq!((small.path("small"), small.model.ctx), ("/m/a.gguf", 64));
    assert_eq!(small.policy.name, "energy");
    assert_eq!(
        config.settings(Some("latency"), Some("small")).expect("valid").policy.name,
        "latency"
    );
    let own = trefoil_engine::text::sampling::SamplingSettings::default();
    assert_eq!(small.sampling(own).temperature, Some(0.5));
    assert_eq!(config.model("/x/b.gguf").expect("by its file name").1.ctx, 32);
    assert!(config.model("/x/small.gguf").is_none(), "it has a path of its own");
    let mut own = own;
    own.top_k = Some(3);
    assert_eq!(small.sampling(own).top_k, None, "use_model_sampling is off");
    let got = refusal("[models.x.sampling]\ntemperature = -1");
    assert!(got.contains("models.x.sampling") && got.contains("temperature"), "{got}");
    let got = refusal("[models.x]\npolicy = 'latenci'");
    assert!(got.contains("did you mean \"latency\"?"), "{got}");
}

/// The table of keys as documentation shows it.
fn documentation() -> String {
    let mut text = String::from(
        "<!-- made by a test of server/src/config; run it with TREFOIL_UPDATE_DOCS=1 -->\n",
    );
    let defaults = defaults();
    let mut line = |line: String| writeln!(text, "{line}").expect("strings take text");
    let mut section = |title: &str, path: &[&str], values: Option<&Table>, more: &[Key]| {
        line(format!("\n### `[{title}]`\n"));
        line("| key | default | meaning | used by |\n|---|---|---|---|".to_owned());
        let keys = keys_of(path).expect("a section");
        for key in keys.iter().chain(more).filter(|key| key.name != "sampling") {
            let value = values.and_then(|values| values.get(key.name));
            let value = value.map_or("none".to_owned(), |value| format!("`{value}`"));
            let used = match key.used {
                Use::Full => "trefoil",
                used => used.note(),
            };
            line(format!("| `{}` | {value} | {} | {used} |", key.name, key.meaning.trim()));
        }
    };
    for name in FIXED {
        section(name, &[name], defaults[name].as_table(), &[]);
    }
    let table = |value: Result<Table, _>| value.map_err(|_: toml::ser::Error| "plain data");
    let device = table(Table::try_from(Device::default())).expect("plain data");
    let model = table(Table::try_from(Model::default())).expect("plain data");
    section("devices.NAME", &["devices", "NAME"], Some(&device), &[]);
    section("models.NAME", &["models", "NAME"], Some(&model), &[]);
    section("models.NAME.sampling", &["models", "NAME", "sampling"], None, &[]);
    line(
        "\n### `[policy.on_battery]`, `[policies.NAME]`\n\nThe keys of `[policy]`, without defaults: \
         what is not set is as in `[policy]`. `[policy.on_battery]` has one more:\n"
            .to_owned(),
    );
    line(format!("- `{}`: {}", BELOW_CHARGE.name, BELOW_CHARGE.meaning.trim()));
    text
}

const MARK: &str = "## All keys\n\n";

#[test]
fn the_table_in_the_docs_is_the_code_s() {
    let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let kept = std::fs::read_to_string(&path).expect("the docs are there");
    let (before, _) = kept.split_once(MARK).expect("the docs have a heading for the table");
    let text = format!("{before}{MARK}{}", documentation());
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
        return;
    }
    assert!(kept == text, "run with TREFOIL_UPDATE_DOCS=1 to write docs/configuration.md");
}

#[test]
fn every_key_of_a_policy_is_in_the_table() {
    let known: Vec<&str> = POLICY_KEYS.iter().map(|key| key.name).collect();
    assert_eq!(known, trefoil_scheduler::policy::Policy::KEYS);
}
