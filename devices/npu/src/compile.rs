//! Compiling a part of a segment for one number of rows.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ort::compiler::ModelCompiler;
use ort::session::Session;
use ort::session::builder::{LoadCanceler, SessionBuilder};
use trefoil_devices_api::{CompileError, DeviceError, Job, LostReason};
use trefoil_kernels_npu::{Model, WEIGHTS_FILE};
use trefoil_telemetry::Nanos;

use crate::cache::Cache;
use crate::provider::Chosen;
use crate::session::check;

/// Time between two looks at whether a compilation is still wanted.
const LOOK: Duration = Duration::from_millis(10);

/// A model with its weights, on the way to a provider.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) model: Arc<Model>,
    pub(crate) weights: Arc<[u8]>,
}

/// Where a compiled model may be kept, and under which key.
#[derive(Clone)]
pub(crate) struct Keep {
    pub(crate) cache: Cache,
    pub(crate) key: blake3::Hash,
}

/// What compiling comes to: a session, or why the provider makes none.
pub(crate) type Made = Result<Session, String>;

/// Compiles a model, or loads what was compiled before. On a thread of its own: a provider may take
/// minutes and cannot always be stopped, in which case the thread is left to end by itself.
///
/// # Errors
/// [`CompileError::Stopped`] when the job was cancelled or `limit` is over.
pub(crate) fn compile(
    chosen: &Chosen,
    source: &Source,
    keep: Option<&Keep>,
    job: &Job,
    limit: Nanos,
) -> Result<Made, CompileError> {
    let (done, result) = channel();
    let (say, cancelers) = channel();
    let (chosen, source, keep) = (chosen.clone(), source.clone(), keep.cloned());
    let started = Instant::now();
    let spawned =
        std::thread::Builder::new().name("trefoil-npu-compile".to_owned()).spawn(move || {
            let made = make(&chosen, &source, keep.as_ref(), &say);
            // Nobody listens any more if it took too long; then the session is dropped here.
            let _ = done.send(made);
        });
    spawned.map_err(|error| DeviceError::Driver {
        call: "thread::spawn",
        code: i64::from(error.raw_os_error().unwrap_or(-1)),
        text: error.to_string(),
    })?;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(made) => return Ok(made),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 }.into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let after = Nanos(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let why = if job.is_cancelled() {
            "cancelled".to_owned()
        } else if after > limit {
            format!("the limit is {limit}; npu.compile_timeout raises it")
        } else {
            continue;
        };
        for canceler in cancelers.try_iter() {
            if let Err(error) = canceler.cancel() {
                tracing::debug!("a compilation goes on: {error}");
            }
        }
        return Err(CompileError::Stopped { after, why });
    }
}

fn make(chosen: &Chosen, source: &Source, keep: Option<&Keep>, say: &Sender<LoadCanceler>) -> Made {
    let text = |error: ort::Error| error.message().to_owned();
    let Some(keep) = keep else { return session(chosen, source, say).map_err(text) };
    if let Some(compiled) = keep.cache.load(&keep.key) {
        match load(chosen, source, &compiled, say) {
            Ok(session) => return Ok(session),
            Err(error) => {
                tracing::warn!("a compiled model does not load and is made anew: {error}");
                keep.cache.remove(&keep.key);
            }
        }
    }
    match compiled(chosen, source, say) {
        Ok(compiled) => match load(chosen, source, &compiled, say) {
            Ok(session) => {
                keep.cache.store(&keep.key, &compiled);
                return Ok(session);
            }
            Err(error) => {
                tracing::info!("{} does not load what it compiled: {error}", chosen.name())
            }
        },
        Err(error) => {
            tracing::info!("{} does not write down what it compiles: {error}", chosen.name())
        }
    }
    // Then it compiles again in every process.
    session(chosen, source, say).map_err(text)
}

fn builder(chosen: &Chosen, source: &Source) -> Result<SessionBuilder, ort::Error> {
    let builder = chosen.builder()?;
    if source.weights.is_empty() {
        return Ok(builder);
    }
    Ok(builder.with_external_initializer_file_in_memory(WEIGHTS_FILE, source.weights.clone())?)
}

fn session(
    chosen: &Chosen,
    source: &Source,
    say: &Sender<LoadCanceler>,
) -> Result<Session, ort::Error> {
    let mut builder = builder(chosen, source)?;
    // Nobody listens only if it took too long already.
    let _ = say.send(builder.canceler());
    builder.commit_from_memory(&source.model.bytes)
}

/// What the provider made of a model, written down.
fn compiled(
    chosen: &Chosen,
    source: &Source,
    say: &Sender<LoadCanceler>,
) -> Result<Vec<u8>, ort::Error> {
    let builder = builder(chosen, source)?;
    let _ = say.send(builder.canceler());
    let compiler = ModelCompiler::new(builder)?.with_model_from_memory(&source.model.bytes)?;
    let compiled = compiler.with_embed_ep_context()?.compile_to_buffer()?;
    Ok(compiled.to_vec())
}

/// A session of what was compiled before; an error if it does not load, or is another model's.
fn load(chosen: &Chosen, source: &Source, compiled: &[u8], say: &Sender<LoadCanceler>) -> Made {
    let text = |error: ort::Error| error.message().to_owned();
    let mut builder = chosen.builder().map_err(text)?;
    let _ = say.send(builder.canceler());
    let session = builder.commit_from_memory(compiled).map_err(text)?;
    check(&session, &source.model)?;
    Ok(session)
}
