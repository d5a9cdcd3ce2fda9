//! What a thread has cost, without what it has waited for.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Processor time of the calling thread since it began.
pub(super) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("every supported system has this clock").into()
}
