//! Many requests on one model: what each gets is what it would get alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use trefoil_engine::generate::{Event, Finish};
use trefoil_engine::kv::PageCounts;
use trefoil_engine::service::{Forecast, Order, Service, ServiceError, ServiceOptions, Update};
use trefoil_kernels::cases::Random;
use trefoil_telemetry::Metrics;
use trefoil_tests::devices::{GPU, backends, with_gpu};
use trefoil_tests::faulty::Faulty;
use trefoil_tests::golden;
use trefoil_tests::serving::{
    Place, Reply, SOON, Sent, alone, request, requests, send, send_with, value,
};

fn serve(kv_tokens: usize, options: ServiceOptions) -> (Service, Metrics) {
    Place::demo().serve(kv_tokens, options)
}

#[test]
fn a_reply_is_the_same_alone_and_in_any_mix() {
    same_in_any_mix(&Place::demo(), 16);
}

#[test]
fn a_reply_of_another_model_is_the_same_alone_and_in_any_mix() {
    let folder = golden::data().join("models/smollm");
    let place = Place::of(&folder.to_string_lossy(), backends("cpu0", false), "cpu0");
    same_in_any_mix(&place, 16);
}

/// Where prompts and replies are not made by the same devices, what was generated cannot be read again
/// in chunks: it would come out different.
#[test]
fn a_reply_of_two_devices_is_the_same_alone_and_in_any_mix() {
    let folder = golden::data().join("models/smollm");
    let mut place = Place::of(&folder.to_string_lossy(), backends("cpu0", false), "cpu0");
    place.options.pins = vec!["prefill:blk.*.ffn=ref0".parse().expect("valid")];
    assert!(!place.load(&place.options).runner.has_steady_rows());
    same_in_any_mix(&place, 16);
}

#[test]
fn a_reply_of_a_gpu_is_the_same_alone_and_in_any_mix() {
    let Some(backends) = with_gpu(false) else { return };
    let folder = golden::data().join("models/smollm");
    same_in_any_mix(&Place::of(&folder.to_string_lossy(), backends, GPU), 10);
}

fn same_in_any_mix(place: &Place, count: usize) {
    let requests = requests(count, 3);
    let mut model = place.load(&place.options);
    let want: Vec<Reply> = requests.iter().map(|request| alone(&mut model, request)).collect();
    // Much room, little room (sequences give way to others), one at a time; with and without a cache of
    // beginnings; chunks as small as they get.
    for (kv_tokens, sequences, prefix_cache, inter_token) in [
        (4096, 8, true, Duration::from_millis(100)),
        (256, 8, true, Duration::ZERO),
        (256, 5, false, Duration::ZERO),
        (256, 1, true, Duration::ZERO),
    ] {
        let options =
            ServiceOptions { sequences, prefix_cache, inter_token, ..ServiceOptions::default() };
        let (service, metrics) = place.serve(kv_tokens, options);
        let roomy = kv_tokens > 256;
        let mut random = Random::new(kv_tokens as u64 + sequences as u64);
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_cached_key(|_| random.bits());
        let mut sent = BTreeMap::new();
        for index in order {
            sent.insert(index, send(&service, Order::new(requests[index].clone())));
            // Now and then, or all at once where they are to be in each other's way.
            if roomy {
                std::thread::sleep(Duration::from_millis(random.bits() % 20));
            }
        }
        for (index, sent) in sent {
            let (got, want) = (sent.reply(), &want[index]);
            assert_eq!(got.tokens, want.tokens, "{kv_tokens} tokens, {sequences} sequences");
            assert_eq!(got.text, want.text);
            let (got, want) = (got.summary(), want.summary());
            assert_eq!(got.finish, want.finish);
            assert_eq!(got.prompt_tokens, want.prompt_tokens);
            assert_eq!(got.generated_tokens, want.generated_tokens);
        }
        let PageCounts { used, cached, free } = service.load().pages();
        assert_eq!((used, service.load().running(), service.waiting()), (0, 0, 0));
        assert_eq!(cached + free, kv_tokens / 16);
        assert!(prefix_cache || cached == 0);
        let preempted =
            value(&metrics, "trefoil_preemptions_total{model=\"demo\",reason=\"kv_pages\"}");
        assert_eq!(preempted > 0.0, !roomy && sequences > 1, "{preempted}");
        let made: usize = want.iter().map(|reply| reply.tokens.len()).sum();
        let total = value(&metrics, "trefoil_generated_tokens_total{model=\"demo\"}");
        assert_eq!(total, made as f64);
        let steps = value(&metrics, "trefoil_batch_sequences_sum{model=\"demo\",phase=\"decode\"}");
        // Every token but the first of a reply is of a row of a decode step. What is read again goes
        // through chunks where that gives the same bits, else through decode steps once more.
        let rows = (made - want.len()) as f64;
        let right = match model.runner.has_steady_rows() {
            _ if preempted == 0.0 => steps == rows,
            true => steps <= rows,
            false => steps >= rows,
        };
        assert!(right, "{steps} rows of steps for {rows} tokens");
    }
}

