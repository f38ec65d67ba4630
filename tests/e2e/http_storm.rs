//! A server under more load than it has places for, from clients that behave and clients that do not:
//! no error but 429, every page returned, memory flat, metrics that agree with what clients saw.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trefoil_tests::Random;

use crate::support::demo::{Reply, safe_reply};
use crate::support::http::Event;
use crate::support::server::Server;

/// Seconds of load; `TREFOIL_STORM_SECONDS` says otherwise.
const SECONDS: u64 = 20;
/// Sequences of the server, places in its queue, clients.
const SLOTS: usize = 4;
const QUEUE: usize = 6;
const CLIENTS: usize = 4 * SLOTS;
/// Tokens of the KV cache: few enough that sequences give way and beginnings are given up.
const KV_TOKENS: &str = "2048";
/// Growth of the process that counts as none, after a third of the time.
const GROWTH_BYTES: f64 = 48.0 * 1024.0 * 1024.0;

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    /// Replies that came to their end.
    ended: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    /// 429 as the answer.
    refused: u64,
    /// Requests whose answer nobody waited for.
    left: u64,
    /// Requests that could not be good.
    bad: u64,
}

impl Seen {
    fn usage(&mut self, usage: &Value, replies: u64) {
        let count = |value: &Value| value.as_u64().expect("a number");
        self.ended += replies;
        self.prompt_tokens += count(&usage["prompt_tokens"]);
        self.cached_tokens += count(&usage["prompt_tokens_details"]["cached_tokens"]);
        self.generated_tokens += count(&usage["completion_tokens"]);
    }
}

/// A client that does as it likes.
struct Client<'a> {
    server: &'a Server,
    seen: &'a Mutex<Seen>,
    random: Random,
    reply: Reply,
}

