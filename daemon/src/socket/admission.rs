//! How the two ends of a TCP connection show each other that they hold the token: the exchange of
//! `metal_rpc_protocol::auth`, from both sides.

use metal_rpc_protocol::auth::{
    AuthError, Exchange, Frame, MAX_EXCHANGE_BYTES, NONCE_BYTES, Nonce, Seal, Side, Token,
};
use metal_rpc_protocol::limits::MAX_REFUSAL_BYTES;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{Ended, SocketError};
use super::reader::{FrameReader, Received};
use super::zmtp::{self, ZmtpError};
use crate::endpoint::Endpoint;

/// What a connection has agreed on.
#[derive(Debug)]
pub(super) struct Seals {
    /// How our messages are sealed.
    pub(super) ours: Seal,
    /// How those of the other side open.
    pub(super) theirs: Seal,
}

/// The daemon's side: has the frontend prove that it holds the token, and proves it in turn.
///
/// # Errors
/// [`Ended`].
pub(super) async fn admit<S>(
    stream: &mut S,
    reader: &mut FrameReader,
    token: &Token,
) -> Result<Seals, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let knock = hear(stream, reader, MAX_EXCHANGE_BYTES).await?;
    let Frame::Knock(theirs) = Frame::decode(&knock)? else {
        return Err(AuthError::Malformed.into());
    };
    let ours = nonce().map_err(|error| ZmtpError::Io(std::io::Error::other(error)))?;
    let exchange = Exchange::new(token.clone(), *theirs, ours);
    say(stream, Frame::Challenge(&ours)).await?;

    let response = hear(stream, reader, MAX_EXCHANGE_BYTES).await?;
    let Frame::Response(proof) = Frame::decode(&response)? else {
        return Err(AuthError::Malformed.into());
    };
    exchange.check(Side::Frontend, proof)?;
    say(stream, Frame::Accepted(&exchange.proof(Side::Daemon))).await?;
    Ok(Seals {
        ours: exchange.seal(Side::Daemon),
        theirs: exchange.seal(Side::Frontend),
    })
}

/// The frontend's side: proves that we hold the token, and has the daemon prove it.
///
/// # Errors
/// [`SocketError`].
pub(super) async fn enter<S>(
    stream: &mut S,
    reader: &mut FrameReader,
    endpoint: &Endpoint,
    token: &Token,
) -> Result<Seals, SocketError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let auth = |error| SocketError::Auth {
        endpoint: endpoint.clone(),
        error,
    };
    let ours = nonce().map_err(SocketError::Random)?;
    say(stream, Frame::Knock(&ours)).await?;
    let challenge = hear(stream, reader, 1 + MAX_REFUSAL_BYTES).await?;
    let exchange = match Frame::decode(&challenge).map_err(auth)? {
        Frame::Challenge(theirs) => Exchange::new(token.clone(), ours, *theirs),
        other => return Err(refusal(endpoint, other)),
    };
    say(stream, Frame::Response(&exchange.proof(Side::Frontend))).await?;
    let accepted = hear(stream, reader, 1 + MAX_REFUSAL_BYTES).await?;
    match Frame::decode(&accepted).map_err(auth)? {
        Frame::Accepted(proof) => exchange.check(Side::Daemon, proof).map_err(auth)?,
        other => return Err(refusal(endpoint, other)),
    }
    Ok(Seals {
        ours: exchange.seal(Side::Frontend),
        theirs: exchange.seal(Side::Daemon),
    })
}

/// Says one frame of the exchange.
///
/// # Errors
/// [`ZmtpError`].
pub(super) async fn say<S>(stream: &mut S, frame: Frame<'_>) -> Result<(), ZmtpError>
where
    S: AsyncWrite + Unpin,
{
    zmtp::Frame::message(frame.encode()).write(stream).await
}

async fn hear<S>(
    stream: &mut S,
    reader: &mut FrameReader,
    max_bytes: usize,
) -> Result<Vec<u8>, ZmtpError>
where
    S: AsyncRead + Unpin,
{
    loop {
        // A stranger is not answered otherwise.
        if let Received::Message(message) = reader.next(stream, max_bytes).await? {
            return Ok(message);
        }
    }
}

fn nonce() -> Result<Nonce, getrandom::Error> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
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
