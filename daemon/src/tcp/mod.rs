//! The gate of a TCP endpoint: lets in who holds the token, and nothing else.
//!
//! The daemon's socket stays a private Unix socket. For each TCP connection the gate greets the
//! frontend, has it prove that it holds the token, opens a connection of its own to the socket and
//! carries messages between the two; those on the network are sealed. So whatever a stranger sends
//! is read by the two small files here and never reaches the ZeroMQ library, which reads frames of
//! any announced length.
//!
//! # Invariants
//! - Before it has shown its proof, a connection costs the memory of a few hundred bytes, one of
//!   [`MAX_STRANGERS`] places and [`ADMISSION_TIMEOUT`] at most.
//! - One connection in front of the gate is one connection behind it: they end together.

mod connection;
mod zmtp;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metal_rpc_protocol::auth::Token;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::endpoint::{TcpAddress, UnixEndpoint};
use crate::limits::{MAX_GUESTS, MAX_STRANGERS};

/// How long a connection may take to prove that it holds the token.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// A listening gate.
#[derive(Debug)]
pub struct Gate {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What all connections of a gate use.
#[derive(Debug)]
struct Shared {
    token: Token,
    /// The daemon's own socket.
    socket: PathBuf,
    /// Places of connections that have not proved anything.
    strangers: Arc<Semaphore>,
    /// Places of those that have.
    guests: Arc<Semaphore>,
}

impl Gate {
    /// Listens on `address`, in front of `socket`.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn bind(
        address: &TcpAddress,
        token: Token,
        socket: &UnixEndpoint,
    ) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind((address.host(), address.port())).await?,
            shared: Arc::new(Shared {
                token,
                socket: socket.path().to_owned(),
                strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
                guests: Arc::new(Semaphore::new(MAX_GUESTS)),
            }),
        })
    }

    /// Lets connections in. Its connections end with the runtime.
    pub async fn run(self) {
        loop {
            // The next connection waits in the system's queue until there is a place.
            let strangers = Arc::clone(&self.shared.strangers);
            let place = strangers.acquire_owned().await;
            let place = place.expect("nobody closes it");
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(connection::serve(shared, stream, address, place));
                }
                Err(error) => {
                    // Too many open files, most likely: others have to close theirs first.
                    warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}
