//! `trefoil serve`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_engine::loaded::Loaded;
use trefoil_telemetry::Metrics;

use super::common;
use crate::cli::ServeArgs;
use crate::exit::{Failure, Outcome, Status};
use crate::http::{AppState, ServedModel, ServerOptions, serve};
use crate::signals::Signals;

/// Name under which a model is served: its file or folder name, without ending.
fn id_of(model: &str) -> String {
    let path = Path::new(model);
    let name = match path.extension() {
        Some(extension) if extension == "gguf" || extension == "safetensors" => path.file_stem(),
        _ => path.file_name(),
    };
    name.map_or(model.to_owned(), |name| name.to_string_lossy().into_owned())
}

fn options(args: &ServeArgs) -> Result<ServerOptions, Failure> {
    let api_key = match &args.api_key_file {
        Some(path) => Some(common::read_text(path, Status::Usage)?.trim().to_owned()),
        None => args.api_key.clone(),
    };
    let api_key = api_key.filter(|key| !key.is_empty());
    let local = args.host == "localhost"
        || args.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !local && api_key.is_none() && !args.allow_unauthenticated {
        let error = format!(
            "others can reach {}: expected a key (--api-key-file FILE), got none; \
             --allow-unauthenticated serves without one",
            args.host
        );
        return Err(Failure::new(Status::Usage, error));
    }
    Ok(ServerOptions {
        host: args.host.clone(),
        api_key,
        allowed_hosts: args.allowed_hosts.clone(),
        allowed_origins: args.allowed_origins.clone(),
        sse_ping: Duration::from_secs_f64(args.sse_ping),
        strict_fields: args.strict_fields,
        ..ServerOptions::default()
    })
}

pub(crate) fn run(args: &ServeArgs) -> Outcome {
    let server = options(args)?;
    let options = common::options(&args.placement)?;
    let backends = common::backends(&args.placement, &options);
    let template = args.chat_template.as_deref().map(|path| common::read_text(path, Status::Usage));
    let template = template.transpose()?;
    let mut models = Vec::new();
    for name in &args.models {
        let spinner = common::spinner(&format!("loading {name}"));
        let loaded = Loaded::open(name, &backends, &options, template.as_deref());
        spinner.finish_and_clear();
        let loaded = loaded?;
        let id = id_of(name);
        if models.iter().any(|model: &ServedModel| model.id == id) {
            let error = format!("two models would be served as {id:?}; rename one of the files");
            return Err(Failure::new(Status::Usage, error));
        }
        models.push(ServedModel::new(id, loaded, args.max_queue)?);
    }
    let default_model = models[0].id.clone();
    models.sort_by(|a, b| a.id.cmp(&b.id));
    let state = AppState {
        options: server,
        models,
        default_model,
        devices: backends.devices.clone(),
        metrics: Metrics::default(),
        started: Instant::now(),
    };
    state.describe_in_metrics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(listen(args, Arc::new(state)))
}

async fn listen(args: &ServeArgs, state: Arc<AppState>) -> Outcome {
    let address = (args.host.as_str(), args.port);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        let error = format!(
            "cannot listen on {}:{}: {error}; is another server running? --port chooses another",
            args.host, args.port
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
