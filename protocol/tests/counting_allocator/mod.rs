//! Counts what a closure has allocated at most, on its own thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count(added: usize, removed: usize) {
    // A thread that is being torn down has no counters any more.
    let _ = NOW.try_with(|now| {
        now.set(now.get().wrapping_add(added).wrapping_sub(removed));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that `work` held at most. It must not free what was allocated before it.
pub(crate) fn peak_bytes_during(work: impl FnOnce()) -> usize {
    NOW.set(0);
    PEAK.set(0);
    work();
    PEAK.get()
}
