//! The way in and out: a ZeroMQ ROUTER socket. The only file that names `zeromq`.
//!
//! A message is one frame. A peer's identity is used to answer it and for nothing else.

use std::time::Duration;

use metal_rpc_protocol::auth::{AuthError, Exchange, Frame, NONCE_BYTES, Seal, Side, Token};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use zeromq::{
    DealerSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend,
    ZmqError, ZmqMessage,
};

use crate::endpoint::{Endpoint, UnixEndpoint};

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
        endpoint: UnixEndpoint,
        /// What ZeroMQ said.
        error: ZmqError,
    },
    /// Nobody listens there.
    #[error("no metald listens on {0}; start one with `metald start` or `metald serve`")]
    NobodyListens(Endpoint),
    /// The daemon does not let us in, or is not the one that it should be.
    #[error("metald at {endpoint}: {error}")]
    Auth {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        error: AuthError,
    },
    /// The daemon says why it does not let us in.
    #[error("metald at {endpoint} refuses: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// Its words.
        reason: String,
    },
    /// The connection is not to be trusted any more.
    #[error(transparent)]
    BrokenSeal(#[from] AuthError),
    /// There are no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The peer is gone.
    #[error("the peer is gone: {0}")]
    Send(ZmqError),
    /// The peer does not read.
    #[error("the peer did not read for {SEND_TIMEOUT:?}")]
    Stuck,
    /// The operating system refused.
    #[error("cannot reach the daemon: {0}")]
    System(#[from] std::io::Error),
    /// The socket is closed.
    #[error("the socket is closed: {0}")]
    Closed(ZmqError),
}

/// Listens on `endpoint`.
///
/// # Errors
/// [`SocketError::Bind`].
pub async fn bind(endpoint: &UnixEndpoint) -> Result<(SocketSender, SocketReceiver), SocketError> {
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
/// [`SocketError`], but for `Bind`.
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
pub struct Dealer {
    socket: DealerSocket,
    seals: Option<Seals>,
}

/// What both sides of a TCP connection say, sealed.
struct Seals {
    ours: Seal,
    theirs: Seal,
}

impl Dealer {
    /// Connects to the daemon at `endpoint`; through TCP, both sides prove that they hold the token.
    ///
    /// # Errors
    /// [`SocketError`], but for `Bind`.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, SocketError> {
        // ZeroMQ would go on trying; the operating system says at once that nobody listens.
        let listens = match endpoint {
            Endpoint::Unix(endpoint) => UnixStream::connect(endpoint.path()).await.is_ok(),
            Endpoint::Tcp(address, _) => TcpStream::connect((address.host(), address.port()))
                .await
                .is_ok(),
        };
        if !listens {
            return Err(SocketError::NobodyListens(endpoint.clone()));
        }
        let mut socket = DealerSocket::new();
        let connected = socket.connect(&endpoint.to_string()).await;
        connected.map_err(|_| SocketError::NobodyListens(endpoint.clone()))?;
        let mut dealer = Self {
            socket,
            seals: None,
        };
        if let Endpoint::Tcp(_, token) = endpoint {
            dealer.seals = Some(dealer.enter(endpoint, token).await?);
        }
        Ok(dealer)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`SocketError::Send`].
    pub async fn send(&mut self, message: Vec<u8>) -> Result<(), SocketError> {
        let message = match &mut self.seals {
            Some(seals) => seals.ours.close(&message),
            None => message,
        };
        let sent = self.socket.send(ZmqMessage::from(message)).await;
        sent.map_err(SocketError::Send)
    }

    /// The next message. Nothing is lost if this is dropped while it waits.
    ///
    /// # Errors
    /// [`SocketError::Closed`], [`SocketError::BrokenSeal`].
    pub async fn receive(&mut self) -> Result<Vec<u8>, SocketError> {
        let message = self.socket.recv().await.map_err(SocketError::Closed)?;
        let frame = message.into_vec().concat();
        match &mut self.seals {
            Some(seals) => Ok(seals.theirs.open(&frame)?.to_vec()),
            None => Ok(frame),
        }
    }

    /// Proves that we hold the token, and has the daemon prove it.
    async fn enter(&mut self, endpoint: &Endpoint, token: &Token) -> Result<Seals, SocketError> {
        let auth = |error| SocketError::Auth {
            endpoint: endpoint.clone(),
            error,
        };
        let mut ours = [0; NONCE_BYTES];
        getrandom::fill(&mut ours).map_err(SocketError::Random)?;
        self.send(Frame::Knock(&ours).encode()).await?;
        let challenge = self.receive().await?;
        let exchange = match Frame::decode(&challenge).map_err(auth)? {
            Frame::Challenge(theirs) => Exchange::new(token.clone(), ours, *theirs),
            other => return Err(refusal(endpoint, other)),
        };
        let proof = exchange.proof(Side::Frontend);
        self.send(Frame::Response(&proof).encode()).await?;
        let accepted = self.receive().await?;
        match Frame::decode(&accepted).map_err(auth)? {
            Frame::Accepted(proof) => exchange.check(Side::Daemon, proof).map_err(auth)?,
            other => return Err(refusal(endpoint, other)),
        }
        Ok(Seals {
            ours: exchange.seal(Side::Frontend),
            theirs: exchange.seal(Side::Daemon),
        })
    }
}

fn refusal(endpoint: &Endpoint, frame: Frame<'_>) -> SocketError {
    let endpoint = endpoint.clone();
    match frame {
        // Anybody may have said it: it is shown with its control characters escaped.
        Frame::Refused(reason) => SocketError::Refused {
            endpoint,
            reason: reason.escape_debug().to_string(),
        },
        _ => SocketError::Auth {
            endpoint,
            error: AuthError::Malformed,
        },
    }
}

/// The process that listens on `endpoint`, by the word of the operating system.
///
/// # Errors
/// [`SocketError::NobodyListens`], [`SocketError::System`].
pub fn pid_of_daemon(endpoint: &UnixEndpoint) -> Result<u32, SocketError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let connected = UnixStream::connect(endpoint.path()).await;
        let stream =
            connected.map_err(|_| SocketError::NobodyListens(Endpoint::Unix(endpoint.clone())))?;
        let pid = stream.peer_cred()?.pid();
        pid.map(i32::cast_unsigned)
            .ok_or_else(|| SocketError::NobodyListens(Endpoint::Unix(endpoint.clone())))
    })
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