#[test]
fn a_beginning_that_came_before_is_not_read_again() {
    let (service, metrics) = serve(2048, ServiceOptions::default());
    let common: Vec<u32> = (0..100).map(|n| 20 + n % 77).collect();
    let ask = |tail: &[u32], cache: bool| {
        let prompt = [&common[..], tail].concat();
        let order = Order { cache, ..Order::new(request(prompt, 0.0, 1, 6)) };
        send(&service, order).reply()
    };
    let first = ask(&[1, 2, 3], true);
    assert_eq!(first.summary().cached_tokens, 0);
    // Six full pages are alike.
    let second = ask(&[4, 5], true);
    assert_eq!(second.summary().cached_tokens, 96);
    // 103 tokens of the first prompt and 5 made ones are in pages, of which 6 are full; nothing of a
    // request that does not want it.
    let again = ask(&[1, 2, 3], true);
    assert_eq!(again.summary().cached_tokens, 96);
    assert_eq!(again.tokens, first.tokens);
    let without = ask(&[1, 2, 3], false);
    assert_eq!((without.summary().cached_tokens, without.tokens), (0, first.tokens.clone()));
    // What was generated is a beginning too: a conversation goes on behind it.
    let prompt = [&common[..], &[1, 2, 3], &first.tokens[..], &[9, 9, 9, 9]].concat();
    let reply = send(&service, Order::new(request(prompt, 0.0, 1, 30))).reply();
    assert_eq!(reply.summary().cached_tokens, 96);
    let all = [&common[..], &[1, 2, 3], &first.tokens[..], &[9, 9, 9, 9], &reply.tokens[..], &[7]];
    let next = send(&service, Order::new(request(all.concat(), 0.0, 1, 2))).reply();
    // All but the last made token were fed.
    let fed = 100 + 3 + 6 + 4 + 29;
    assert_eq!(next.summary().cached_tokens, fed / 16 * 16);
    // A whole prompt that was read before: its last token is read for the output.
    let short: Vec<u32> = (0..64).map(|n| 200 + n).collect();
    let twice = [0, 48].map(|cached| {
        let reply = send(&service, Order::new(request(short.clone(), 0.0, 1, 3))).reply();
        assert_eq!(reply.summary().cached_tokens, cached);
        reply.tokens
    });
    assert_eq!(twice[0], twice[1]);
    let sources = ["computed", "cached"].map(|source| {
        value(
            &metrics,
            &format!("trefoil_prompt_tokens_total{{model=\"demo\",source=\"{source}\"}}"),
        )
    });
    let cached = (96 * 3 + fed / 16 * 16 + 48) as f64;
    assert_eq!(sources[1], cached);
    assert_eq!(value(&metrics, "trefoil_prefix_cache_hit_tokens_total{model=\"demo\"}"), cached);
    let all = (103 * 3 + 102 + 113 + all.concat().len() + 128) as f64;
    assert_eq!(sources[0] + sources[1], all);
    let asked = value(&metrics, "trefoil_prefix_cache_query_tokens_total{model=\"demo\"}");
    assert_eq!(asked, all - 103.0, "one did not ask");
}

