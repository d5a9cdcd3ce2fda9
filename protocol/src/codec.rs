//! Bytes to messages and back.
//!
//! Decoding never panics, whatever the bytes, and allocates no more than a small multiple of
//! their number: lists grow as their elements arrive, nesting is bounded, trailing bytes are an
//! error.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_DEPTH, MAX_MESSAGE_BYTES};
use crate::{ReplyEnvelope, RequestEnvelope};

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Larger than any message may be.
    #[error("a message has {actual} bytes, the most is {MAX_MESSAGE_BYTES}")]
    TooLong {
        /// Bytes received.
        actual: usize,
    },
    /// Something follows the message.
    #[error("bytes follow the message")]
    TrailingBytes,
    /// Not msgpack, or not one of the messages.
    #[error("not a message of this protocol: {reason}")]
    Malformed {
        /// What is wrong, cut: it may show a number as long as f64 has.
        reason: String,
    },
}

/// Bytes of a reason. It is an answer to whoever sent the message, not a copy of it.
const MAX_REASON_BYTES: usize = 200;

impl From<rmp_serde::decode::Error> for CodecError {
    fn from(error: rmp_serde::decode::Error) -> Self {
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Self::Malformed { reason }
    }
}

/// Reads one request.
///
/// # Errors
/// [`CodecError`], for bytes that are not exactly one request.
pub fn decode_request(bytes: &[u8]) -> Result<RequestEnvelope, CodecError> {
    decode(bytes)
}

/// Reads one reply.
///
/// # Errors
/// [`CodecError`], for bytes that are not exactly one reply.
pub fn decode_reply(bytes: &[u8]) -> Result<ReplyEnvelope, CodecError> {
    decode(bytes)
}

/// Writes one request.
#[must_use]
pub fn encode_request(envelope: &RequestEnvelope) -> Vec<u8> {
    encode(envelope)
}

/// Writes one reply.
#[must_use]
pub fn encode_reply(envelope: &ReplyEnvelope) -> Vec<u8> {
    encode(envelope)
}

fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(CodecError::TooLong {
            actual: bytes.len(),
        });
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let message = T::deserialize(&mut deserializer)?;
    // The reader does not tell its position, but only at the end of the bytes has it no marker.
    match u8::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(message),
        _ => Err(CodecError::TrailingBytes),
    }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec(message).expect("every message can be encoded into memory")
}
