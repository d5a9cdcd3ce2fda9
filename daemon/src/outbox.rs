//! The way out of the daemon for one frontend: a bounded queue of encoded replies.
//!
//! Whoever answers a frontend holds a clone. Nobody ever waits for a frontend: a full queue closes
//! the outbox, and the dispatcher then closes the session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metal_rpc_protocol::{ErrorReply, Reply, ReplyEnvelope, encode_reply};
use tokio::sync::mpsc;
use tracing::warn;

use crate::limits::REPLY_QUEUE_DEPTH;

/// Where the replies of one session go.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Vec<u8>>,
    closed: Arc<AtomicBool>,
}

impl Outbox {
    /// A queue, and the end that is emptied towards the frontend.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (queue, replies) = mpsc::channel(REPLY_QUEUE_DEPTH);
        (
            Self {
                queue,
                closed: Arc::default(),
            },
            replies,
        )
    }

    /// Queues a reply to the request numbered `seq`.
    ///
    /// A reply to a frontend that is gone or does not read is dropped.
    pub fn send(&self, seq: u64, reply: Reply) {
        let bytes = encode_reply(&ReplyEnvelope { seq, reply });
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(bytes) {
            warn!(
                limit = REPLY_QUEUE_DEPTH,
                "a frontend does not read its replies"
            );
            self.close();
        }
    }

    /// Queues an error.
    pub fn send_error(&self, seq: u64, error: ErrorReply) {
        self.send(seq, Reply::Error(error));
    }

    /// Says that the session must not go on. What is queued is still delivered.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the session must not go on.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}
