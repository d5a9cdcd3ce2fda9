//! The other end: what `metald status`, `metald drain` and `metald bench` speak to a daemon with.

use metal_rpc_protocol::auth::MAX_SEALED_BYTES;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::SEND_TIMEOUT;
use super::admission::{self, Seals};
use super::error::SocketError;
use super::reader::{FrameReader, Received};
use super::zmtp::{self, Frame, SocketType};
use crate::endpoint::{Endpoint, UnixEndpoint};

/// A frontend's end of a connection.
pub struct Dealer {
    stream: Box<dyn Duplex>,
    reader: FrameReader,
    seals: Option<Seals>,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

impl Dealer {
    /// Connects to the daemon at `endpoint`; through TCP, both sides prove that they hold the token.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, SocketError> {
        let nobody = |_| SocketError::NobodyListens(endpoint.clone());
        let mut stream: Box<dyn Duplex> = match endpoint {
            Endpoint::Unix(endpoint) => {
                let connected = UnixStream::connect(endpoint.path()).await;
                Box::new(connected.map_err(nobody)?)
            }
            Endpoint::Tcp(address, _) => {
                let connected = TcpStream::connect((address.host(), address.port())).await;
                let connected = connected.map_err(nobody)?;
                connected.set_nodelay(true)?;
                Box::new(connected)
            }
        };
        let mut reader = FrameReader::new();
        zmtp::greet(&mut stream, &mut reader, SocketType::Dealer).await?;
        let seals = match endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp(_, token) => {
                let entered = admission::enter(&mut stream, &mut reader, endpoint, token);
                Some(entered.await?)
            }
        };
        Ok(Self {
            stream,
            reader,
            seals,
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`SocketError::Lost`].
    pub async fn send(&mut self, message: Vec<u8>) -> Result<(), SocketError> {
        let message = match &mut self.seals {
            Some(seals) => seals.ours.close(&message),
            None => message,
        };
        Ok(Frame::message(message).write(&mut self.stream).await?)
    }

    /// The next message. Nothing is lost if this is dropped while it waits.
    ///
    /// # Errors
    /// [`SocketError::Lost`], [`SocketError::BrokenSeal`].
    pub async fn receive(&mut self) -> Result<Vec<u8>, SocketError> {
        loop {
            let next = self.reader.next(&mut self.stream, MAX_SEALED_BYTES);
            // metald sends no `PING`.
            let Received::Message(message) = next.await? else {
                continue;
            };
            return match &mut self.seals {
                Some(seals) => Ok(seals.theirs.open(&message)?.to_vec()),
                None => Ok(message),
            };
        }
    }
}

impl std::fmt::Debug for Dealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dealer")
    }
}

/// Sends one message to the daemon at `endpoint` and returns its answer.
///
/// # Errors
/// [`SocketError`].
pub async fn ask(endpoint: &Endpoint, message: Vec<u8>) -> Result<Vec<u8>, SocketError> {
    let exchange = async {
        let mut dealer = Dealer::connect(endpoint).await?;
        dealer.send(message).await?;
        dealer.receive().await
    };
    timeout(SEND_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(SocketError::NoAnswer))
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
