//! How far a load has come: when to say so, to the log and to who waits.

use std::path::Path;
use std::time::{Duration, Instant};

use tracing::info;

/// How often the frontend that waits is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// How often the log is.
const LOGGED_EVERY: Duration = Duration::from_secs(5);

/// The progress of one load.
pub(super) struct Progress<'a> {
    path: &'a Path,
    started: Instant,
    told: Instant,
    logged: Instant,
    total_bytes: u64,
    is_whole: bool,
}

impl<'a> Progress<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        let now = Instant::now();
        Self {
            path,
            started: now,
            told: now,
            logged: now,
            total_bytes: 0,
            is_whole: false,
        }
    }

    /// Whether the frontend is to be told of this: now and then, and once of the end. Logs it if the
    /// log is to.
    pub(super) fn is_news(&mut self, loaded_bytes: u64, total_bytes: u64) -> bool {
        let now = Instant::now();
        self.total_bytes = total_bytes;
        if now - self.logged >= LOGGED_EVERY {
            self.logged = now;
            info!(
                path = %self.path.display(),
                loaded_bytes,
                total_bytes,
                seconds = self.seconds(),
                "loading",
            );
        }
        let was_whole = std::mem::replace(&mut self.is_whole, loaded_bytes == total_bytes);
        let is_news = match self.is_whole {
            true => !was_whole,
            false => now - self.told >= TOLD_EVERY,
        };
        if is_news {
            self.told = now;
        }
        is_news
    }

    /// Logs that all is there.
    pub(super) fn end(&self, weights_bytes: u64) {
        info!(
            path = %self.path.display(),
            read_bytes = self.total_bytes,
            weights_bytes,
            seconds = self.seconds(),
            "loaded",
        );
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_load_is_told_of_once_and_a_slow_one_now_and_then() {
        let mut progress = Progress::new(Path::new("/m"));
        assert!(!progress.is_news(10, 100));
        progress.told -= TOLD_EVERY;
        assert!(progress.is_news(20, 100));
        assert!(!progress.is_news(30, 100));
        assert!(progress.is_news(100, 100));
        assert!(!progress.is_news(100, 100));
    }
}
