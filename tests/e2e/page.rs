//! The web page in a browser. Runs where chromedriver is (`tests/browser/fetch.sh` installs it); must
//! where `TREFOIL_EXPECT_BROWSER` is set.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::demo::safe_reply;
use crate::support::program::run;
use crate::support::server::Server;

/// A Python, and a browser that it can drive.
fn python() -> Option<&'static str> {
    let runs = |program: &str| {
        let ran = Command::new(program).arg("--version").output();
        ran.is_ok_and(|ran| ran.status.success())
    };
    let found = runs("python3") && runs("chromedriver");
    let expected = std::env::var_os("TREFOIL_EXPECT_BROWSER").is_some();
    assert!(found || !expected, "python3 and chromedriver are expected here");
    if !found {
        println!("skipped: chromedriver is not here");
    }
    found.then_some("python3")
}

#[test]
fn the_page_chats_and_shows_what_happens() {
    let Some(python) = python() else { return };
    let reply = safe_reply();
    let server = Server::start(&["--device", "cpu0", "--pin", "decode:blk.3.ffn=ref0", "--exact"]);
    let keyed = Server::start(&["--api-key", "s3cret"]);
    let facts = json!({
        "url": format!("http://{}/", server.address),
        "keyed_url": format!("http://{}/", keyed.address),
        "key": "s3cret",
        "prompt": reply.prompt,
        "reply": reply.text,
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/browser/page.py");
    let ran = run(Command::new(python).arg(script), &facts.to_string());
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.trim_end().ends_with("ok"), "{}", ran.stdout);
    for server in [&server, &keyed] {
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}