impl Client<'_> {
    fn below(&mut self, most: u64) -> u64 {
        self.random.bits() % most
    }

    fn body(&mut self) -> Value {
        const WORDS: [&str; 8] = ["tell", "me", "about", "seven", "lemon", "trees", "and", "rain"];
        let words = if self.below(4) == 0 { 120 } else { 12 };
        let words = 1 + self.below(words);
        // Many begin alike.
        let start = self.below(2) as usize;
        let words = (0..words).map(|n| WORDS[(start + n as usize) % WORDS.len()]);
        let content = words.collect::<Vec<_>>().join(" ");
        json!({
            "model": "demo", "temperature": self.below(2), "seed": self.below(5),
            "ignore_eos": true, "max_tokens": 1 + self.below(60),
            "priority": self.below(5) as i64 - 2, "n": 1 + self.below(6) / 5,
            "messages": [{"role": "user", "content": content}],
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while holding it")
    }

    /// Is the answer one that a full server may give? Then the client comes back later.
    fn refused(&self, status: u16, text: impl FnOnce() -> String) -> bool {
        if status == 200 {
            return false;
        }
        let text = text();
        assert!(status == 429 && text.contains("queue_full"), "{status}: {text}");
        self.seen().refused += 1;
        std::thread::sleep(Duration::from_millis(50));
        true
    }

    fn whole(&mut self) {
        let body = self.body();
        let answer = self.server.chat(&body);
        if self.refused(answer.status, || answer.text()) {
            return;
        }
        let answer = answer.json();
        let replies = body["n"].as_u64().expect("a number");
        assert_eq!(answer["choices"].as_array().expect("a list").len() as u64, replies);
        for choice in answer["choices"].as_array().expect("a list") {
            assert_eq!(choice["finish_reason"], "length", "{answer}");
        }
        let each = body["max_tokens"].as_u64().expect("a number");
        assert_eq!(answer["usage"]["completion_tokens"], replies * each);
        self.seen().usage(&answer["usage"], replies);
    }

    /// The reply that another program gave to this prompt, whatever else runs.
    fn known(&mut self) {
        let body = json!({"model": "demo", "temperature": 0,
            "messages": [{"role": "user", "content": self.reply.prompt}]});
        let answer = self.server.chat(&body);
        if self.refused(answer.status, || answer.text()) {
            return;
        }
        let answer = answer.json();
        assert_eq!(answer["choices"][0]["message"]["content"], self.reply.text);
        self.seen().usage(&answer["usage"], 1);
    }

    /// Reads a stream, or `most` events of it.
    fn stream(&mut self, most: usize) {
        let mut body = self.body();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut answer = self.server.call("POST", "/v1/chat/completions").json(&body).open();
        if answer.status != 200 {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut answer, &mut text).expect("the answer is read");
            assert!(self.refused(answer.status, || text));
            return;
        }
        let mut usage = Value::Null;
        for _ in 0..most {
            match answer.event() {
                Some(Event::Data(chunk)) if chunk.get("error").is_some() => panic!("{chunk}"),
                Some(Event::Data(mut chunk)) => usage = chunk["usage"].take(),
                Some(Event::Comment(_)) => {}
                Some(Event::Done) => {
                    assert!(usage.is_object(), "usage comes last");
                    self.seen().usage(&usage, body["n"].as_u64().expect("a number"));
                    return;
                }
                None => panic!("a stream ends with [DONE]"),
            }
        }
        self.seen().left += body["n"].as_u64().expect("a number");
    }

    /// Asks and is gone.
    fn leave(&mut self) {
        let body = self.body();
        self.seen().left += body["n"].as_u64().expect("a number");
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.server.address).expect("the server listens");
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.server.address,
            body.len()
        );
        // Some before the body is whole.
        let cut = if self.below(2) == 0 { body.len() } else { body.len() / 2 };
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(&body.as_bytes()[..cut]).expect("the server reads");
        let pause = self.below(60);
        std::thread::sleep(Duration::from_millis(pause));
    }

    fn bad(&mut self) {
        let mut body = self.body();
        let (status, code) = match self.below(5) {
            0 => {
                body["temperature"] = json!("hot");
                (400, "invalid_type")
            }
            1 => {
                body["model"] = json!("none");
                (404, "model_not_found")
            }
            2 => {
                body["max_tokens"] = json!(1_000_000);
                (400, "context_length_exceeded")
            }
            3 => {
                body["logit_bias"] = json!({"99999999": 1});
                (400, "invalid_value")
            }
            _ => {
                let call = self.server.call("POST", "/v1/chat/completions");
                let call = call.header("content-type", "application/json").body(&b"{\"mod"[..]);
                call.send().error(400, "invalid_json");
                self.seen().bad += 1;
                return;
            }
        };
        self.server.chat(&body).error(status, code);
        self.seen().bad += 1;
    }

    fn go(&mut self, until: Instant) {
        while Instant::now() < until {
            match self.below(10) {
                0..=2 => self.whole(),
                3 | 4 => self.stream(usize::MAX),
                5 => {
                    let most = 1 + self.below(20) as usize;
                    self.stream(most);
                }
                6 => self.leave(),
                7 => self.bad(),
                _ => self.known(),
            }
        }
    }
}

fn seconds() -> u64 {
    let given = std::env::var("TREFOIL_STORM_SECONDS").ok();
    given.map_or(SECONDS, |text| text.parse().expect("whole seconds"))
}

