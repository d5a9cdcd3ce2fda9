//! One connection: greeting, admission, then messages until it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use metal_rpc_protocol::auth::{Frame, MAX_SEALED_BYTES, SEAL_BYTES, Seal, Token};
use metal_rpc_protocol::limits::MAX_MESSAGE_BYTES;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::admission::{self, Seals};
use super::error::Ended;
use super::listener::Door;
use super::outgoing::{Outgoing, Sink};
use super::reader::{FrameReader, Received};
use super::router::Place;
use super::zmtp::{self, SocketType};
use crate::limits::LEASE_MS;

/// How long a connection may take to greet, and to prove that it holds the token.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a refused connection keeps its place: so many guesses, and lines of the log, cannot
/// follow each other any faster.
const PENALTY: Duration = Duration::from_secs(1);

/// A frontend that the network has kept silent for so long has no session any more either.
const SILENCE: Duration = Duration::from_millis(LEASE_MS as u64);

/// A connected stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What is read from.
    type Source: AsyncRead + Unpin + Send + 'static;

    fn into_halves(self) -> (Self::Source, Sink);
}

impl Stream for UnixStream {
    type Source = tokio::net::unix::OwnedReadHalf;

    fn into_halves(self) -> (Self::Source, Sink) {
        let (source, sink) = self.into_split();
        (source, Sink::Unix(sink))
    }
}

impl Stream for TcpStream {
    type Source = tokio::net::tcp::OwnedReadHalf;

    fn into_halves(self) -> (Self::Source, Sink) {
        let (source, sink) = self.into_split();
        (source, Sink::Tcp(sink))
    }
}

/// Serves a connection to its end. `origin` is for the log.
pub(super) async fn serve(
    door: Arc<Door>,
    mut stream: impl Stream,
    origin: String,
    place: OwnedSemaphorePermit,
) {
    let mut reader = FrameReader::new();
    let entered = enter(&mut stream, &mut reader, door.token.as_ref());
    let entered = timeout(ADMISSION_TIMEOUT, entered).await;
    let entered = entered.unwrap_or(Err(Ended::Silent)).and_then(|seals| {
        let guest = Arc::clone(&door.guests).try_acquire_owned();
        Ok((seals, guest.map_err(|_| Ended::Full)?))
    });
    let (seals, guest) = match entered {
        Ok(entered) => entered,
        Err(error) => return refuse(stream, &origin, &error).await,
    };
    drop(place);
    debug!(origin, "let in");
    let (source, sink) = stream.into_halves();
    let (ours, theirs) = seals.map(|Seals { ours, theirs }| (ours, theirs)).unzip();
    let place = door.router.enter(Outgoing::new(sink, ours));
    let Err(ended) = tokio::select! {
        ended = receive(source, reader, theirs, &place) => ended,
        ended = place.outgoing.run() => ended,
    };
    drop(guest);
    if ended.is_ordinary() {
        debug!(origin, error = %ended, "connection ended");
    } else {
        warn!(origin, error = %ended, "connection closed");
    }
}

/// Greets, and through the network has the other side show the token.
async fn enter(
    stream: &mut impl Stream,
    reader: &mut FrameReader,
    token: Option<&Token>,
) -> Result<Option<Seals>, Ended> {
    zmtp::greet(stream, reader, SocketType::Router).await?;
    match token {
        Some(token) => admission::admit(stream, reader, token).await.map(Some),
        None => Ok(None),
    }
}

async fn refuse(mut stream: impl Stream, origin: &str, error: &Ended) {
    if error.is_ordinary() {
        return debug!(origin, %error, "left");
    }
    warn!(origin, %error, "not let in");
    if let Ended::Auth(error) = error {
        let reason = error.to_string();
        // It may be gone, or not read.
        let _ = timeout(
            PENALTY,
            admission::say(&mut stream, Frame::Refused(&reason)),
        )
        .await;
    }
    drop(stream);
    sleep(PENALTY).await;
}

/// Receives what the other side sends: into the dispatcher's queue, or no further.
async fn receive(
    mut source: impl AsyncRead + Unpin,
    mut reader: FrameReader,
    mut seal: Option<Seal>,
    place: &Place,
) -> Result<Infallible, Ended> {
    // A process of this machine is there or is not, but a network may lose its other end.
    let (max_bytes, patience) = match &seal {
        Some(_) => (MAX_SEALED_BYTES, SILENCE),
        None => (MAX_MESSAGE_BYTES, Duration::MAX),
    };
    loop {
        let next = timeout(patience, reader.next(&mut source, max_bytes)).await;
        let mut message = match next.map_err(|_| Ended::Silent)?? {
            Received::Message(message) => message,
            Received::Ping(context) => {
                place.outgoing.send_pong(&context);
                continue;
            }
        };
        if let Some(seal) = &mut seal {
            seal.open(&message)?;
            message.drain(..SEAL_BYTES);
        }
        place.receive(message).await?;
    }
}
