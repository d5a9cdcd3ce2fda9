//! Where connections come from, and how many there may be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metal_rpc_protocol::auth::Token;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use super::connection;
use super::error::SocketError;
use super::router::Router;
use crate::endpoint::{TcpAddress, UnixEndpoint};
use crate::limits::{MAX_GUESTS, MAX_STRANGERS};

/// Lets connections in, which then belong to a [`Router`].
#[derive(Debug)]
pub struct Listener {
    bound: Bound,
    door: Arc<Door>,
}

#[derive(Debug)]
enum Bound {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What all connections of a listener use.
#[derive(Debug)]
pub(super) struct Door {
    /// What opens it, if the operating system does not say who may enter.
    pub(super) token: Option<Token>,
    pub(super) router: Router,
    /// Places of connections that have not greeted or not shown the token.
    strangers: Arc<Semaphore>,
    /// Places of those that have.
    pub(super) guests: Arc<Semaphore>,
}

impl Listener {
    /// Listens on a Unix socket: whoever may open it is let in.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub fn unix(endpoint: &UnixEndpoint, router: &Router) -> Result<Self, SocketError> {
        let bound = UnixListener::bind(endpoint.path());
        let bound = bound.map_err(|error| SocketError::Bind {
            endpoint: endpoint.clone(),
            error,
        })?;
        Ok(Self::new(Bound::Unix(bound), None, router))
    }

    /// Listens on a TCP port: whoever holds the token is let in.
    ///
    /// # Errors
    /// [`SocketError::BindTcp`].
    pub async fn tcp(
        address: &TcpAddress,
        token: Token,
        router: &Router,
    ) -> Result<Self, SocketError> {
        let bound = TcpListener::bind((address.host(), address.port())).await;
        let bound = bound.map_err(|error| SocketError::BindTcp {
            address: address.clone(),
            error,
        })?;
        Ok(Self::new(Bound::Tcp(bound), Some(token), router))
    }

    fn new(bound: Bound, token: Option<Token>, router: &Router) -> Self {
        let door = Door {
            token,
            router: router.clone(),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            guests: Arc::new(Semaphore::new(MAX_GUESTS)),
        };
        Self {
            bound,
            door: Arc::new(door),
        }
    }

    /// Lets connections in. They outlive this.
    pub async fn run(self) {
        loop {
            // The next connection waits in the system's queue until there is a place.
            let strangers = Arc::clone(&self.door.strangers);
            let place = strangers.acquire_owned().await;
            let place = place.expect("nobody closes it");
            if let Err(error) = self.accept(place).await {
                // Too many open files, most likely: others have to close theirs first.
                warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn accept(&self, place: OwnedSemaphorePermit) -> io::Result<()> {
        let door = Arc::clone(&self.door);
        match &self.bound {
            Bound::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let origin = process_of(&stream);
                tokio::spawn(connection::serve(door, stream, origin, place));
            }
            Bound::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A step is a small message that somebody waits for.
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection::serve(door, stream, address.to_string(), place));
            }
        }
        Ok(())
    }
}

/// Who is at the other end of a Unix socket.
fn process_of(stream: &UnixStream) -> String {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"))
}
