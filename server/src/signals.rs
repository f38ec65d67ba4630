//! Signals that ask the program to end: interrupt (Ctrl-C) and termination.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once};

use trefoil_engine::generate::Cancel;

/// Exit code after an interrupt: 128 and the signal's number, as shells have it.
const INTERRUPTED: i32 = 130;
/// Exit code after a request to terminate.
#[cfg(unix)]
const TERMINATED: i32 = 143;

/// The signals, caught from its making on. Needs a tokio runtime.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(crate) fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal; returns the exit code of a program that it ended.
    #[cfg(unix)]
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(crate) async fn next(&mut self) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        INTERRUPTED
    }
}

/// Exit code of the signal that came since the last [`cancel_on_signal`]; 0 if none did.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// What a signal cancels.
static CURRENT: Mutex<Option<Cancel>> = Mutex::new(None);

/// The exit code that a signal asks for, if one came.
pub(crate) fn caught() -> Option<i32> {
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|&code| code != 0)
}

/// From here on a signal cancels `cancel`; a second one ends the program.
pub(crate) fn cancel_on_signal(cancel: &Cancel) {
    static INSTALLED: Once = Once::new();
    CAUGHT.store(0, Ordering::Relaxed);
    *CURRENT.lock().expect("nothing panics while holding it") = Some(cancel.clone());
    INSTALLED.call_once(|| {
        if let Err(error) = listen() {
            tracing::warn!("Ctrl-C will end the program at once: {error}");
        }
    });
}

/// Catches signals, and starts the thread that waits for them.
fn listen() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::catch()?
    };
    let wait = async move {
        loop {
            let code = signals.next().await;
            if CAUGHT.swap(code, Ordering::Relaxed) != 0 {
                std::process::exit(code);
            }
            if let Some(current) = &*CURRENT.lock().expect("nothing panics while holding it") {
                current.cancel();
            }
        }
    };
    let thread = std::thread::Builder::new().name("trefoil-signals".to_owned());
    thread.spawn(move || runtime.block_on(wait)).map(drop)
}
