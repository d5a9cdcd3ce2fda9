//! Every limit on the wire, with its derivation.
//!
//! A message beyond one of these is refused with [`ErrorCode::BadMessage`](crate::ErrorCode)
//! or [`ErrorCode::InvalidStep`](crate::ErrorCode), and changes nothing.

/// Requests in one scheduler step. vLLM's largest default of `max_num_seqs` is 1,024.
pub const MAX_REQUESTS_PER_STEP: usize = 1024;

/// Requests that a session may know: a finished one keeps its handle until the step after its end.
pub const MAX_HANDLES: usize = 2 * MAX_REQUESTS_PER_STEP;

/// Tokens of one request, prompt and output: the longest context that models of today offer.
pub const MAX_TOKENS_PER_REQUEST: usize = 1 << 20;

/// Tokens that one step may compute.
pub const MAX_TOKENS_PER_STEP: usize = 1 << 17;

/// Entries of a vocabulary.
pub const MAX_VOCAB_SIZE: usize = 1 << 20;

/// Bytes that are kept of a request id. vLLM's own are about 50; an HTTP client may choose longer.
pub const MAX_REQ_ID_BYTES: usize = 512;

/// Bytes of a path, a version or a name.
pub const MAX_STRING_BYTES: usize = 4096;

/// Token ids in one list of [`SamplingParams`](crate::SamplingParams): as many as a vocabulary has.
pub const MAX_TOKEN_LIST: usize = MAX_VOCAB_SIZE;

/// Sequences in `SamplingParams::bad_words_token_ids`.
pub const MAX_BAD_WORDS: usize = 1 << 16;

/// Tokens of a phrase that begins or ends a model's thinking: a sentence or two.
pub const MAX_THINKING_MARKER: usize = 1024;

/// Entries of `SamplingParams::prompt_logprob_token_ids`, which come with a request and go back as
/// scores: vLLM's default of 20 for each token of a long prompt.
pub const MAX_PROMPT_LOGPROB_TOKEN_IDS: usize = 1 << 22;

/// Groups of layers that share a block table: one per kind of attention, and room.
pub const MAX_KV_CACHE_GROUPS: usize = 64;

/// The most that one frontend's share of the device may be, relative to another's.
pub const MAX_WEIGHT: u32 = 100;

/// Steps that a session may have waiting or running: one runs, one is built on its result.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;

/// Nesting of a message: envelope, body, list, request, sampling parameters, list, list, value.
pub const MAX_DEPTH: usize = 8;

/// Bytes of one message. The largest is a step that opens the most requests that fit:
/// eight prompts of the longest context, 4 bytes a token, leave as much again for block
/// tables, sampling parameters and a grammar bitmask.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Bytes of an authentication token: a file with a few words is no secret, and one of megabytes
/// no token.
pub const MIN_TOKEN_BYTES: usize = 32;

/// See [`MIN_TOKEN_BYTES`].
pub const MAX_TOKEN_BYTES: usize = 4096;

/// Bytes of the reason for which a TCP connection is refused: a sentence or two.
pub const MAX_REFUSAL_BYTES: usize = 512;

const _: () = assert!(MAX_PROMPT_LOGPROB_TOKEN_IDS * size_of::<i32>() * 2 <= MAX_MESSAGE_BYTES);
const _: () = assert!(8 * MAX_TOKENS_PER_REQUEST * size_of::<i32>() * 2 <= MAX_MESSAGE_BYTES);
// One bitmask row per request and one bit per token of a 500 k vocabulary fit beside it.
const _: () = assert!(MAX_REQUESTS_PER_STEP * 500_000 / 8 <= MAX_MESSAGE_BYTES);
