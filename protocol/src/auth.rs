//! How the two ends of a TCP connection show each other that they hold the same token, and seal
//! what they say from then on.
//!
//! `PROTOCOL.md` has the exchange, and what it protects from. A frame's first byte says what it is.
//! This module does no I/O and draws no random numbers.
//!
//! # Invariants
//! - A token is never sent, logged or shown; what leaves are MACs under it.
//! - A nonce is drawn anew for each connection by both sides, so nothing that was said on one
//!   connection is worth anything on another.
//! - Each direction has its own key and counts its frames: one that is changed, repeated, left
//!   out or moved does not open.
//! - MACs are compared in constant time.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::limits::{MAX_MESSAGE_BYTES, MAX_REFUSAL_BYTES, MAX_TOKEN_BYTES, MIN_TOKEN_BYTES};

/// The version of the exchange, in the frontend's first frame.
pub const AUTH_VERSION: u8 = 1;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;

/// Bytes of the largest frame of the exchange that a frontend may send.
pub const MAX_EXCHANGE_BYTES: usize = 2 + NONCE_BYTES;

/// Bytes that a seal adds to a message.
pub const SEAL_BYTES: usize = 1 + MAC_BYTES;

/// Bytes of the largest sealed message.
pub const MAX_SEALED_BYTES: usize = SEAL_BYTES + MAX_MESSAGE_BYTES;

/// Random bytes of one side.
pub type Nonce = [u8; NONCE_BYTES];

type HmacSha256 = Hmac<Sha256>;

const KNOCK: u8 = 1;
const CHALLENGE: u8 = 2;
const RESPONSE: u8 = 3;
const ACCEPTED: u8 = 4;
const REFUSED: u8 = 5;
const SEALED: u8 = 6;

/// Why a token or a frame is no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Too short to be a secret, or too long to be a token.
    #[error(
        "a token has {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes, this one has {0}; make one with \
         `openssl rand -hex 32`"
    )]
    TokenLength(usize),
    /// Not a frame of this exchange.
    #[error("not a frame of the authentication of this endpoint")]
    Malformed,
    /// The other side speaks another version.
    #[error(
        "metald speaks version {AUTH_VERSION} of the authentication, this frontend version {0}; \
         install the same version of both"
    )]
    Version(u8),
    /// The MAC is not what the token makes it.
    #[error("the other side holds another token; METAL_RPC_TOKEN_FILE must name the same on both")]
    WrongToken,
    /// A sealed frame does not open.
    #[error("a sealed frame was changed, repeated, left out or moved on its way")]
    BrokenSeal,
}

/// The secret that a daemon shares with its frontends.
#[derive(Clone)]
pub struct Token(Arc<HmacSha256>);

