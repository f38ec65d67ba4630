//! `trefoil.toml` as users meet it: where it is read, what it changes, what is said of mistakes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::{Ran, command, run, trefoil};

/// A folder with configuration files, to run the program in.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("a folder");
        std::fs::write(&path, text).expect("writes");
        path
    }

    /// The program in the folder `here`, with the user's files in `config`.
    fn command(&self, args: &[&str]) -> Command {
        let here = self.0.path().join("here");
        std::fs::create_dir_all(&here).expect("a folder");
        let mut command = command();
        command.current_dir(here).env("XDG_CONFIG_HOME", self.0.path().join("config")).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args), "")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn values_come_from_where_they_are_said_to() {
    let folder = Folder::new();
    let user = folder.write("config/trefoil/trefoil.toml", "[server]\nport = 1\nmax_n = 3\n");
    let message = folder.run(&["config", "show"]).fails(2);
    assert!(message.contains("line 3") && message.contains("max_n"), "{message}");
    folder.write("config/trefoil/trefoil.toml", "[server]\nport = 1\nsse_ping = '3s'\n");
    folder.write("here/trefoil.toml", "[server]\nport = 2\nhost = '0.0.0.0'\n");
    let shown = folder.run(&["config", "show", "--json"]);
    assert!(shown.stderr.contains("server.host is passed over"), "{}", shown.stderr);
    let shown = shown.json();
    assert_eq!(shown["server.port"]["value"], 2);
    assert_eq!(shown["server.port"]["origin"], "./trefoil.toml:2");
    assert_eq!(shown["server.host"]["value"], "127.0.0.1");
    assert_eq!(shown["server.sse_ping"]["origin"], format!("{}:3", text(&user)));
    assert_eq!(shown["engine.models_dir"]["note"], "not used yet");
    let with = |name: &str, value: &str| {
        let got = run(folder.command(&["config", "get", "server.port"]).env(name, value), "").ok();
        got.trim().to_owned()
    };
    assert_eq!(with("TREFOIL_PORT", "3"), "3");
    assert_eq!(with("TREFOIL__SERVER__PORT", "4"), "4");
    let path = folder.run(&["config", "path"]).ok();
    assert!(path.contains("./trefoil.toml  (is read)"), "{path}");
    let own = folder.write("own.toml", "[engine]\nmmap = false\n");
    let checked = folder.run(&["config", "check", "--config", text(&own)]).ok();
    assert!(checked.contains("engine.mmap") && checked.contains("not used yet"), "{checked}");
    assert!(checked.starts_with("the configuration is valid; 1 keys are set"), "{checked}");
}

