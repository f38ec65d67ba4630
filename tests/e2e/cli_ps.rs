//! `trefoil ps`.

use crate::support::program::{Ran, trefoil};
use crate::support::server::Server;

fn ps(server: &Server, flags: &[&str]) -> Ran {
    let port = server.address.port().to_string();
    trefoil(&[&["ps", "--port", &port][..], flags].concat())
}

#[test]
fn what_a_server_runs_is_listed_with_its_places() {
    let pins = ["--device", "cpu0", "--pin", "decode:blk.3.*=ref0", "--api-key", "s3cret"];
    let server = Server::start(&pins);
    let key = ["--api-key", "s3cret"];
    let said = ps(&server, &key).ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    // Four of the model's 34 parts.
    let placement = "prefill cpu0 · decode cpu0 88% ref0 12%";
    assert!(said.starts_with("demo  ") && said.contains(placement), "{said}");
    assert!(said.trim_end().ends_with("0 running, 0 waiting"), "{said}");
    let document = ps(&server, &[&key[..], &["--json"]].concat()).json();
    let model = &document["models"][0];
    assert_eq!(
        (&model["model"], &model["placement"]["prefill"]["cpu0"]),
        (&"demo".into(), &1.0.into())
    );
    let refused = ps(&server, &[]).fails(5);
    assert!(refused.contains("--api-key-file"), "{refused}");
}

#[test]
fn where_no_server_is_that_is_said() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("there is a free port")
        .port()
        .to_string();
    let said = trefoil(&["ps", "--port", &port]).fails(5);
    assert!(said.contains("is `trefoil serve` running?"), "{said}");
}