#[test]
fn replies_to_one_prompt_share_its_pages() {
    let mut model = Place::demo().load(&Place::demo().options);
    let one = request((0..150).map(|n| 30 + n % 50).collect(), 1.0, 5, 12);
    for prefix_cache in [true, false] {
        // Room for two prompts, not for three: but pages are shared.
        let options = ServiceOptions { sequences: 8, prefix_cache, ..ServiceOptions::default() };
        let (service, metrics) = serve(320, options);
        let replies = send(&service, Order { choices: 4, ..Order::new(one.clone()) }).replies();
        let first = alone(&mut model, &one);
        assert_eq!(replies[0].tokens, first.tokens);
        let others = replies[1..].iter().filter(|reply| reply.tokens != replies[0].tokens);
        assert_eq!(others.count(), 3, "each has random numbers of its own");
        let prompts =
            value(&metrics, "trefoil_prompt_tokens_total{model=\"demo\",source=\"computed\"}");
        assert_eq!(prompts, 150.0, "the prompt counts once");
        let read = value(&metrics, "trefoil_batch_tokens_sum{model=\"demo\",phase=\"prefill\"}");
        assert!(read <= 150.0 + 3.0 * 16.0, "{read} tokens were read");
        let preempted =
            value(&metrics, "trefoil_preemptions_total{model=\"demo\",reason=\"kv_pages\"}");
        assert_eq!(preempted, 0.0);
        assert_eq!(service.load().pages().used, 0);
    }
}

#[test]
fn whoever_ends_does_not_disturb_the_others() {
    let (service, metrics) = serve(2048, ServiceOptions::default());
    let want = send(&service, Order::new(request(vec![50, 51, 52], 0.0, 1, 100))).reply();
    let calm = send(&service, Order::new(request(vec![50, 51, 52], 0.0, 1, 100)));
    calm.first_token();
    // One whose listener panics, in the middle and at the end.
    let mut heard = 0;
    let sink = Box::new(move |_, _| {
        heard += 1;
        assert!(heard < 5, "this listener panics");
        true
    });
    service.submit(Order::new(request(vec![60, 61], 0.0, 1, 100)), sink).expect("there is room");
    // One that is cancelled, one that nobody listens to, one that cannot be.
    let cancelled = send(&service, Order::new(request(vec![70, 71], 0.0, 1, 200)));
    cancelled.first_token();
    cancelled.cancel.cancel();
    let end = cancelled.reply();
    assert_eq!(end.summary().finish, Finish::Cancelled);
    drop(send(&service, Order::new(request(vec![80, 81], 0.0, 1, 200))));
    for prompt in [vec![], vec![9_999_999], vec![1; 300]] {
        let reply = send(&service, Order::new(request(prompt, 0.0, 1, 5))).reply();
        assert!(matches!(reply.end, Some(Err(ServiceError::Generate(_)))), "{reply:?}");
    }
    let mut invalid = request(vec![1], 0.0, 1, 5);
    invalid.sampling.top_p = 7.0;
    let reply = send(&service, Order { choices: 2, ..Order::new(invalid) }).replies().remove(1);
    assert!(matches!(reply.end, Some(Err(ServiceError::Generate(_)))), "{reply:?}");
    let got = calm.reply();
    assert_eq!(got.tokens[..], want.tokens[1..], "its first token was heard before");
    let again = send(&service, Order::new(request(vec![50, 51, 52], 0.0, 1, 100))).reply();
    assert_eq!(again.tokens, want.tokens);
    assert_eq!(service.load().pages().used, 0);
    let ends = ["length", "cancelled", "error", "stop"].map(|outcome| {
        value(&metrics, &format!("trefoil_requests_total{{model=\"demo\",outcome=\"{outcome}\"}}"))
    });
    // Of those that cannot be there are three, and two replies to the last.
    assert_eq!(ends, [3.0, 3.0, 5.0, 0.0]);
}

