//! The threads that kernels share.
//!
//! A kernel runs on MLX's stream thread and splits its work over one process-wide pool. The first
//! thread that runs a kernel joins the pool as a worker, so it computes instead of sleeping until
//! others have; in the daemon that is the engine's stream, the only one. Other threads hand their
//! work in and wait.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

/// Below about this many multiply-adds (ten microseconds), waking a worker costs more than it saves.
const MIN_PARALLEL_WORK: usize = 1 << 16;

fn pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let builder = || ThreadPoolBuilder::new().thread_name(|i| format!("kernel-{i}"));
        builder()
            .use_current_thread()
            .build()
            // Only a thread of another pool cannot join; then all workers are new threads.
            .or_else(|_| builder().build())
            .expect("the system can start the kernels' threads")
    })
}

/// Number of threads that share the work (`RAYON_NUM_THREADS`, else one a core).
pub(crate) fn num_threads() -> usize {
    pool().current_num_threads()
}

/// Runs `task(0)` to `task(num_tasks - 1)`, each once, in any order, and returns when all are done.
///
/// `work` is the whole cost in multiply-adds; little work stays on this thread.
pub(crate) fn for_each(num_tasks: usize, work: usize, task: impl Fn(usize) + Send + Sync) {
    if num_tasks <= 1 || work < MIN_PARALLEL_WORK || num_threads() == 1 {
        (0..num_tasks).for_each(task);
    } else {
        pool().install(|| {
            (0..num_tasks)
                .into_par_iter()
                .with_max_len(1)
                .for_each(task);
        });
    }
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