#[test]
fn a_storm_of_clients_leaves_nothing_behind() {
    let (slots, queue) = (SLOTS.to_string(), QUEUE.to_string());
    let settings = [("TREFOIL__ENGINE__KV_TOKENS", KV_TOKENS)];
    let flags = ["--max-sequences", &slots, "--max-queue", &queue];
    let server = Server::with_settings(&settings, &flags);
    let pages = server.metric("trefoil_kv_pages{model=\"demo\",state=\"free\"}");
    assert_eq!(pages, 128.0);
    let seen = Mutex::default();
    let begin = Instant::now();
    let length = Duration::from_secs(seconds());
    let until = begin + length;
    let mut warm = 0.0;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (random, reply) = (Random::new(1 + client as u64), safe_reply());
            let mut client = Client { server: &server, seen: &seen, random, reply };
            scope.spawn(move || client.go(until));
        }
        // Somebody watches.
        while Instant::now() < until {
            let value = |name: &str| server.metric(&format!("trefoil_{name}"));
            // A reply of two sequences may be under way in part.
            assert!(value("requests_running{model=\"demo\"}") <= 2.0 * SLOTS as f64);
            assert!(value("requests_waiting{model=\"demo\"}") <= QUEUE as f64);
            if begin.elapsed() < length / 3 {
                warm = value("process_resident_memory_bytes");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    let seen = seen.into_inner().expect("nothing panicked");
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    server.wait_for_metric("trefoil_requests_waiting{model=\"demo\"}", 0.0);
    let value = |name: &str| server.metric(&format!("trefoil_{name}"));
    let outcome =
        |name: &str| value(&format!("requests_total{{model=\"demo\",outcome=\"{name}\"}}")) as u64;
    println!("{seen:?}");
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    // Pages.
    assert_eq!(value("kv_pages{model=\"demo\",state=\"used\"}"), 0.0);
    let kept = value("kv_pages{model=\"demo\",state=\"cached\"}");
    assert_eq!(kept + value("kv_pages{model=\"demo\",state=\"free\"}"), pages);
    // Memory.
    let resident = value("process_resident_memory_bytes");
    assert!(resident <= warm + GROWTH_BYTES, "{warm} bytes became {resident}");
    // What happened and what clients saw.
    assert!(seen.ended > 0 && seen.bad > 0 && seen.left > 0, "{seen:?}");
    assert_eq!(outcome("error"), 0);
    let (ended, cancelled) = (outcome("stop") + outcome("length"), outcome("cancelled"));
    assert!(
        (seen.ended..=seen.ended + seen.left).contains(&ended),
        "{ended} replies ended, {seen:?}"
    );
    assert!(cancelled <= seen.left, "{cancelled} replies were cancelled, {seen:?}");
    let full = value("requests_rejected_total{reason=\"queue_full\"}") as u64;
    assert!((seen.refused..=seen.refused + seen.left).contains(&full), "{full} refused, {seen:?}");
    assert_eq!(value("requests_rejected_total{reason=\"invalid\"}") as u64 > 0, seen.bad > 0);
    let source =
        |name: &str| value(&format!("prompt_tokens_total{{model=\"demo\",source=\"{name}\"}}"));
    let (computed, cached) = (source("computed") as u64, source("cached") as u64);
    assert!(computed + cached >= seen.prompt_tokens, "{computed} and {cached}, {seen:?}");
    assert!(cached >= seen.cached_tokens && cached > 0, "{cached}, {seen:?}");
    assert!(value("generated_tokens_total{model=\"demo\"}") as u64 >= seen.generated_tokens);
    let steps = ["prefill", "decode"].map(|phase| {
        let name = format!("steps_total{{model=\"demo\",phase=\"{phase}\"}}");
        let count = format!("step_duration_seconds_count{{model=\"demo\",phase=\"{phase}\"}}");
        assert_eq!(value(&name), value(&count));
        value(&name)
    });
    let rows = value("batch_sequences_sum{model=\"demo\",phase=\"decode\"}");
    println!("{} tokens a decode step", rows / steps[1]);
    assert!(rows / steps[1] > 1.5, "sequences share steps: {rows} rows in {} steps", steps[1]);
    // The next one is served as if nothing had been.
    let reply = safe_reply();
    let body = json!({"model": "demo", "temperature": 0,
        "messages": [{"role": "user", "content": reply.prompt}]});
    assert_eq!(server.chat(&body).ok()["choices"][0]["message"]["content"], reply.text);
}
