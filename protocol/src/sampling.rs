//! How tokens are drawn, and what is told about them.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::limits::{
    MAX_BAD_WORDS, MAX_REQUESTS_PER_STEP, MAX_THINKING_MARKER, MAX_TOKEN_LIST,
    MAX_TOKENS_PER_REQUEST,
};
use crate::{F32Array, I32Array};

/// The part of vLLM's `SamplingParams` (vllm/sampling_params.py) that a worker has to honour.
///
/// The scheduler keeps the rest: stop strings, `max_tokens`, `n`, EOS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Below 1e-5 the most likely token is taken.
    pub temperature: f64,
    /// Keeps the most likely tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this likely, relative to the most likely one; 0 keeps all.
    pub min_p: f64,
    /// Makes the draws repeatable: each is a function of the seed and of the output position alone.
    pub seed: Option<i64>,
    /// Taken off the logit of each token that the output has.
    pub presence_penalty: f64,
    /// Taken off a token's logit for each time that the output has it.
    pub frequency_penalty: f64,
    /// Divides (multiplies, when negative) the logit of each token that prompt or output has.
    pub repetition_penalty: f64,
    /// Until so many tokens were sampled, none of `stop_token_ids` is allowed.
    pub min_tokens: u32,
    /// vLLM's `all_stop_token_ids`: end of sequence and the request's own stop tokens.
    #[serde(deserialize_with = "bounded::list::<MAX_TOKEN_LIST, _, _>")]
    pub stop_token_ids: Vec<u32>,
    /// Added to the logits, as pairs of token id and bias.
    #[serde(deserialize_with = "bounded::list::<MAX_TOKEN_LIST, _, _>")]
    pub logit_bias: Vec<(u32, f64)>,
    /// The only tokens allowed, if given.
    #[serde(deserialize_with = "bounded::optional_list::<MAX_TOKEN_LIST, _, _>")]
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Sequences of tokens whose last one must not follow the others.
    #[serde(deserialize_with = "bounded::list::<MAX_BAD_WORDS, _, _>")]
    pub bad_words_token_ids: Vec<Vec<u32>>,
    /// How many of the most likely tokens to report, beside the sampled one; -1 for all.
    pub logprobs: Option<i32>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<i32>,
    /// Report these tokens instead of the most likely ones.
    #[serde(deserialize_with = "bounded::optional_list::<MAX_TOKEN_LIST, _, _>")]
    pub logprob_token_ids: Option<Vec<u32>>,
    /// Ends the model's thinking after a number of tokens.
    pub thinking_budget: Option<ThinkingBudget>,
    /// Report these tokens at places of the prompt.
    pub prompt_logprob_token_ids: Option<PromptLogprobTokenIds>,
    /// The output's tokens, whatever is drawn; what comes after the last one is drawn. Scores are
    /// those of the model's distribution.
    #[serde(deserialize_with = "bounded::optional_list::<MAX_TOKENS_PER_REQUEST, _, _>")]
    pub trace_decode_token_ids: Option<Vec<u32>>,
}

/// How long a request may think, and what thinking looks like.
///
/// A request thinks from the last `start_token_ids` of its prompt or output on, unless
/// `natural_end_token_ids` come after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThinkingBudget {
    /// Tokens of thought, the prompt's included, after which `end_token_ids` are forced.
    pub max_tokens: u32,
    /// What begins it; not empty.
    #[serde(deserialize_with = "bounded::list::<MAX_THINKING_MARKER, _, _>")]
    pub start_token_ids: Vec<u32>,
    /// What ends it when the model writes it; not empty.
    #[serde(deserialize_with = "bounded::list::<MAX_THINKING_MARKER, _, _>")]
    pub natural_end_token_ids: Vec<u32>,
    /// What is written one by one when the budget is spent; not empty.
    #[serde(deserialize_with = "bounded::list::<MAX_THINKING_MARKER, _, _>")]
    pub end_token_ids: Vec<u32>,
}

/// Tokens to score at places of a prompt, whether or not the prompt has them there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptLogprobTokenIds {
    /// Row 0 scores what may follow the prompt's token at this position.
    pub start: u32,
    /// Tokens of each row.
    pub num_columns: u32,
    /// `[num_prompt_tokens - 1 - start, num_columns]`; -1 pads a row.
    pub token_ids: I32Array,
}

impl Default for SamplingParams {
    /// vLLM's defaults.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            logprob_token_ids: None,
            thinking_budget: None,
            prompt_logprob_token_ids: None,
            trace_decode_token_ids: None,
        }
    }
}

/// Allowed tokens of structured requests: vLLM's grammar bitmask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrammarBitmask {
    /// The rows of the step that are bound by a grammar, as indices into `Exec::handles`.
    #[serde(deserialize_with = "bounded::list::<MAX_REQUESTS_PER_STEP, _, _>")]
    pub rows: Vec<u32>,
    /// `[rows.len(), ceil(vocab_size / 32)]`: bit `t % 32` of word `t / 32` is set if token `t` is
    /// allowed.
    pub bitmask: I32Array,
}

/// Log probabilities (or logits, by `logprobs_mode`) of a number of positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Columns of the two tables: one for the position's own token, then the ones asked for.
    pub num_columns: u32,
    /// `[num_rows, num_columns]`; column 0 is the position's own token. Rows that asked for fewer
    /// columns are padded with token 0 at minus infinity, as vLLM pads.
    pub token_ids: I32Array,
    /// `[num_rows, num_columns]`.
    pub logprobs: F32Array,
    /// `[num_rows]`: rank of the position's own token, from 1.
    pub ranks: I32Array,
}
