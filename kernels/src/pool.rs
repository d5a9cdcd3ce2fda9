//! The threads that kernels share.
//!
//! A kernel runs on MLX's stream thread and splits its work over one process-wide pool. That thread
//! computes too; the others wait for its next kernel awake, because a decode step is hundreds of
//! kernels of some ten microseconds, and waking a thread takes as long. They sleep when nothing has
//! come for [`AWAKE`].
//!
//! # Invariants
//! - One job at a time: whoever finds the pool at work, a task of a job included, does its own tasks
//!   itself. So there are never more busy threads than the pool has, and nobody waits in a circle.
//! - A job's closure lives until its last task is done: `run` returns after that, and a task can only
//!   be taken while there is one.
//!
//! # Why not rayon
//! Its workers sleep after some 20 microseconds, which is less than what lies between two large
//! kernels: the second thread did an eighth of the work of a decode step. Nothing of it can be set.

use std::{
    any::Any,
    hint::spin_loop,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Below about this many multiply-adds (two microseconds), sharing costs more than it saves.
const MIN_PARALLEL_WORK: usize = 1 << 15;

/// How long a thread without work stays awake: longer than what lies between two kernels of a step,
/// most of the pieces on one thread included, and short enough that others have the core between steps.
const AWAKE: Duration = Duration::from_micros(50);

/// Looks for work between two times that a thread offers its core to others.
const LOOKS_PER_YIELD: u32 = 64;

/// Tasks of one job, at most.
const MAX_TASKS: usize = u32::MAX as usize / 2;

/// Number of threads that share the work (`RAYON_NUM_THREADS`, else one a core).
pub(crate) fn num_threads() -> usize {
    static NUM_THREADS: OnceLock<usize> = OnceLock::new();
    *NUM_THREADS.get_or_init(|| {
        let wished = std::env::var("RAYON_NUM_THREADS").ok();
        let wished = wished.and_then(|number| number.parse().ok());
        wished
            .filter(|&number| number > 0)
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    })
}

/// Runs `task(0)` to `task(num_tasks - 1)`, each once, in any order, and returns when all are done.
///
/// `work` is the whole cost in multiply-adds; little work stays on this thread.
pub(crate) fn for_each(num_tasks: usize, work: usize, task: impl Fn(usize) + Send + Sync) {
    static POOL: OnceLock<&Pool> = OnceLock::new();
    let alone = num_tasks <= 1 || work < MIN_PARALLEL_WORK || num_threads() == 1;
    if alone || num_tasks > MAX_TASKS || !POOL.get_or_init(Pool::start).run(num_tasks, &task) {
        (0..num_tasks).for_each(task);
    }
}

/// A closure without its type.
struct Job {
    call: unsafe fn(*const (), usize),
    task: *const (),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    num_done: AtomicUsize,
}

impl Job {
    fn new<F: Fn(usize) + Sync>(task: &F) -> Self {
        /// # Safety
        /// `task` points at an `F`.
        unsafe fn call<F: Fn(usize)>(task: *const (), index: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*task.cast::<F>())(index) }
        }
        Self {
            call: call::<F>,
            task: std::ptr::from_ref(task).cast(),
            panic: Mutex::new(None),
            num_done: AtomicUsize::new(0),
        }
    }

    /// Does one task. The job may be gone afterwards.
    fn run(&self, index: usize) {
        // SAFETY: `task` is what `call` was made for; it lives until this task is done.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            (self.call)(self.task, index)
        }));
        if let Err(panic) = result {
            *locked(&self.panic) = Some(panic);
        }
        self.num_done.fetch_add(1, Ordering::Release);
    }
}

