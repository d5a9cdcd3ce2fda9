//! One TCP connection: admission, then messages to and fro.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metal_rpc_protocol::auth::{
    AuthError, Exchange, Frame, MAX_EXCHANGE_BYTES, MAX_SEALED_BYTES, NONCE_BYTES, Seal, Side,
    Token,
};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{ADMISSION_TIMEOUT, Shared, zmtp};
use crate::limits::{LEASE_MS, MAX_GUESTS};

/// How long a refused connection keeps its place: so many guesses, and lines of the log, cannot
/// follow each other any faster.
const PENALTY: Duration = Duration::from_secs(1);

/// A guest that is silent for so long has no session any more either.
const SILENCE: Duration = Duration::from_millis(LEASE_MS as u64);

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("{MAX_GUESTS} connections are open, which is the most")]
    Full,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it was silent for too long")]
    Silent,
}

impl From<TryAcquireError> for Ended {
    fn from(_: TryAcquireError) -> Self {
        Self::Full
    }
}

/// What a connection has agreed on: how its frames open, and how ours are sealed.
struct Seals {
    theirs: Seal,
    ours: Seal,
}

/// Serves a connection to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    // A step is a small message that somebody waits for.
    let _ = stream.set_nodelay(true);
    let admitted = timeout(ADMISSION_TIMEOUT, admit(&mut stream, &shared.token)).await;
    let admitted = admitted.unwrap_or(Err(Ended::Silent)).and_then(|seals| {
        let guest = Arc::clone(&shared.guests).try_acquire_owned()?;
        Ok((seals, guest))
    });
    match admitted {
        Ok((seals, guest)) => {
            drop(place);
            info!(%address, "let in");
            let ended = carry(stream, &shared, seals).await;
            drop(guest);
            match ended {
                Err(Ended::Auth(error)) => warn!(%address, %error, "connection closed"),
                Err(error) => debug!(%address, %error, "connection ended"),
                Ok(()) => debug!(%address, "connection ended"),
            }
        }
        Err(error) => {
            warn!(%address, %error, "not let in");
            if matches!(error, Ended::Auth(_)) {
                let reason = error.to_string();
                let refused = Frame::Refused(&reason).encode();
                // It may be gone, or not read.
                let _ = timeout(PENALTY, zmtp::write_message(&mut stream, &refused)).await;
            }
            sleep(PENALTY).await;
        }
    }
}

/// Has the frontend prove that it holds the token, and proves it in turn.
async fn admit<S>(stream: &mut S, token: &Token) -> Result<Seals, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    zmtp::greet(stream, "ROUTER").await?;
    let knock = zmtp::read_message(stream, MAX_EXCHANGE_BYTES).await?;
    let Frame::Knock(theirs) = Frame::decode(&knock)? else {
        return Err(AuthError::Malformed.into());
    };
    let mut ours = [0; NONCE_BYTES];
    getrandom::fill(&mut ours).map_err(io::Error::other)?;
    let exchange = Exchange::new(token.clone(), *theirs, ours);
    zmtp::write_message(stream, &Frame::Challenge(&ours).encode()).await?;

    let response = zmtp::read_message(stream, MAX_EXCHANGE_BYTES).await?;
    let Frame::Response(proof) = Frame::decode(&response)? else {
        return Err(AuthError::Malformed.into());
    };
    exchange.check(Side::Frontend, proof)?;
    let proof = exchange.proof(Side::Daemon);
    zmtp::write_message(stream, &Frame::Accepted(&proof).encode()).await?;
    Ok(Seals {
        theirs: exchange.seal(Side::Frontend),
        ours: exchange.seal(Side::Daemon),
    })
}

/// Carries messages between the frontend and the daemon's socket until either ends.
async fn carry(stream: TcpStream, shared: &Shared, seals: Seals) -> Result<(), Ended> {
    let mut socket = UnixStream::connect(&shared.socket).await?;
    zmtp::greet(&mut socket, "DEALER").await?;
    let (from_frontend, to_frontend) = stream.into_split();
    let (from_socket, to_socket) = socket.into_split();
    tokio::select! {
        ended = carry_requests(from_frontend, to_socket, seals.theirs) => ended,
        ended = carry_replies(from_socket, to_frontend, seals.ours) => ended,
    }
}

async fn carry_requests(
    from_frontend: impl AsyncRead + Unpin,
    mut to_socket: impl AsyncWrite + Unpin,
    mut seal: Seal,
) -> Result<(), Ended> {
    let mut from_frontend = BufReader::new(from_frontend);
    loop {
        let frame = zmtp::read_message(&mut from_frontend, MAX_SEALED_BYTES);
        let frame = timeout(SILENCE, frame).await.map_err(|_| Ended::Silent)??;
        zmtp::write_message(&mut to_socket, seal.open(&frame)?).await?;
    }
}

async fn carry_replies(
    from_socket: impl AsyncRead + Unpin,
    mut to_frontend: impl AsyncWrite + Unpin,
    mut seal: Seal,
) -> Result<(), Ended> {
    let mut from_socket = BufReader::new(from_socket);
    loop {
        // Our own daemon says what it says.
        let reply = zmtp::read_message(&mut from_socket, usize::MAX).await?;
        zmtp::write_message(&mut to_frontend, &seal.close(&reply)).await?;
    }
}
