//! `trefoil serve`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use trefoil_engine::backends::{Backends, Gpus};
use trefoil_engine::model::{DEFAULT_CONTEXT, DEMO, ModelOptions};
use trefoil_engine::service::ServiceOptions;
use trefoil_scheduler::policy::Span;
use trefoil_telemetry::Metrics;

use super::common;
use crate::cli::{PlacementArgs, ServeArgs};
use crate::config::{Config, Engine, Server, id_of};
use crate::exit::{Failure, Outcome, Status};
use crate::http::{AppState, ServedModel, ServerOptions, serve};
use crate::signals::Signals;

/// The server's options: flags, then the configuration.
fn options(args: &ServeArgs, config: &Server) -> Result<ServerOptions, Failure> {
    let host = args.host.clone().unwrap_or_else(|| config.host.clone());
    let api_key = api_key(args.api_key_file.as_deref(), args.api_key.as_deref(), config)?;
    let local =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !local && api_key.is_none() && !args.allow_unauthenticated {
        let error = format!(
            "others can reach {host}: expected a key (--api-key-file FILE), got none; \
             --allow-unauthenticated serves without one"
        );
        return Err(Failure::new(Status::Usage, error));
    }
    let list = |flags: &[String], config: &[String]| {
        if flags.is_empty() { config.to_vec() } else { flags.to_vec() }
    };
    let sse_ping = args.sse_ping.map_or(config.sse_ping.duration(), Duration::from_secs_f64);
    Ok(ServerOptions {
        host,
        api_key,
        allowed_hosts: list(&args.allowed_hosts, &config.allowed_hosts),
        allowed_origins: list(&args.allowed_origins, &config.allowed_origins),
        max_body: usize::try_from(config.max_body.0.0).unwrap_or(usize::MAX),
        sse_ping,
        // Sockets hear of the server a little less often: each ping is answered.
        socket_ping: sse_ping.mul_f64(4.0 / 3.0),
        strict_fields: args.strict_fields || config.strict_fields,
        shutdown_grace: config.shutdown_grace.duration(),
        request_timeout: limit(config.request_timeout),
        metrics: config.metrics,
        ..ServerOptions::default()
    })
}

/// The key of a server: flags, then the configuration.
pub(super) fn api_key(
    file: Option<&Path>,
    key: Option<&str>,
    config: &Server,
) -> Result<Option<String>, Failure> {
    let own = Some(Path::new(&config.api_key_file)).filter(|path| !path.as_os_str().is_empty());
    let key = match (file.or(own.filter(|_| key.is_none())), key) {
        (Some(path), _) => Some(common::read_text(path, Status::Usage)?.trim().to_owned()),
        (None, Some(key)) => Some(key.to_owned()),
        (None, None) => config.api_key.get().map(str::to_owned),
    };
    Ok(key.filter(|key| !key.is_empty()))
}

/// A time limit; none where it is 0.
fn limit(span: Span) -> Option<Duration> {
    Some(span.duration()).filter(|limit| !limit.is_zero())
}

/// Tokens that the KV cache of a model holds where nobody says how many: full contexts of all
/// sequences, or [`KV_TOKENS`].
fn kv_tokens(engine: &Engine, options: &ModelOptions, sequences: usize) -> usize {
    match engine.kv_tokens {
        0 => (options.context.unwrap_or(DEFAULT_CONTEXT).saturating_mul(sequences)).min(KV_TOKENS),
        tokens => tokens,
    }
}

/// Most tokens of the KV cache where nobody says how many.
const KV_TOKENS: usize = 32_768;

/// A model to serve, and how.
struct Wanted {
    name: String,
    id: String,
    aliases: Vec<String>,
    placement: PlacementArgs,
    options: ModelOptions,
}