#[test]
fn what_is_shown_can_be_read_again_and_says_no_secret() {
    let folder = Folder::new();
    let file = "[server]\napi_key = 'hunter2'\n[policies.'a b']\nobjective = 'energy'\n[models.x]\nctx = 5\n";
    folder.write("config/trefoil/trefoil.toml", file);
    let shown = folder.run(&["config", "show"]).ok();
    assert!(!shown.contains("hunter2") && shown.contains("# api_key = (set)"), "{shown}");
    assert_eq!(folder.run(&["config", "get", "server.api_key"]).ok().trim(), "(set)");
    let again = folder.write("again.toml", &shown);
    let values = |shown: &str| -> Vec<String> {
        let lines = shown.lines().filter(|line| !line.starts_with("# "));
        lines.map(|line| line.split(" # ").next().unwrap_or_default().trim().to_owned()).collect()
    };
    let second = folder.run(&["config", "show", "--config", text(&again)]).ok();
    let second: Vec<String> = values(&second);
    let missing: Vec<_> =
        values(&shown).into_iter().filter(|line| !second.contains(line)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn keys_are_set_in_the_user_s_file() {
    let folder = Folder::new();
    let get = || folder.run(&["config", "get", "server.port"]).ok().trim().to_owned();
    assert_eq!(get(), "9378");
    folder.run(&["config", "set", "server.port", "81"]).ok();
    assert_eq!(get(), "81");
    folder.run(&["config", "set", "server.port", "82"]).ok();
    folder.run(&["config", "set", "policy.objective", "energy"]).ok();
    assert_eq!(get(), "82");
    let file = folder.0.path().join("config/trefoil/trefoil.toml");
    let text = std::fs::read_to_string(&file).expect("was written");
    assert_eq!(text, "[server]\nport = 82\n\n[policy]\nobjective = \"energy\"\n");
    let message = folder.run(&["config", "set", "server.prt", "1"]).fails(2);
    assert!(message.contains("did you mean \"port\"?"), "{message}");
    let message = folder.run(&["config", "set", "prt", "1"]).fails(2);
    assert!(message.contains("server.port"), "{message}");
    folder.run(&["config", "set", "server.port", "-1"]).fails(2);
    assert_eq!(std::fs::read_to_string(&file).expect("is there"), text, "nothing was written");
}

#[test]
fn mistakes_end_every_command_that_reads_it_with_2() {
    let folder = Folder::new();
    folder.write("config/trefoil/trefoil.toml", "[policy]\n\npinz = []\n");
    for args in [&["run", "demo", "x"][..], &["plan", "demo"], &["serve"], &["config", "check"]] {
        let message = folder.run(args).fails(2);
        assert!(message.contains("trefoil.toml, line 3"), "{message}");
        assert!(message.contains("did you mean \"pins\"?"), "{message}");
    }
    // Where it is looked for can be asked whatever it says; the tools need none of it.
    folder.run(&["config", "path"]).ok();
    folder.run(&["tokenize", "demo", "x"]).ok();
    let message = trefoil(&["plan", "demo", "--config", "/nowhere.toml"]).fails(2);
    assert!(message.contains("/nowhere.toml"), "{message}");
    let message = trefoil(&["config", "get", "server.prt"]).fails(2);
    assert!(message.contains("did you mean \"server.port\"?"), "{message}");
}

#[test]
fn a_model_runs_and_is_planned_as_configured() {
    let folder = Folder::new();
    let file = "[engine]\nprefill_chunk = 64\ndefault_ctx = 256\nkv_type = 'f32'\n\
                [policy]\npins = [{ match = 'blk.*.ffn', device = 'ref0', phase = 'decode' }]\n\
                [policies.plain]\npins = []\n";
    let file = folder.write("own.toml", file);
    let plan = |more: &[&str]| {
        trefoil(&[&["plan", "demo", "--json", "--config", text(&file)], more].concat()).json()
    };
    let of = plan(&[]);
    assert_eq!(of["context"], 256);
    assert_eq!(of["buckets"][0]["bucket"]["max_tokens"], 64);
    assert_eq!(of["pins"][0]["pin"]["device"], "ref0");
    assert_ne!(of["pins"][0]["placed"], 0);
    let flags = plan(&["--prefill-chunk", "32", "--pin", "head=ref0", "--kv-type", "f16"]);
    assert_eq!(flags["buckets"][0]["bucket"]["max_tokens"], 32);
    assert_eq!(flags["pins"].as_array().expect("a list").len(), 1);
    assert_eq!(flags["pins"][0]["pin"]["match"], "head");
    let kv = |plan: &serde_json::Value| plan["memory"][0]["kv"].as_u64().expect("bytes");
    assert_eq!(kv(&of), 2 * kv(&flags));
    assert_eq!(plan(&["--policy", "plain"])["pins"].as_array().expect("a list").len(), 0);
}

#[test]
fn devices_that_the_configuration_forbids_are_refused_with_the_key() {
    let folder = Folder::new();
    let own = folder.write("own.toml", "[policy]\ndeny_devices = ['cpu*']\n");
    let message = trefoil(&["plan", "demo", "--device", "cpu0", "--config", text(&own)]).fails(4);
    assert!(message.contains("deny_devices") && message.contains("own.toml"), "{message}");
    let only = folder.write("only.toml", "[policy]\nallow_devices = ['ref0']\n");
    let plan = trefoil(&["plan", "demo", "--json", "--config", text(&only)]).json();
    assert_eq!(plan["buckets"][0]["units"][0]["device"], "ref0");
    let profile = ["plan", "demo", "--profile", "phoenix", "--config", text(&own)];
    let planned = trefoil(&[&profile[..], &["--json"]].concat()).json().to_string();
    assert!(planned.contains("gpu0") && !planned.contains("cpu0 alone"), "{planned}");
    let message = trefoil(&[&profile[..], &["--device", "cpu0"]].concat()).fails(4);
    assert!(message.contains("deny_devices"), "{message}");
    let typo = folder.write("typo.toml", "[policy]\nallow_devices = ['gpu7']\n");
    let message =
        trefoil(&["plan", "demo", "--profile", "phoenix", "--config", text(&typo)]).fails(2);
    assert!(
        message.contains("did you mean \"gpu0\"?") && message.contains("typo.toml"),
        "{message}"
    );
}

#[test]
fn the_server_takes_its_keys_from_the_configuration() {
    use crate::support::server::Server;
    let folder = Folder::new();
    let key = folder.write("key", "sesame\n");
    let file = format!(
        "[server]\napi_key_file = '{}'\nallowed_hosts = ['box.lan']\nmax_body = '1KiB'\n\
         strict_fields = true\nmetrics = false\n[engine]\nmax_n = 2\n",
        text(&key)
    );
    let file = folder.write("own.toml", &file);
    let server = Server::start(&["--config", text(&file)]);
    assert_eq!(server.get("/v1/models").status, 401);
    let call = |method: &str, path: &str| {
        server.call(method, path).header("authorization", "Bearer sesame")
    };
    assert_eq!(call("GET", "/v1/models").send().status, 200);
    assert_eq!(call("GET", "/metrics").send().status, 404, "metrics = false");
    let body = |more: serde_json::Value| {
        let mut body = serde_json::json!({"model": "default", "max_tokens": 1,
            "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        call("POST", "/v1/chat/completions").json(&body).send().status
    };
    assert_eq!(body(serde_json::json!({})), 200);
    assert_eq!(body(serde_json::json!({"n": 3})), 400, "more than engine.max_n");
    assert_eq!(body(serde_json::json!({"zzz": 1})), 400, "strict_fields");
    assert_eq!(body(serde_json::json!({"user": "x".repeat(2000)})), 413, "max_body");
    let message = trefoil(&["serve", "--host", "0.0.0.0"]).fails(2);
    assert!(message.contains("expected a key"), "{message}");
}

#[test]
fn models_are_served_and_run_as_configured() {
    use crate::support::server::Server;
    let folder = Folder::new();
    let template = folder.write("template", "{{ messages[-1]['content'] }}");
    let file = format!(
        "[models.lemon]\npath = 'demo'\naliases = ['citrus']\npreload = true\nctx = 100\n\
         policy = 'slow'\nchat_template = '{}'\n[models.lemon.sampling]\ntemperature = 0\n\
         [policies.slow]\npins = [{{ match = 'head', device = 'ref0' }}]\n",
        text(&template)
    );
    let file = folder.write("own.toml", &file);
    let config = ["--config", text(&file)];
    let server = Server::of(&[], &config);
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"].as_array().expect("a list").len(), 1);
    assert_eq!(models["data"][0]["id"], "lemon");
    for name in ["lemon", "citrus", "default"] {
        let body = serde_json::json!({"model": name, "max_tokens": 2,
            "messages": [{"role": "user", "content": "One two"}]});
        let answer = server.chat(&body).ok();
        assert_eq!(answer["usage"]["prompt_tokens"], trefoil_count("One two"), "{answer}");
    }
    let run = [&["run", "lemon", "One two", "--json", "-n", "2"][..], &config].concat();
    let (first, second) = (trefoil(&run).json(), trefoil(&run).json());
    assert_eq!(first["text"], second["text"], "temperature 0");
    let plan = trefoil(&[&["plan", "lemon", "--json"][..], &config].concat()).json();
    assert_eq!(plan["context"], 100);
    assert_eq!(plan["pins"][0]["pin"]["device"], "ref0");
    let both = [&["serve", "demo", "--port", "0"][..], &["lemon", "citrus"], &config].concat();
    let message = trefoil(&both).fails(3);
    assert!(message.contains("citrus"), "an alias is no model of its own: {message}");
}

/// Tokens of a text, with what the model puts around it.
fn trefoil_count(text: &str) -> serde_json::Value {
    trefoil(&["tokenize", "demo", text, "--add-special", "--json"]).json()["count"].clone()
}
