//! Threads that wait for work close by: they spin for a moment after a job, then sleep.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use super::Level;

/// Turns of the waiting loop before a worker sleeps: some tens of microseconds, longer than the
/// serial stretch between two kernels of one token, shorter than anything a user would notice.
const SPINS: u32 = 20_000;

/// A set of worker threads that run the tasks of one job at a time.
///
/// The pool also carries the instruction [`Level`], so that every kernel started on it computes with
/// the same instructions on every thread. Jobs of several callers run one after the other; a job
/// started inside a task runs on that task's thread alone.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    level: Level,
    caller: Mutex<()>,
}

/// What a task runs: (task, worker).
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// State word: number of the job in the high half, then one bit that says whether workers may still
/// join it, then the number of workers inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: Vec<Sleeper>,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    tasks: usize,
}

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

// SAFETY: `job` is the only part that is not Sync by itself. It is written only by the caller that
// holds `ThreadPool::caller` while the state word is closed with nobody inside, and read only by
// workers that entered an open job; the state word orders the two. The pointer in it is to a closure
// that is Sync and outlives the job (see `ThreadPool::run`).
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

thread_local! {
    static INSIDE_TASK: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller of [`run`](Self::run) being one of them (so 1 starts
    /// none), computing at the best level of this processor.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::with_level(threads, Level::detect())
    }

    /// One thread per physical core that this process may run on.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn for_this_machine() -> std::io::Result<Self> {
        Self::new(physical_cores())
    }

    /// A pool that computes at a level of the caller's choice; a level that this processor does not
    /// have is replaced by the best that it has.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn with_level(threads: usize, level: Level) -> std::io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: (0..helpers).map(|_| Sleeper::default()).collect(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(helpers),
            level: level.min(Level::detect()),
            caller: Mutex::new(()),
        };
        for index in 0..helpers {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("trefoil-cpu-{}", index + 1))
                .spawn(move || shared.serve(index))?;
            *lock(&pool.shared.sleepers[index].thread) = Some(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that take part in a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instructions that kernels on this pool use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Runs `work(task, worker)` for every task in `0..tasks`, in any order, on all threads; returns
    /// when all are done. `worker` is below [`threads`](Self::threads) and no two tasks run at the
    /// same time with the same one. Nothing is allocated.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, after the tasks already begun have ended
    /// (others are left out). The pool stays usable.
    pub fn run(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE_TASK.get() {
            // Inside a task this thread's worker number may be in use by the outer job only through
            // its own scratch, which a nested kernel brings itself: number 0 is right here.
            (0..tasks).for_each(|task| work(task, 0));
            return;
        }
        let _one_job_at_a_time = lock(&self.caller);
        let work: &Work<'_> = &work;
        // SAFETY: only the lifetime changes. The pointer is used by tasks of this job alone, and
        // this function leaves (also by unwinding) only after `close` saw every worker leave it.
        let work: &Work<'static> =
            unsafe { std::mem::transmute::<&Work<'_>, &Work<'static>>(work) };
        self.shared.publish(Job { work, tasks });
        self.shared.work_on(Job { work, tasks }, 0);
        self.shared.close();
        let panic = lock(&self.shared.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// [`run`](Self::run) over `0..len` cut into about four parts a thread, each a multiple of
    /// `grain` long (but the last): for element-wise work.
    pub fn run_ranges(&self, len: usize, grain: usize, work: impl Fn(Range<usize>, usize) + Sync) {
        let grains = len.div_ceil(grain.max(1));
        let step = grains.div_ceil(4 * self.threads()).max(1) * grain.max(1);
        self.run(len.div_ceil(step), |task, worker| {
            work(task * step..len.min((task + 1) * step), worker);
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for sleeper in &self.shared.sleepers {
            if let Some(thread) = lock(&sleeper.thread).as_ref() {
                thread.unpark();
            }
        }
        for worker in self.workers.drain(..) {
            // A worker contains every panic of a task, so it ends well.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadPool({} threads, {:?})", self.threads(), self.level)
    }
}

impl Shared {
    /// Opens a job to the workers and wakes those that sleep.
    fn publish(&self, job: Job) {
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        // SAFETY: the state is closed with nobody inside (`close` of the job before waited for
        // that), so no worker reads the cell; the caller's lock keeps other writers out.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.state.store(number << 32 | OPEN, Ordering::SeqCst);
        for sleeper in &self.sleepers {
            if sleeper.asleep.load(Ordering::SeqCst)
                && let Some(thread) = lock(&sleeper.thread).as_ref()
            {
                thread.unpark();
            }
        }
    }

    /// Closes the job and waits for the workers inside.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut turns = 0u32;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            turns += 1;
            if turns.is_multiple_of(1024) { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Takes tasks until none is left.
    fn work_on(&self, job: Job, worker: usize) {
        INSIDE_TASK.set(true);
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    break;
                }
                // SAFETY: the closure lives until `close` returns, and this thread is either the
                // caller that has yet to close or a worker counted as inside.
                unsafe { (*job.work)(task, worker) };
            }
        }));
        INSIDE_TASK.set(false);
        if let Err(payload) = done {
            self.next.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Enters the open job if it is a new one; gives its number.
    fn enter(&self, seen: u64) -> Option<(u64, Job)> {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 && state >> 32 != seen {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    // SAFETY: counted as inside an open job, so its publisher wrote the cell before
                    // and nobody writes it until this worker leaves.
                    let job = unsafe { *self.job.get() };
                    return Some((state >> 32, job.expect("an open job is set")));
                }
                Err(now) => state = now,
            }
        }
        None
    }

    /// Life of a worker.
    fn serve(&self, index: usize) {
        let (mut seen, mut turns) = (0, 0);
        while !self.stop.load(Ordering::SeqCst) {
            if let Some((number, job)) = self.enter(seen) {
                self.work_on(job, index + 1);
                self.state.fetch_sub(1, Ordering::Release);
                (seen, turns) = (number, 0);
            } else if turns < SPINS {
                turns += 1;
                std::hint::spin_loop();
            } else {
                self.sleep(index, seen);
                turns = 0;
            }
        }
    }

    fn sleep(&self, index: usize, seen: u64) {
        let asleep = &self.sleepers[index].asleep;
        // Either the publisher sees this flag after it opened a job, or this thread sees the job.
        asleep.store(true, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        let work = state & OPEN != 0 && state >> 32 != seen;
        if !work && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }
}

/// Physical cores among the processors this process may use (their number where the system does not
/// tell which processors share a core).
fn physical_cores() -> usize {
    let logical = thread::available_parallelism().map_or(1, usize::from);
    let siblings =
        std::fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
            .map_or(1, |list| list.trim().split([',', '-']).count());
    (logical / siblings.max(1)).max(1)
}

/// A slice whose disjoint parts the tasks of one job write.
pub(super) struct SharedSlice<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out through an unsafe function whose caller answers for disjointness, so
// sharing the handle is sharing `&mut` parts between threads, which needs T: Send.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The part at `range`.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    ///
    /// # Panics
    /// If the range leaves the slice.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part {range:?} of {}",
            self.len
        );
        // SAFETY: inside the slice that is borrowed for 'a; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 5] {
            let pool = ThreadPool::new(threads).expect("threads start");
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, worker| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = ThreadPool::new(3).expect("threads start");
        for round in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(50, |task, _| assert!(task != 31, "task {task} of round {round}"));
            }));
            let message = caught.expect_err("the panic arrives");
            let message = message.downcast_ref::<String>().expect("a formatted message");
            assert_eq!(*message, format!("task 31 of round {round}"));
            let sum = AtomicUsize::new(0);
            pool.run(10, |task, _| _ = sum.fetch_add(task, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn jobs_from_several_callers_and_from_inside_tasks_do_not_mix() {
        let pool = ThreadPool::new(2).expect("threads start");
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(4, |_, _| {
                            pool.run(3, |_, _| _ = sum.fetch_add(1, Ordering::Relaxed))
                        });
                        assert_eq!(sum.into_inner(), 12);
                    }
                });
            }
        });
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = ThreadPool::new(2).expect("threads start");
        for _ in 0..5 {
            thread::sleep(std::time::Duration::from_millis(20));
            let both = std::sync::Barrier::new(2);
            // Needs both threads at the same time.
            pool.run(2, |_, _| _ = both.wait());
        }
    }
}