/// The models of the flags; else those that the configuration names for it; else the built-in one.
fn wanted(args: &ServeArgs, config: &Config) -> Result<Vec<Wanted>, Failure> {
    let mut names = args.models.clone();
    if names.is_empty() {
        let preloaded = config.sections.models.iter().filter(|(_, model)| model.preload);
        names.extend(preloaded.map(|(name, _)| name.clone()));
    }
    if names.is_empty() {
        names.push(DEMO.to_owned());
    }
    let wanted = names.into_iter().map(|name| {
        let mut placement = args.placement.clone();
        placement.settings = config.settings(placement.policy.as_deref(), Some(&name))?;
        let sequences = args.max_sequences.unwrap_or(config.sections.engine.max_sequences.get());
        let options = common::options(&placement)?;
        let options = ModelOptions {
            decode_batch: sequences,
            kv_tokens: Some(kv_tokens(&config.sections.engine, &options, sequences)),
            ..options
        };
        let own = config.model(&name).map(|(id, _)| id.to_owned());
        let (id, aliases) =
            (own.unwrap_or_else(|| id_of(&name)), placement.settings.model.aliases.clone());
        Ok(Wanted { id, aliases, options, placement, name })
    });
    wanted.collect()
}

/// Finds the devices that any of the models names.
fn detect(wanted: &[Wanted]) -> Backends {
    let each = wanted.iter().map(|one| common::backend_options(&one.placement, &one.options));
    let all = each.reduce(|mut all, one| {
        all.named.extend(one.named);
        if one.gpus == Gpus::All {
            all.gpus = Gpus::All;
        }
        all
    });
    let mut all = all.unwrap_or_default();
    all.named.sort_unstable();
    all.named.dedup();
    Backends::detect(all)
}

pub(crate) fn run(args: &ServeArgs, config: &Config) -> Outcome {
    let sections = &config.sections;
    let server = options(args, &sections.server)?;
    let server = ServerOptions { max_n: sections.engine.max_n.get(), ..server };
    let port = args.port.unwrap_or(sections.server.port);
    let service = ServiceOptions {
        queue: args.max_queue.unwrap_or(sections.server.max_queue.get()),
        queue_timeout: limit(sections.server.queue_timeout),
        sequences: args.max_sequences.unwrap_or(sections.engine.max_sequences.get()),
        turn_tokens: sections.engine.max_batch_tokens.get(),
        prefix_cache: sections.engine.prefix_cache,
        ..ServiceOptions::default()
    };
    let metrics = Metrics::default();
    let wanted = wanted(args, config)?;
    let backends = detect(&wanted);
    let mut models: Vec<ServedModel> = Vec::new();
    for Wanted { name, id, aliases, placement, options } in &wanted {
        let own = common::restrict(backends.clone(), placement);
        let template = args.chat_template.as_deref();
        let open = |options: &ModelOptions| common::open(name, placement, &own, options, template);
        let loaded = match open(options) {
            // Fewer requests at once are better than none.
            Err(failure) if failure.status == Status::Device && sections.engine.kv_tokens == 0 => {
                let smaller = ModelOptions { kv_tokens: None, ..options.clone() };
                let loaded = open(&smaller).map_err(|_| failure)?;
                tracing::warn!("{name}: a KV cache of one context, for lack of memory");
                loaded
            }
            loaded => loaded?,
        };
        for name in aliases.iter().chain([id]) {
            if models.iter().any(|model| model.has_name(name)) {
                let error = format!(
                    "two models would be served as {name:?}; rename one of the files or aliases"
                );
                return Err(Failure::new(Status::Usage, error));
            }
        }
        models.push(
            ServedModel::new(
                id.clone(),
                loaded,
                placement.settings.policy.clone(),
                &service,
                &metrics,
            )?
            .with_aliases(aliases.clone()),
        );
    }
    let state = AppState::new(server, models, &backends, config.clone(), metrics);
    state.describe_in_metrics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(listen(port, Arc::new(state)))
}

async fn listen(port: u16, state: Arc<AppState>) -> Outcome {
    let host = state.options.host.as_str();
    let address = (host, port);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        let error = format!(
            "cannot listen on {host}:{port}: {error}; is another server running? --port chooses \
             another"
        );
        Failure::new(Status::Network, error)
    })?;
    let address = listener.local_addr()?;
    // Caught before anybody is told that the server is there.
    let signals = Signals::catch()?;
    let names: Vec<&str> = state.models.iter().map(|model| model.id.as_str()).collect();
    eprintln!("serving {} at http://{address}/v1", names.join(", "));
    serve(listener, state, signalled(signals)).await?;
    Ok(())
}

/// Resolves at the first signal; the second ends the program at once.
async fn signalled(mut signals: Signals) {
    signals.next().await;
    eprintln!("stopping: running requests may end; once more stops at once");
    tokio::spawn(async move {
        let code = signals.next().await;
        std::process::exit(code);
    });
}
