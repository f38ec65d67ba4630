//! Keeps a card awake between pieces of work that are soon to come.
//!
//! A card whose work alternates with that of other processors waits for most of the time; its driver then
//! lowers its clocks, and each piece takes several times as long. While work is expected, a thread gives
//! the card a single workgroup that looks at a word until it is told to stop, so that the driver sees a
//! card at work. Whatever is to run ends it first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use trefoil_devices_api::DeviceError;
use trefoil_kernels_vulkan::{Place, awake};

use crate::context::Context;
use crate::memory::{Allocation, Kind};
use crate::pipelines::Pipelines;
use crate::recording::record;
use crate::transfer::Commands;

/// Looks of a launch, each of which takes about as long as the bus: two to three tenths of a millisecond.
/// That is how long work waits at most where a device does not see that it is told to stop.
const LOOKS: u32 = 200;
/// Time between two looks at whether the card is at work; clocks fall after much longer than that.
const GAP: Duration = Duration::from_micros(200);

/// What the card's queue and the thread share.
pub(crate) struct Wakefulness {
    begin: Instant,
    /// Nanoseconds after `begin` until which the card is to be kept awake.
    until: AtomicU64,
    /// Is the queue at work?
    working: AtomicBool,
    /// Two words; the launch under way ends when the first is not zero.
    flag: Allocation,
    /// Is the thread to end? Held while a launch is given to the queue.
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Wakefulness {
    fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        // In the host's memory: what the host writes there, the device sees at its next look.
        let flag = Allocation::new(context, 8, Kind::Download, None)?;
        Ok(Self {
            begin: Instant::now(),
            until: AtomicU64::new(0),
            working: AtomicBool::new(false),
            flag,
            ended: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_on(&self) -> bool {
        self.until.load(Ordering::Relaxed) > self.now()
    }

    /// The card is kept awake for so long from now.
    pub(crate) fn keep(&self, time: Duration) {
        let now = self.now();
        let until = now + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - now);
        if self.until.fetch_max(until, Ordering::Relaxed) <= now {
            let _held = self.ended.lock();
            self.changed.notify_one();
        }
    }

    /// Real work: nothing else is on the card while the guard lives.
    pub(crate) fn work(&self) -> Working<'_> {
        self.working.store(true, Ordering::SeqCst);
        if self.is_on() {
            // After a launch that is just being given; none is given from here on.
            let _held = self.ended.lock();
            self.flag.signal(1);
        }
        Working(self)
    }
}

/// The card's queue is at work.
pub(crate) struct Working<'a>(&'a Wakefulness);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.store(false, Ordering::SeqCst);
    }
}

/// The thread that keeps a card awake.
pub(crate) struct Keeper {
    shared: Arc<Wakefulness>,
    /// Has the kernel that the thread launches.
    _pipelines: Arc<Pipelines>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeper(on: {})", self.shared.is_on())
    }
}

impl Keeper {
    pub(crate) fn start(
        context: &Arc<Context>,
        pipelines: &Arc<Pipelines>,
    ) -> Result<Self, DeviceError> {
        let shared = Arc::new(Wakefulness::new(context)?);
        let commands = Commands::new(context)?;
        let address = |_: Place| Ok(shared.flag.address);
        record(context, pipelines, &commands, (None, None), &[awake(LOOKS)], &address)?;
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("trefoil-awake".to_owned())
            .spawn(move || {
                // Work fails for the same reason, and says so.
                if let Err(error) = keep_awake(&of_thread, &commands) {
                    tracing::debug!("no longer kept awake: {error}");
                }
            })
            .map_err(|error| DeviceError::Driver {
                call: "the start of a thread",
                code: i64::from(error.raw_os_error().unwrap_or(0)),
                text: error.to_string(),
            })?;
        Ok(Self { shared, _pipelines: pipelines.clone(), thread: Some(thread) })
    }

    pub(crate) fn shared(&self) -> &Arc<Wakefulness> {
        &self.shared
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *self.shared.ended.lock() = true;
        self.shared.flag.signal(1);
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It cannot panic while it holds anything.
            let _ = thread.join();
        }
    }
}

fn keep_awake(shared: &Wakefulness, commands: &Commands) -> Result<(), DeviceError> {
    loop {
        let mut ended = shared.ended.lock();
        while !*ended && (!shared.is_on() || shared.working.load(Ordering::SeqCst)) {
            if shared.is_on() {
                shared.changed.wait_for(&mut ended, GAP);
            } else {
                shared.changed.wait(&mut ended);
            }
        }
        if *ended {
            return Ok(());
        }
        shared.flag.signal(0);
        commands.begin(false)?;
        drop(ended);
        commands.wait()?;
    }
}