impl Token {
    /// # Errors
    /// [`AuthError::TokenLength`].
    pub fn new(secret: &[u8]) -> Result<Self, AuthError> {
        if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&secret.len()) {
            return Err(AuthError::TokenLength(secret.len()));
        }
        Ok(Self(Arc::new(keyed(secret))))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A frame on a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The frontend's first word.
    Knock(&'a Nonce),
    /// The daemon's answer.
    Challenge(&'a Nonce),
    /// The frontend's proof that it holds the token.
    Response(&'a [u8; MAC_BYTES]),
    /// The daemon's.
    Accepted(&'a [u8; MAC_BYTES]),
    /// The daemon closes the connection, for this reason.
    Refused(&'a str),
    /// A message of the protocol.
    Sealed(&'a [u8; MAC_BYTES], &'a [u8]),
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`AuthError::Malformed`], [`AuthError::Version`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, AuthError> {
        let (&kind, body) = bytes.split_first().ok_or(AuthError::Malformed)?;
        let whole = || body.as_array().ok_or(AuthError::Malformed);
        match kind {
            KNOCK => match body.split_first() {
                Some((&AUTH_VERSION, nonce)) => {
                    let nonce = nonce.as_array().ok_or(AuthError::Malformed)?;
                    Ok(Self::Knock(nonce))
                }
                Some((&version, _)) => Err(AuthError::Version(version)),
                None => Err(AuthError::Malformed),
            },
            CHALLENGE => whole().map(Self::Challenge),
            RESPONSE => whole().map(Self::Response),
            ACCEPTED => whole().map(Self::Accepted),
            REFUSED if body.len() <= MAX_REFUSAL_BYTES => std::str::from_utf8(body)
                .map(Self::Refused)
                .map_err(|_| AuthError::Malformed),
            SEALED => {
                let (mac, message) = body.split_first_chunk().ok_or(AuthError::Malformed)?;
                Ok(Self::Sealed(mac, message))
            }
            _ => Err(AuthError::Malformed),
        }
    }

    /// Writes the frame.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Knock(nonce) => [&[KNOCK, AUTH_VERSION][..], nonce].concat(),
            Self::Challenge(nonce) => [&[CHALLENGE][..], nonce].concat(),
            Self::Response(proof) => [&[RESPONSE][..], proof].concat(),
            Self::Accepted(proof) => [&[ACCEPTED][..], proof].concat(),
            Self::Refused(reason) => {
                let end = reason.floor_char_boundary(MAX_REFUSAL_BYTES);
                [&[REFUSED][..], &reason.as_bytes()[..end]].concat()
            }
            Self::Sealed(mac, message) => [&[SEALED][..], mac, message].concat(),
        }
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// vLLM's.
    Frontend,
    /// `metald`'s.
    Daemon,
}

/// What both sides have said of themselves, under the token that they should share.
#[derive(Clone, Debug)]
pub struct Exchange {
    token: Token,
    frontend: Nonce,
    daemon: Nonce,
}

impl Exchange {
    /// An exchange with both sides' nonces.
    #[must_use]
    pub fn new(token: Token, frontend: Nonce, daemon: Nonce) -> Self {
        Self {
            token,
            frontend,
            daemon,
        }
    }

    /// What `side` shows to prove that it holds the token.
    #[must_use]
    pub fn proof(&self, side: Side) -> [u8; MAC_BYTES] {
        self.derive(b"proof", side).finalize().into_bytes().into()
    }

    /// Checks what `side`, the other one, has shown.
    ///
    /// # Errors
    /// [`AuthError::WrongToken`].
    pub fn check(&self, side: Side, proof: &[u8; MAC_BYTES]) -> Result<(), AuthError> {
        let expected = self.derive(b"proof", side);
        expected
            .verify_slice(proof)
            .map_err(|_| AuthError::WrongToken)
    }

    /// Seals, or opens, what `side` says from now on.
    #[must_use]
    pub fn seal(&self, side: Side) -> Seal {
        let key = self.derive(b"seal", side).finalize().into_bytes();
        Seal {
            key: keyed(&key),
            count: 0,
        }
    }

    /// A MAC of both nonces that has no other use.
    fn derive(&self, purpose: &[u8], side: Side) -> HmacSha256 {
        let side: &[u8] = match side {
            Side::Frontend => b" of frontend",
            Side::Daemon => b" of daemon",
        };
        // What follows the label has one length, so no two labels can run into it alike.
        HmacSha256::clone(&self.token.0)
            .chain_update(b"metal-rpc 1 ")
            .chain_update(purpose)
            .chain_update(side)
            .chain_update(self.frontend)
            .chain_update(self.daemon)
    }
}

/// One direction of a connection: its key, and how many frames went.
#[derive(Clone)]
pub struct Seal {
    key: HmacSha256,
    count: u64,
}

impl Seal {
    /// Seals the next message.
    #[must_use]
    pub fn close(&mut self, message: &[u8]) -> Vec<u8> {
        let mac: [u8; MAC_BYTES] = self.next_mac(message).finalize().into_bytes().into();
        Frame::Sealed(&mac, message).encode()
    }

    /// Opens the next frame.
    ///
    /// # Errors
    /// [`AuthError::Malformed`], [`AuthError::BrokenSeal`]. The connection cannot go on.
    pub fn open<'a>(&mut self, frame: &'a [u8]) -> Result<&'a [u8], AuthError> {
        let Frame::Sealed(mac, message) = Frame::decode(frame)? else {
            return Err(AuthError::Malformed);
        };
        self.next_mac(message)
            .verify_slice(mac)
            .map_err(|_| AuthError::BrokenSeal)?;
        Ok(message)
    }

    fn next_mac(&mut self, message: &[u8]) -> HmacSha256 {
        let number = self.count;
        self.count += 1;
        self.key
            .clone()
            .chain_update(number.to_be_bytes())
            .chain_update(message)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("count", &self.count).finish()
    }
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests;