#[test]
fn a_prompt_is_read_between_the_tokens_of_others() {
    // Much too slow by prediction for any time between tokens: chunks are as short as they get.
    let forecast = Forecast { prompt_token: Some(1.0), decode_step: None };
    let options = ServiceOptions { forecast, ..ServiceOptions::default() };
    let options = ServiceOptions { inter_token: Duration::ZERO, ..options };
    let (service, metrics) = serve(2048, options);
    let running = send(&service, Order::new(request(vec![50, 51], 0.0, 1, 200)));
    running.first_token();
    let long = send(&service, Order::new(request((10..230).collect(), 0.0, 1, 1)));
    assert_eq!(long.reply().tokens.len(), 1);
    let steps = "trefoil_steps_total{model=\"demo\",phase=\"prefill\"}";
    assert_eq!(value(&metrics, steps), 1.0 + (220.0_f64 / 32.0).ceil());
    let turns = value(&metrics, "trefoil_steps_total{model=\"demo\",phase=\"decode\"}");
    assert!(turns >= 6.0, "{turns} decode steps between seven chunks");
    running.cancel.cancel();
    running.reply();
    // Nobody waits for a token: the prompt is read at once.
    let alone = send(&service, Order::new(request((230..450).collect(), 0.0, 1, 1)));
    alone.reply();
    assert_eq!(value(&metrics, steps), 1.0 + 7.0 + 1.0);
}

