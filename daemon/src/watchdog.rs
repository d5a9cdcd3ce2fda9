//! Notices that a thread without which the daemon cannot serve does nothing any more.
//!
//! Each such thread beats a [`Pulse`]: when it has done a piece of work, and every half second while
//! there is none. A pulse that stands still for the bound of a step means that the step does not end:
//! the engine hangs in a graph, or the reply thread waits for a device that has stopped, or nobody
//! reads the socket. A daemon that stays up so is worse than none, because frontends wait for it,
//! while they recover from one that is gone; so it ends, and says why.
//!
//! Time is counted in looks of the watchdog's own thread. A process that was stopped, or a
//! machine that slept, has not been looked at and is not taken for stuck.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How often the pulses are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Shows that a thread is not stuck.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A piece of work is done, or there is none.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A thread is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wedge {
    /// Which.
    pub thread: &'static str,
    /// How long it has done nothing, in seconds.
    pub bound_s: u64,
}

impl fmt::Display for Wedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thread, bound_s } = self;
        write!(
            f,
            "a step has not ended for {bound_s} s (METAL_RPC_STEP_TIMEOUT_S): the {thread} thread \
             is stuck, so the daemon ends"
        )
    }
}

/// Watches until a pulse stands still for `bound`, then calls `stuck`, once.
pub fn start(
    pulses: Vec<(&'static str, Pulse)>,
    bound: Duration,
    stuck: impl FnOnce(Wedge) + Send + 'static,
) {
    let mut watch = Watch::new(pulses, bound);
    let body = move || {
        loop {
            thread::sleep(LOOK);
            if let Some(wedge) = watch.look() {
                return stuck(wedge);
            }
        }
    };
    thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(body)
        .expect("the system has a thread left");
}

/// The pulses, and how long each has stood still.
#[derive(Debug)]
struct Watch {
    watched: Vec<Watched>,
    bound: Duration,
}

#[derive(Debug)]
struct Watched {
    thread: &'static str,
    pulse: Pulse,
    count: u64,
    still: Duration,
}

impl Watch {
    fn new(pulses: Vec<(&'static str, Pulse)>, bound: Duration) -> Self {
        let watched = |(thread, pulse): (&'static str, Pulse)| Watched {
            thread,
            count: pulse.count(),
            pulse,
            still: Duration::ZERO,
        };
        Self {
            watched: pulses.into_iter().map(watched).collect(),
            bound,
        }
    }

    /// One look at each pulse, [`LOOK`] after the last.
    fn look(&mut self) -> Option<Wedge> {
        for watched in &mut self.watched {
            let count = watched.pulse.count();
            watched.still = if count == watched.count {
                watched.still + LOOK
            } else {
                Duration::ZERO
            };
            watched.count = count;
        }
        // The first of them: one that is stuck soon holds up those that wait for it.
        let stuck = self.watched.iter().max_by_key(|watched| watched.still)?;
        (stuck.still >= self.bound).then_some(Wedge {
            thread: stuck.thread,
            bound_s: self.bound.as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_that_stands_still_is_noticed_at_its_bound_and_others_are_not() {
        let (engine, reply) = (Pulse::default(), Pulse::default());
        let pulses = vec![("engine", engine.clone()), ("reply", reply.clone())];
        let mut watch = Watch::new(pulses, 4 * LOOK);
        for _ in 0..100 {
            engine.beat();
            reply.beat();
            assert_eq!(watch.look(), None);
        }
        for _ in 0..3 {
            engine.beat();
            assert_eq!(watch.look(), None);
        }
        let wedge = watch.look().expect("the bound is reached");
        assert_eq!(wedge.thread, "reply");
    }

    #[test]
    fn a_late_beat_is_early_enough() {
        let pulse = Pulse::default();
        let mut watch = Watch::new(vec![("engine", pulse.clone())], 4 * LOOK);
        for _ in 0..10 {
            for _ in 0..3 {
                assert_eq!(watch.look(), None);
            }
            pulse.beat();
        }
    }
}
