//! Services under test: what is sent to them, and what comes back.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use trefoil_engine::backends::Backends;
use trefoil_engine::generate::{Cancel, Event, Request, Summary, generate};
use trefoil_engine::loaded::Loaded;
use trefoil_engine::model::ModelOptions;
use trefoil_engine::service::{Meters, Order, Service, ServiceError, ServiceOptions, Update};
use trefoil_engine::text::sampling::SamplingParams;
use trefoil_kernels::cases::Random;
use trefoil_telemetry::Metrics;

use crate::devices::backends;

/// Time after which an answer counts as not coming.
pub const SOON: Duration = Duration::from_secs(120);

/// A model on some devices.
#[derive(Debug)]
pub struct Place {
    /// Path or name of the model.
    pub name: String,
    /// The devices.
    pub backends: &'static Backends,
    /// How it runs, alone.
    pub options: ModelOptions,
}

impl Place {
    /// A model on one device, with a short context.
    pub fn of(name: &str, backends: &'static Backends, device: &str) -> Self {
        let options = ModelOptions {
            device: Some(device.to_owned()),
            context: Some(256),
            ..ModelOptions::default()
        };
        Self { name: name.to_owned(), backends, options }
    }

    /// The demo model on the CPU.
    pub fn demo() -> Self {
        Self::of("demo", backends("cpu0", false), "cpu0")
    }

    /// Loads it with these options.
    pub fn load(&self, options: &ModelOptions) -> Loaded {
        Loaded::open(&self.name, self.backends, options, None).expect("loads")
    }

    /// A service with room for this many tokens, and what it counts, of a model `demo`.
    pub fn serve(&self, kv_tokens: usize, options: ServiceOptions) -> (Service, Metrics) {
        let model = ModelOptions {
            decode_batch: options.sequences.min(4),
            kv_tokens: Some(kv_tokens),
            ..self.options.clone()
        };
        let metrics = Metrics::default();
        let options = ServiceOptions { meters: Some(Meters::new(&metrics, "demo")), ..options };
        let loaded = self.load(&model);
        (Service::start(loaded.runner, loaded.text, options).expect("starts"), metrics)
    }
}

/// A request for exactly `max_tokens` tokens.
pub fn request(prompt: Vec<u32>, temperature: f32, seed: i64, max_tokens: usize) -> Request {
    let mut sampling = SamplingParams::default();
    sampling.temperature = temperature;
    // Replies as long as they may be, whatever the model would like to say.
    sampling.ignore_eos = true;
    Request {
        prompt,
        sampling,
        max_tokens: Some(max_tokens),
        stop: Vec::new(),
        seed,
        grammar: None,
        shown: [].into(),
    }
}

/// Some requests with prompts of many lengths, greedy and not.
pub fn requests(count: usize, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let mut below = |most: u64| random.bits() % most;
    let requests = (0..count).map(|index| {
        let len = 1 + below(if index % 4 == 0 { 120 } else { 20 });
        let prompt = (0..len).map(|_| 10 + below(200) as u32).collect();
        let temperature = [0.0, 1.0, 0.7][below(3) as usize];
        request(prompt, temperature, below(1000) as i64, 30 + below(50) as usize)
    });
    requests.collect()
}

/// What one reply was told.
#[derive(Debug, Default)]
pub struct Reply {
    /// Tokens, in order.
    pub tokens: Vec<u32>,
    /// Their text, as far as it was told.
    pub text: String,
    /// How it ended.
    pub end: Option<Result<Summary, ServiceError>>,
}

impl Reply {
    fn take(&mut self, event: Event) {
        match event {
            Event::PromptRead(_) => {}
            Event::Token { id, text, .. } => {
                self.tokens.push(id);
                self.text.push_str(&text);
            }
            Event::Text(text) => self.text.push_str(&text),
        }
    }

    /// Figures of a reply that must have gone well.
    pub fn summary(&self) -> &Summary {
        self.end.as_ref().expect("it ended").as_ref().expect("it went well")
    }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Sent {
    updates: Receiver<(u32, Update)>,
    choices: u32,
    /// Cancels it.
    pub cancel: Cancel,
}

/// Sends a request.
pub fn send(service: &Service, order: Order) -> Sent {
    send_with(service, order, |_| ())
}

/// Sends a request whose listener does something at each update, on the service's thread.
pub fn send_with(
    service: &Service,
    order: Order,
    mut each: impl FnMut(&Update) + Send + 'static,
) -> Sent {
    let (sender, updates) = channel();
    let choices = order.choices;
    let sink = Box::new(move |choice, update| {
        each(&update);
        sender.send((choice, update)).is_ok()
    });
    let cancel = service.submit(order, sink).expect("there is room");
    Sent { updates, choices, cancel }
}

impl Sent {
    /// Waits for the end of all replies.
    pub fn replies(self) -> Vec<Reply> {
        self.wait(SOON)
    }

    /// The same where updates may be as far apart as `patience`.
    pub fn wait(self, patience: Duration) -> Vec<Reply> {
        let mut replies: Vec<Reply> = (0..self.choices).map(|_| Reply::default()).collect();
        while replies.iter().any(|reply| reply.end.is_none()) {
            let (choice, update) = self.updates.recv_timeout(patience).expect("an answer");
            let reply = &mut replies[choice as usize];
            match update {
                Update::Started(_) => {}
                Update::Event(event) => reply.take(event),
                Update::Done(end) => reply.end = Some(end),
            }
        }
        replies
    }

    /// Waits for the end of the first reply, and of all others.
    pub fn reply(self) -> Reply {
        self.replies().remove(0)
    }

    /// Waits for the first token.
    pub fn first_token(&self) {
        loop {
            let (_, update) = self.updates.recv_timeout(SOON).expect("an answer");
            if matches!(update, Update::Event(Event::Token { .. })) {
                return;
            }
        }
    }
}

/// What a request gets from a runner of its own.
pub fn alone(loaded: &mut Loaded, request: &Request) -> Reply {
    let mut reply = Reply::default();
    let summary =
        generate(&mut loaded.runner, &loaded.text, request, &Cancel::default(), &mut |event| {
            reply.take(event);
            true
        });
    reply.end = Some(Ok(summary.expect("runs")));
    reply
}

/// Value of a sample, by its name with labels; 0 if there is none.
pub fn value(metrics: &Metrics, sample: &str) -> f64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}