struct Pool {
    /// Held by whoever has handed in a job.
    at_work: Mutex<()>,
    job: AtomicPtr<Job>,
    /// Tasks of the job in the upper half, those taken in the lower. More may be taken than there
    /// are; whoever takes such a one does nothing.
    tasks: AtomicU64,
    /// Threads that sleep. Changed under `bed` only.
    num_asleep: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

impl Pool {
    /// Starts all threads but the one that hands in jobs.
    fn start() -> &'static Self {
        let pool: &'static Self = Box::leak(Box::new(Self {
            at_work: Mutex::new(()),
            job: AtomicPtr::new(std::ptr::null_mut()),
            tasks: AtomicU64::new(0),
            num_asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }));
        for index in 1..num_threads() {
            thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(|| pool.work())
                .expect("the system can start the kernels' threads");
        }
        pool
    }

    /// Runs a job, unless one is running. The first panic of a task goes on in the caller.
    fn run<F: Fn(usize) + Sync>(&self, num_tasks: usize, task: &F) -> bool {
        let at_work = match self.at_work.try_lock() {
            Ok(at_work) => at_work,
            Err(TryLockError::Poisoned(at_work)) => at_work.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let job = Job::new(task);
        let address = std::ptr::from_ref(&job).cast_mut();
        self.job.store(address, Ordering::Relaxed);
        self.tasks.store((num_tasks as u64) << 32, Ordering::SeqCst);
        if self.num_asleep.load(Ordering::SeqCst) > 0 {
            let _bed = locked(&self.bed);
            self.bell.notify_all();
        }
        while self.take() {}
        let mut looks = 0;
        while job.num_done.load(Ordering::Acquire) < num_tasks {
            pause(&mut looks);
        }
        drop(at_work);
        if let Some(panic) = locked(&job.panic).take() {
            resume_unwind(panic);
        }
        true
    }

    fn has_task(&self, order: Ordering) -> bool {
        let tasks = self.tasks.load(order);
        (tasks & u64::from(u32::MAX)) < tasks >> 32
    }

    /// Does one task, if there is one.
    fn take(&self) -> bool {
        if !self.has_task(Ordering::Relaxed) {
            return false;
        }
        let tasks = self.tasks.fetch_add(1, Ordering::Acquire);
        let index = tasks & u64::from(u32::MAX);
        if index >= tasks >> 32 {
            return false;
        }
        // SAFETY: the task is of the job that was stored before `tasks`, and that job waits for it.
        let job = unsafe { &*self.job.load(Ordering::Relaxed) };
        job.run(usize::try_from(index).expect("as many as a usize counts"));
        true
    }

    /// The life of a thread.
    fn work(&self) -> ! {
        let (mut idle_since, mut looks) = (Instant::now(), 0);
        loop {
            if self.take() {
                while self.take() {}
                (idle_since, looks) = (Instant::now(), 0);
            }
            pause(&mut looks);
            if looks == 0 && idle_since.elapsed() > AWAKE {
                self.sleep();
                (idle_since, looks) = (Instant::now(), 0);
            }
        }
    }

    fn sleep(&self) {
        let mut bed = locked(&self.bed);
        self.num_asleep.fetch_add(1, Ordering::SeqCst);
        while !self.has_task(Ordering::SeqCst) {
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.num_asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets a moment pass, and now and then somebody else.
fn pause(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS_PER_YIELD {
        spin_loop();
    } else {
        *looks = 0;
        thread::yield_now();
    }
}

/// Nothing that these mutexes guard can be left half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that several tasks write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: tasks only reach the memory through `part`, whose caller promises that parts are disjoint.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self {
            ptr: slice.as_mut_ptr(),
            len: slice.len(),
        }
    }

    /// Address of element `start`, for writing a column of a matrix.
    ///
    /// # Safety
    /// What is written through it is within the slice given to `new`, still borrowed, and written
    /// by no other task.
    pub(crate) unsafe fn column(&self, start: usize) -> *mut T {
        assert!(start <= self.len);
        // SAFETY: within the slice, or one past its end.
        unsafe { self.ptr.add(start) }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// The slice given to `new` is still borrowed, and no two live parts overlap.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps parts disjoint")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len);
        assert!(len <= self.len - start);
        // SAFETY: in bounds; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough that it is shared.
    const WORK: usize = MIN_PARALLEL_WORK;

    #[test]
    fn every_task_is_done_once_whoever_else_hands_in_work() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for num_tasks in (0..300).chain([1000]) {
                        let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                        for_each(num_tasks, WORK, |index| {
                            counts[index].fetch_add(1, Ordering::Relaxed);
                        });
                        let once = |count: AtomicUsize| count.into_inner() == 1;
                        assert!(counts.into_iter().all(once), "{num_tasks} tasks");
                    }
                });
            }
        });
    }

    #[test]
    fn a_task_may_share_work_itself() {
        let count = AtomicUsize::new(0);
        for_each(8, WORK, |_| {
            for_each(8, WORK, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn sleepers_wake_up() {
        for _ in 0..3 {
            thread::sleep(4 * AWAKE);
            let count = AtomicUsize::new(0);
            for_each(100, WORK, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for _ in 0..20 {
            let result = catch_unwind(|| {
                for_each(50, WORK, |index| assert!(index != 7, "task seven"));
            });
            let panic = result.expect_err("a task panics");
            assert_eq!(panic.downcast_ref(), Some(&"task seven"));
            for_each(50, WORK, |_| {});
        }
    }
}
