//! The contract between a vLLM frontend and `metald`.
//!
//! Depends on nothing else of this project: it knows no sockets, no MLX and no vLLM.
//! `PROTOCOL.md` describes the same messages for people; `golden/` holds one encoded
//! example of each, which the Rust and the Python tests both read.
//!
//! # Layout
//! - [`limits`]: every limit on the wire, with its derivation
//! - [`message`]: [`Request`] and [`Reply`], the daemon's whole public interface
//! - [`handshake`]: [`Hello`], [`Welcome`], model loading and the KV-cache grant
//! - [`step`]: one scheduler step and its result
//! - [`sampling`]: [`SamplingParams`], [`GrammarBitmask`], [`Logprobs`]
//! - [`status`]: what `metald status` shows
//! - [`error`]: [`ErrorCode`] and its [`Scope`]
//! - [`codec`]: bytes to messages and back
//! - [`auth`]: what a TCP connection begins with, and how its messages are sealed
//! - [`arrays`]: number arrays that travel as raw little-endian bytes
//! - `bounded`: lists and strings that are refused beyond their limit

pub mod arrays;
pub mod auth;
mod bounded;
pub mod codec;
pub mod error;
pub mod handshake;
pub mod limits;
pub mod message;
pub mod sampling;
pub mod status;
pub mod step;

pub use arrays::{F32Array, I32Array};
pub use codec::{CodecError, decode_reply, decode_request, encode_reply, encode_request};
pub use error::{ErrorCode, ErrorReply, Scope};
pub use handshake::{
    CacheCreated, CreateCache, Hello, KvCacheSpec, LoadModel, LoadProgress, MemoryReserved,
    ModelLoaded, ReserveMemory, Welcome,
};
pub use message::{Reply, ReplyEnvelope, Request, RequestEnvelope, SessionToken};
pub use sampling::{
    GrammarBitmask, Logprobs, PromptLogprobTokenIds, SamplingParams, ThinkingBudget,
};
pub use status::{KvStatus, ModelStatus, ServedStatus, SessionStatus, StatusReport};
pub use step::{
    Exec, NewBlocks, NewRequest, PromptLogprobs, PromptTokenIdLogprobs, RowError, Sample,
    StepResult,
};

/// The version of the protocol that this crate speaks.
///
/// A new request keeps it: an older daemon refuses one with `BadMessage`. Anything else raises
/// it: a field added, removed, moved or given another type or meaning; a new reply or error code.
pub const PROTOCOL_VERSION: u16 = 1;
