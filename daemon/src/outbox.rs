//! The way out of the daemon for one frontend.
//!
//! Whoever answers a frontend holds a clone. Nobody ever waits for a frontend: one that leaves as
//! many replies unread as may wait closes its outbox, and the dispatcher then closes the session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metal_rpc_protocol::{ErrorReply, Reply, ReplyEnvelope, encode_reply};
use tokio::sync::mpsc;
use tracing::warn;

use crate::limits::REPLY_QUEUE_DEPTH;
use crate::socket::Undelivered;

type Way = dyn Fn(Vec<u8>) -> Result<(), Undelivered> + Send + Sync;

/// Where the replies of one session go.
#[derive(Clone)]
pub struct Outbox {
    way: Arc<Way>,
    closed: Arc<AtomicBool>,
}

impl Outbox {
    /// One whose encoded replies go through `way`, which never waits.
    pub fn through(
        way: impl Fn(Vec<u8>) -> Result<(), Undelivered> + Send + Sync + 'static,
    ) -> Self {
        Self {
            way: Arc::new(way),
            closed: Arc::default(),
        }
    }

    /// One of a frontend in this process, and where its encoded replies arrive.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (queue, replies) = mpsc::channel(REPLY_QUEUE_DEPTH);
        let outbox = Self::through(move |bytes| {
            queue.try_send(bytes).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Undelivered::Full,
                mpsc::error::TrySendError::Closed(_) => Undelivered::Gone,
            })
        });
        (outbox, replies)
    }

    /// Sends a reply to the request numbered `seq`.
    ///
    /// A reply to a frontend that is gone or does not read is dropped.
    pub fn send(&self, seq: u64, reply: Reply) {
        match (self.way)(encode_reply(&ReplyEnvelope { seq, reply })) {
            Ok(()) => {}
            Err(Undelivered::Full) => {
                warn!(
                    limit = REPLY_QUEUE_DEPTH,
                    "a frontend does not read its replies"
                );
                self.close();
            }
            // The lease decides whether the frontend is gone, or comes back with its token.
            Err(error @ Undelivered::Gone) => warn!(%error, "a reply was lost"),
        }
    }

    /// Sends an error.
    pub fn send_error(&self, seq: u64, error: ErrorReply) {
        self.send(seq, Reply::Error(error));
    }

    /// Says that the session must not go on. What was sent is still delivered.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the session must not go on.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
