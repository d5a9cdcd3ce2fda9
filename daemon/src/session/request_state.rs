//! One request, as rebuilt from the scheduler's diffs.

use std::sync::Arc;

use metal_rpc_protocol::SamplingParams;

use super::block_tables::RequestBlocks;
use crate::sampler::PromptScores;

/// What is known of a running request. Its token ids are on the device: see
/// [`TokenTable`](super::TokenTable).
#[derive(Debug)]
pub struct CachedRequestState {
    /// vLLM's id, for logs.
    pub req_id: String,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens known, including the ones that are still being computed.
    pub num_tokens: u32,
    /// The blocks that hold its keys and values.
    pub blocks: RequestBlocks,
    /// How its tokens are sampled.
    pub sampling_params: Arc<SamplingParams>,
    /// What its draws depend on, beside the output position.
    pub seed: u64,
    /// Scores of the prompt tokens run so far, as far as they are asked for.
    pub prompt_scores: PromptScores,
}
