//! All connections of the daemon, as one place to receive from and one to send to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::error::{Ended, Undelivered};
use super::outgoing::Outgoing;
use super::{Peer, SendReply};
use crate::limits::RECEIVED_DEPTH;

/// How often it is asked whether everything has left, at the end.
const FLUSH_POLL: Duration = Duration::from_millis(5);

/// A way in and out that nobody is connected to yet.
#[must_use]
pub fn router() -> (Router, SocketReceiver) {
    let (received, receiver) = mpsc::channel(RECEIVED_DEPTH);
    let connections = Arc::new(Connections::default());
    let router = Router {
        connections,
        received,
    };
    (router, SocketReceiver(receiver))
}

/// Where connections come together.
#[derive(Clone, Debug)]
pub struct Router {
    connections: Arc<Connections>,
    received: mpsc::Sender<(Peer, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Connections {
    /// How many there were.
    count: AtomicU64,
    open: Mutex<HashMap<Peer, Arc<Outgoing>>>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<Peer, Arc<Outgoing>>> {
        self.open.lock().expect("nobody panics while holding it")
    }
}

impl Router {
    /// The way out to all peers.
    #[must_use]
    pub fn sender(&self) -> SocketSender {
        SocketSender(Arc::clone(&self.connections))
    }

    /// Takes a connection in, until what is returned is dropped.
    pub(super) fn enter(&self, outgoing: Outgoing) -> Place {
        let peer = Peer(self.connections.count.fetch_add(1, Ordering::Relaxed));
        let outgoing = Arc::new(outgoing);
        self.connections.open().insert(peer, Arc::clone(&outgoing));
        Place {
            peer,
            outgoing,
            router: self.clone(),
        }
    }
}

/// A connection's place among the others.
#[derive(Debug)]
pub(super) struct Place {
    peer: Peer,
    pub(super) outgoing: Arc<Outgoing>,
    router: Router,
}

impl Place {
    /// Hands a message on. Waits while as many wait as may: this connection is not read from then.
    ///
    /// # Errors
    /// [`Ended::Stopping`].
    pub(super) async fn receive(&self, message: Vec<u8>) -> Result<(), Ended> {
        let received = self.router.received.send((self.peer, message)).await;
        received.map_err(|_| Ended::Stopping)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.outgoing.close();
        self.router.connections.open().remove(&self.peer);
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct SocketReceiver(mpsc::Receiver<(Peer, Vec<u8>)>);

impl SocketReceiver {
    /// The next message of any peer; `None` if nobody listens any more.
    pub async fn receive(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.0.recv().await
    }
}

/// The sending half.
#[derive(Clone, Debug)]
pub struct SocketSender(Arc<Connections>);

impl SendReply for SocketSender {
    fn send(&self, peer: Peer, payload: Vec<u8>) -> Result<(), Undelivered> {
        let outgoing = self.0.open().get(&peer).cloned();
        outgoing.ok_or(Undelivered::Gone)?.send(payload)
    }

    async fn flushed(&self) {
        while !self.0.open().values().all(|outgoing| outgoing.is_flushed()) {
            sleep(FLUSH_POLL).await;
        }
    }
}
