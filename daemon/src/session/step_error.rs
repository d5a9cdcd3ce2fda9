//! Why a step is refused.

use crate::kv_cache::BlockError;

/// Why a step was refused. Scope: the session; other sessions are untouched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant's message says what its fields are"
)]
pub enum StepError {
    #[error("step has {rows} rows, {name} has {actual} entries")]
    RowCount {
        name: &'static str,
        rows: usize,
        actual: usize,
    },
    #[error("step has {actual} requests, max_num_seqs of this session is {limit}")]
    TooManyRequests { actual: usize, limit: u32 },
    #[error("step has {actual} tokens, max_num_batched_tokens of this session is {limit}")]
    TooManyTokens { actual: u64, limit: u32 },
    #[error("handle {handle} is not below {limit}, twice max_num_seqs of this session")]
    HandleOutOfRange { handle: u32, limit: u32 },
    #[error("handle {handle} is not known in this session; open it with a new request first")]
    UnknownHandle { handle: u32 },
    #[error("handle {handle} stands twice in one step")]
    DuplicateHandle { handle: u32 },
    #[error("request {req_id} has {actual} tokens, max_model_len of this session is {limit}")]
    TooLong {
        req_id: String,
        actual: usize,
        limit: u32,
    },
    #[error("request {req_id} has {num_prompt_tokens} prompt tokens of {actual} tokens in all")]
    PromptLength {
        req_id: String,
        num_prompt_tokens: u32,
        actual: usize,
    },
    // Not the token's id: frontends and this daemon write errors into logs.
    #[error(
        "token {position} of request {req_id} is none of the vocabulary's {vocab_size} entries"
    )]
    TokenOutOfRange {
        req_id: String,
        position: usize,
        vocab_size: u32,
    },
    #[error("request {req_id} has {actual} blocks, max_model_len of this session needs {limit}")]
    TooManyBlocks {
        req_id: String,
        actual: usize,
        limit: usize,
    },
    #[error("handle {handle} opens a request that its step does not run")]
    NotRun { handle: u32 },
    #[error(
        "token {position} of the trace of request {req_id} is none of the vocabulary's \
         {vocab_size} entries"
    )]
    TraceOutOfRange {
        req_id: String,
        position: usize,
        vocab_size: u32,
    },
    #[error(
        "request {req_id} has a thinking budget without the tokens that begin it, end it, or are \
         forced to end it"
    )]
    ThinkingPhrase { req_id: String },
    #[error(
        "request {req_id} names {actual} tokens of its prompt to score, {rows} rows of {columns} \
         are left after its start; at most {limit} entries are allowed, and none is too few"
    )]
    PromptTokenIds {
        req_id: String,
        rows: u32,
        columns: u32,
        actual: usize,
        limit: usize,
    },
    #[error("row {row} is named by {name}, the step has {rows} rows")]
    RowOutOfRange {
        name: &'static str,
        row: u32,
        rows: usize,
    },
    #[error(
        "request {req_id} has block ids of {actual} KV-cache groups, the session has {expected}"
    )]
    GroupCount {
        req_id: String,
        actual: usize,
        expected: usize,
    },
    #[error("request {req_id} runs tokens {num_computed}..{end}, but only {num_tokens} are known")]
    BeyondKnownTokens {
        req_id: String,
        num_computed: u32,
        end: u64,
        num_tokens: u32,
    },
    #[error("request {req_id} runs no token")]
    NoTokens { req_id: String },
    #[error("request {req_id} needs {needed} blocks, its table has {actual}")]
    MissingBlocks {
        req_id: String,
        needed: u32,
        actual: usize,
    },
    #[error("request {req_id}: {error}")]
    Block { req_id: String, error: BlockError },
    #[error("copying KV-cache blocks is not supported")]
    BlockCopies,
    #[error("grammar bitmask has {actual} words, {rows} rows of this vocabulary have {expected}")]
    BitmaskSize {
        rows: usize,
        actual: usize,
        expected: usize,
    },
    #[error("grammar is attached to a step whose grammar follows in a message of its own")]
    GrammarTwice,
}
