//! One scheduler step and its result.
//!
//! vLLM's `SchedulerOutput` (vllm/v1/core/sched/output.py) says the same with request ids and
//! named fields. Here a request is known by a small number from its first step on, the parallel
//! arrays name no fields, and a step carries only what changed: 4 to 5 bytes for each request that
//! decodes.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::limits::{
    MAX_HANDLES, MAX_KV_CACHE_GROUPS, MAX_REQ_ID_BYTES, MAX_REQUESTS_PER_STEP, MAX_TOKENS_PER_STEP,
};
use crate::{F32Array, GrammarBitmask, I32Array, Logprobs, SamplingParams};

/// One scheduling decision of one frontend.
///
/// Applied in the order of the fields: finished requests give their handle and blocks back first,
/// because both may be used again in the same step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// Whether a [`Sample`] with this step's grammar follows. Otherwise `grammar` says it all.
    pub sample_follows: bool,
    /// Handles of requests that ended, were aborted or were preempted.
    #[serde(deserialize_with = "bounded::list::<MAX_HANDLES, _, _>")]
    pub finished: Vec<u32>,
    /// Requests seen for the first time, or resumed after a preemption with all their tokens.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub new_requests: Vec<NewRequest>,
    /// The requests of this step, new ones included, in the order of the result's rows.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub handles: Vec<u32>,
    /// `num_computed_tokens` of each row: tokens whose keys and values are in the cache.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub num_computed_tokens: Vec<u32>,
    /// `num_scheduled_tokens` of each row: tokens to run now. Empty when each row runs one.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub num_scheduled_tokens: Vec<u32>,
    /// Blocks added to running requests.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub new_blocks: Vec<NewBlocks>,
    /// Blocks to copy before the forward, as pairs of source and destination.
    #[serde(deserialize_with = "bounded::list::<MAX_TOKENS_PER_STEP, _, _>")]
    pub block_copies: Vec<(u32, u32)>,
    /// The grammar of this step's structured requests, if there are any.
    pub grammar: Option<GrammarBitmask>,
}

/// A request's first appearance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewRequest {
    /// The number by which later steps name this request. Free in this session.
    pub handle: u32,
    /// vLLM's id, for logs; cut after [`MAX_REQ_ID_BYTES`], because HTTP clients may choose it.
    #[serde(deserialize_with = "bounded::cut_string::<MAX_REQ_ID_BYTES, _>")]
    pub req_id: String,
    /// Prompt, and after it the tokens that the request had already generated.
    pub token_ids: I32Array,
    /// How many of `token_ids` are the prompt.
    pub num_prompt_tokens: u32,
    /// The block table of each KV-cache group, in the session's numbering.
    #[serde(deserialize_with = "bounded::list::<MAX_KV_CACHE_GROUPS, _, _>")]
    pub block_ids: Vec<Vec<u32>>,
    /// How its tokens are sampled.
    pub sampling_params: SamplingParams,
}

/// Blocks appended to a request's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewBlocks {
    /// Index into [`Exec::handles`].
    pub row: u32,
    /// The blocks of each KV-cache group, in the session's numbering.
    #[serde(deserialize_with = "bounded::list::<MAX_KV_CACHE_GROUPS, _, _>")]
    pub block_ids: Vec<Vec<u32>>,
}

/// The grammar of an earlier step, computed while its forward ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// `seq` of the [`Exec`].
    pub exec_seq: u64,
    /// As in [`Exec::grammar`].
    pub grammar: Option<GrammarBitmask>,
}

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// `[num_rows]`: the sampled token of each row, or -1 where the prompt is not complete yet.
    pub token_ids: I32Array,
    /// Log probabilities of the sampled tokens, if a request asked for them: one row per request.
    pub logprobs: Option<Logprobs>,
    /// Log probabilities of prompts whose last chunk this was.
    pub prompt_logprobs: Vec<PromptLogprobs>,
    /// Scores of the tokens that requests named for places of their prompts, with the last chunk.
    pub prompt_token_id_logprobs: Vec<PromptTokenIdLogprobs>,
    /// Rows that could not be sampled. Their token is -1.
    pub row_errors: Vec<RowError>,
    /// From arrival in the daemon to the start of the forward, in microseconds.
    pub queue_us: u32,
    /// From the start of the forward to its tokens, in microseconds.
    pub run_us: u32,
}

/// Log probabilities of one request's prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptLogprobs {
    /// Index into [`Exec::handles`].
    pub row: u32,
    /// One row per prompt token from the second on; column 0 is that token.
    pub logprobs: Logprobs,
}

/// Scores of the tokens that one request named for places of its prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptTokenIdLogprobs {
    /// Index into [`Exec::handles`].
    pub row: u32,
    /// Columns of the table, as in [`PromptLogprobTokenIds`](crate::PromptLogprobTokenIds).
    pub num_columns: u32,
    /// `[num_rows, num_columns]`; minus infinity where a row is padded.
    pub logprobs: F32Array,
}

/// Why a row has no token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// Index into [`Exec::handles`].
    pub row: u32,
    /// What went wrong.
    pub message: String,
}