#[test]
fn the_queue_knows_priorities_and_limits_of_time() {
    let options = ServiceOptions {
        sequences: 1,
        queue_timeout: Some(Duration::from_millis(300)),
        ..ServiceOptions::default()
    };
    let (service, metrics) = serve(2048, options);
    let long = || request(vec![50, 51], 0.0, 1, 250);
    let running = send(&service, Order::new(long()));
    running.first_token();
    let (sender, ended) = channel();
    let submit = |priority| {
        let sender = sender.clone();
        let sink = Box::new(move |_, update| {
            if let Update::Started(_) = update {
                sender.send(priority).expect("the test listens");
            }
            true
        });
        let order = Order { priority, ..Order::new(request(vec![5, 6], 0.0, 1, 1)) };
        service.submit(order, sink).expect("there is room");
    };
    [0, -3, 10, 0, 2].into_iter().for_each(submit);
    assert_eq!(service.waiting(), 5);
    let gone = send(&service, Order::new(long()));
    gone.cancel.cancel();
    assert!(matches!(gone.reply().end, Some(Err(ServiceError::Cancelled))));
    running.cancel.cancel();
    let order: Vec<i32> =
        (0..5).map(|_| ended.recv_timeout(SOON).expect("each has its turn")).collect();
    assert_eq!(order, [10, 2, 0, 0, -3]);
    // A limit of the request's whole time counts in the queue and out of it.
    let limit = Duration::from_millis(100);
    let limited = Order { time_limit: Some(limit), ..Order::new(long()) };
    // Slow enough on any machine: tokens are told one by one to a listener that takes its time.
    let slow = |order: Order| {
        send_with(&service, order, |update| {
            if matches!(update, Update::Event(Event::Token { .. })) {
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let blocking = slow(Order::new(long()));
    blocking.first_token();
    let waits = send(&service, limited.clone());
    let waits_too_long = send(&service, Order::new(long()));
    assert!(matches!(waits.reply().end, Some(Err(ServiceError::Deadline(l))) if l == limit));
    let end = waits_too_long.reply().end;
    assert!(matches!(end, Some(Err(ServiceError::QueueTimeout(_)))), "{end:?}");
    blocking.cancel.cancel();
    let reply = slow(limited).reply();
    assert!(matches!(reply.end, Some(Err(ServiceError::Deadline(_)))), "{reply:?}");
    assert!(!reply.tokens.is_empty(), "it was at work");
    let refused = value(&metrics, "trefoil_requests_rejected_total{reason=\"queue_timeout\"}");
    assert_eq!(refused, 1.0);
    // A service that ends says so to all.
    let (running, waiting) = (slow(Order::new(long())), send(&service, Order::new(long())));
    running.first_token();
    drop(service);
    for sent in [running, waiting] {
        assert!(matches!(sent.reply().end, Some(Err(ServiceError::Stopped))));
    }
}

#[test]
fn a_full_queue_refuses() {
    let options = ServiceOptions { queue: 2, sequences: 1, ..ServiceOptions::default() };
    let (service, _) = serve(2048, options);
    let running = send(&service, Order::new(request(vec![50], 0.0, 1, 250)));
    running.first_token();
    let waiting = [(); 2].map(|()| send(&service, Order::new(request(vec![51], 0.0, 1, 1))));
    let error = service
        .submit(Order::new(request(vec![52], 0.0, 1, 1)), Box::new(|_, _| true))
        .expect_err("it is full");
    assert_eq!(error.to_string(), "all 2 places in the queue are taken");
    running.cancel.cancel();
    for sent in waiting {
        assert_eq!(sent.reply().tokens.len(), 1);
    }
}

#[test]
fn a_step_that_fails_ends_only_what_cannot_go_on() {
    let mut all = backends("cpu0", false).clone();
    let inner = all.devices.iter().position(|device| device.info().name == "cpu0");
    let inner = inner.expect("the CPU is always here");
    let faulty = Arc::new(Faulty::new(all.devices[inner].clone()));
    all.devices[inner] = faulty.clone();
    let place = Place { backends: Box::leak(Box::new(all)), ..Place::demo() };
    let (service, metrics) = place.serve(2048, ServiceOptions::default());
    let ask = |n: u32| send(&service, Order::new(request(vec![50 + n, 51, 52], 0.0, 1, 150)));
    let want: Vec<Reply> = (0..3).map(|n| ask(n).reply()).collect();
    // Once: every sequence is tried again alone, and goes on.
    let sent: Vec<Sent> = (0..3).map(ask).collect();
    sent.iter().for_each(Sent::first_token);
    faulty.fail(1, |_| true);
    for (sent, want) in sent.into_iter().zip(&want) {
        assert_eq!(sent.reply().tokens[..], want.tokens[1..]);
    }
    // For a while: nobody can go on.
    let sent: Vec<Sent> = (0..3).map(ask).collect();
    sent.iter().for_each(Sent::first_token);
    let failed = std::thread::scope(|scope| {
        let (end, ended) = channel::<()>();
        let faulty = &faulty;
        scope.spawn(move || {
            while ended.try_recv().is_err() {
                faulty.fail(1, |_| true);
            }
        });
        let replies = sent.into_iter().map(Sent::reply);
        let failed = replies.filter(|reply| match &reply.end {
            Some(Err(ServiceError::Generate(error))) => {
                assert!(error.to_string().contains("cpu0"), "{error}");
                true
            }
            _ => false,
        });
        let failed = failed.count();
        end.send(()).expect("it listens");
        failed
    });
    assert!(failed > 0, "steps failed");
    faulty.fail(0, |_| true);
    assert_eq!(errors(&metrics), failed as f64);
    // The service lives, and its pages are there.
    assert_eq!(ask(1).reply().tokens, want[1].tokens);
    assert_eq!(service.load().pages().used, 0);
}

/// Replies that ended with an error.
fn errors(metrics: &Metrics) -> f64 {
    value(metrics, "trefoil_requests_total{model=\"demo\",outcome=\"error\"}")
}
