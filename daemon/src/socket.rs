//! The way in and out: a ZeroMQ ROUTER socket. The only file that names `zeromq`.
//!
//! A message is one frame. A peer's identity is used to answer it and for nothing else.

use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use zeromq::{
    DealerSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend,
    ZmqError, ZmqMessage,
};

use crate::endpoint::Endpoint;

/// How long a reply may wait for a peer to read. Nobody but that peer's own writer waits.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The ZeroMQ identity of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer(Vec<u8>);

impl From<Vec<u8>> for Peer {
    fn from(identity: Vec<u8>) -> Self {
        Self(identity)
    }
}

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It could not be opened.
    #[error("cannot listen on {endpoint}: {error}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// What ZeroMQ said.
        error: ZmqError,
    },
    /// Nobody listens there.
    #[error("no metald listens on {0}; start one with `metald start` or `metald serve`")]
    NobodyListens(Endpoint),
    /// The peer is gone.
    #[error("the peer is gone: {0}")]
    Send(ZmqError),
    /// The peer does not read.
    #[error("the peer did not read for {SEND_TIMEOUT:?}")]
    Stuck,
    /// The socket is closed.
    #[error("the socket is closed: {0}")]
    Closed(ZmqError),
}

/// Listens on `endpoint`.
///
/// # Errors
/// [`SocketError::Bind`].
pub async fn bind(endpoint: &Endpoint) -> Result<(SocketSender, SocketReceiver), SocketError> {
    let mut socket = RouterSocket::new();
    let bound = socket.bind(&endpoint.to_string()).await;
    bound.map_err(|error| SocketError::Bind {
        endpoint: endpoint.clone(),
        error,
    })?;
    let (sender, receiver) = socket.split();
    Ok((SocketSender(sender), SocketReceiver(receiver)))
}

/// Sends one message to the daemon at `endpoint` and returns its answer.
///
/// # Errors
/// [`SocketError::NobodyListens`], [`SocketError::Send`], [`SocketError::Stuck`], [`SocketError::Closed`].
pub async fn ask(endpoint: &Endpoint, message: Vec<u8>) -> Result<Vec<u8>, SocketError> {
    let exchange = async {
        let mut dealer = Dealer::connect(endpoint).await?;
        dealer.send(message).await?;
        dealer.receive().await
    };
    timeout(SEND_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(SocketError::Stuck))
}

/// A frontend's end of a connection.
pub struct Dealer(DealerSocket);

impl Dealer {
    /// Connects to the daemon at `endpoint`.
    ///
    /// # Errors
    /// [`SocketError::NobodyListens`].
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, SocketError> {
        // ZeroMQ would go on trying; the operating system says at once that nobody listens.
        if UnixStream::connect(endpoint.path()).await.is_err() {
            return Err(SocketError::NobodyListens(endpoint.clone()));
        }
        let mut socket = DealerSocket::new();
        let connected = socket.connect(&endpoint.to_string()).await;
        connected.map_err(|_| SocketError::NobodyListens(endpoint.clone()))?;
        Ok(Self(socket))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`SocketError::Send`].
    pub async fn send(&mut self, message: Vec<u8>) -> Result<(), SocketError> {
        let sent = self.0.send(ZmqMessage::from(message)).await;
        sent.map_err(SocketError::Send)
    }

    /// The next message. Nothing is lost if this is dropped while it waits.
    ///
    /// # Errors
    /// [`SocketError::Closed`].
    pub async fn receive(&mut self) -> Result<Vec<u8>, SocketError> {
        let message = self.0.recv().await.map_err(SocketError::Closed)?;
        Ok(message.into_vec().concat())
    }
}

/// The receiving half.
pub struct SocketReceiver(RouterRecvHalf);

impl SocketReceiver {
    /// The next message of any peer. Messages of more than one frame are dropped: none of ours has
    /// more.
    ///
    /// # Errors
    /// [`SocketError::Closed`].
    pub async fn receive(&mut self) -> Result<(Peer, Vec<u8>), SocketError> {
        loop {
            let message = self.0.recv().await.map_err(SocketError::Closed)?;
            if let [peer, payload] = message.into_vec().as_slice() {
                return Ok((Peer(peer.to_vec()), payload.to_vec()));
            }
        }
    }
}

/// Where replies leave. Clones send independently of each other.
pub trait SendReply: Clone + Send + 'static {
    /// Sends one message.
    ///
    /// # Errors
    /// [`SocketError::Send`], [`SocketError::Stuck`].
    fn send(
        &mut self,
        peer: &Peer,
        payload: Vec<u8>,
    ) -> impl Future<Output = Result<(), SocketError>> + Send;
}

/// The sending half.
#[derive(Clone)]
pub struct SocketSender(RouterSendHalf);

impl SendReply for SocketSender {
    async fn send(&mut self, peer: &Peer, payload: Vec<u8>) -> Result<(), SocketError> {
        let mut message = ZmqMessage::from(payload);
        message.push_front(peer.0.clone().into());
        match timeout(SEND_TIMEOUT, self.0.send(message)).await {
            Ok(sent) => sent.map_err(SocketError::Send),
            Err(_) => Err(SocketError::Stuck),
        }
    }
}

impl std::fmt::Debug for Dealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dealer")
    }
}

impl std::fmt::Debug for SocketReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SocketReceiver")
    }
}

impl std::fmt::Debug for SocketSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SocketSender")
    }
}
