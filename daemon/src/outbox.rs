//! The way out of the daemon for one frontend: a bounded queue of encoded replies.
//!
//! Whoever answers a frontend holds a clone. Nobody ever waits for a frontend: a full queue closes
//! the outbox, and the dispatcher then closes the session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use metal_rpc_protocol::{ErrorReply, Reply, ReplyEnvelope, encode_reply};
use tokio::sync::mpsc;
use tracing::warn;

use crate::limits::REPLY_QUEUE_DEPTH;
use crate::socket::{Peer, SendReply};

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

/// Sends the replies of one session until it is closed and its queue is empty.
pub async fn deliver(
    mut replies: mpsc::Receiver<Vec<u8>>,
    peer: Arc<Mutex<Peer>>,
    mut socket: impl SendReply,
) {
    while let Some(bytes) = replies.recv().await {
        let peer = peer.lock().expect("nobody panics while holding it").clone();
        if let Err(error) = socket.send(&peer, bytes).await {
            // The lease decides whether the frontend is gone, or comes back with its token.
            warn!(%error, "a reply was lost");
        }
    }
}
