//! Logits to token ids, and what is told about them, in vLLM's order.
//!
//! This module says what each row asks for; one kernel does the rest, for all rows in one pass
//! and without waiting for the host. Rows may differ in every parameter.
//!
//! # Invariants
//! - The draw of a row is a function of (seed, output position) and of its logits alone.
//! - What a row does not ask for costs it nothing: a greedy row is an argmax.
//! - The last tokens of a request may still be in flight when its row is compiled, so only their
//!   number is known here; penalties and bad words read them in the kernel, from the token table.

mod compile;

use metal_rpc_kernels::{self as kernels, KernelError};
use metal_rpc_protocol::SamplingParams;
use mlx_rs::Array;

pub use compile::compile;
pub use metal_rpc_kernels::{LogprobsMode, TokenScores as SampledLogprobs};

/// What one row of logits is sampled by.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// The request's parameters.
    pub params: &'a SamplingParams,
    /// The request's own seed, or the one chosen for it.
    pub seed: u64,
    /// Index of the request's first token in the token table.
    pub table_offset: usize,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens of the prompt and of the output, those still being computed included.
    pub num_tokens: u32,
    /// The allowed tokens, if a grammar binds the request: bit `t % 32` of word `t / 32`.
    pub grammar: Option<&'a [i32]>,
}

/// The tokens of one pass.
#[derive(Debug)]
pub struct Sampled {
    /// `[rows]` i32; -1 where the logits had a NaN, or where no token was allowed.
    pub token_ids: Array,
    /// One row a sampled token, if any row asks for it.
    ///
    /// Column 0 is the sampled token. Rows that asked for fewer columns than others are padded
    /// with token 0 at -inf, which vLLM drops.
    pub logprobs: Option<SampledLogprobs>,
}

/// Scores at places of a prompt, a chunk of it after the other.
#[derive(Debug, Default)]
pub struct PromptScores {
    /// Those of the prompt's own tokens and of the most likely ones, if asked for.
    pub logprobs: Vec<SampledLogprobs>,
    /// `[positions, columns]` float32: those of the tokens that the request named, if it did.
    pub token_ids: Vec<Array>,
}

impl PromptScores {
    /// Puts those of the next chunk behind these.
    pub fn append(&mut self, next: Self) {
        self.logprobs.extend(next.logprobs);
        self.token_ids.extend(next.token_ids);
    }

    /// Everything that has to be computed.
    pub fn arrays(&self) -> impl Iterator<Item = Array> {
        let logprobs = self.logprobs.iter().flat_map(SampledLogprobs::arrays);
        logprobs.chain(&self.token_ids).cloned()
    }
}

/// Samples one token from each row.
///
/// # Shapes
/// - `logits`: `[rows.len(), vocab_size]` float32
/// - `token_table`: `[n]` i32
///
/// # Errors
/// [`KernelError`] if the shapes do not fit, or a row's tokens lie outside the token table.
///
/// # Source
/// vllm/v1/sample/sampler.py, `Sampler.forward`; the grammar comes first, as in vLLM's runner.
pub fn sample(
    logits: &Array,
    rows: &[SampleRow<'_>],
    token_table: &Array,
    mode: LogprobsMode,
) -> Result<Sampled, KernelError> {
    let (token_ids, logprobs) = kernels::sample(logits, &compile(rows)?, token_table, mode)?;
    Ok(Sampled {
        token_ids,
        logprobs,
    })
}

/// Scores the tokens that follow each position of a prompt.
///
/// Column 0 is the prompt's own token, then the `num_logprobs` most likely ones (-1: all). The
/// modes of processed logits report the raw ones: nothing processes the logits of a prompt.
///
/// # Shapes
/// - `logits`: `[n, vocab_size]` float32
/// - `targets`: `[n]` i32, the token that follows each position
///
/// # Errors
/// [`KernelError`] if the shapes do not fit.
pub fn prompt_logprobs(
    logits: &Array,
    targets: &Array,
    num_logprobs: i32,
    mode: LogprobsMode,
) -> Result<SampledLogprobs, KernelError> {
    kernels::score_tokens(logits, targets, num_logprobs, mode)
}

/// Scores the tokens that a request names for positions of its prompt.
///
/// # Shapes
/// - `logits`: `[n, vocab_size]` float32
/// - `token_ids`: `[n, columns]` i32, what may follow each position; -1 scores -inf
/// - result: `[n, columns]` float32
///
/// # Errors
/// [`KernelError`] if the shapes do not fit.
pub fn prompt_token_scores(
    logits: &Array,
    token_ids: &Array,
    mode: LogprobsMode,
) -> Result<Array, KernelError> {
    kernels::score_token_ids(logits, token_ids, mode)
}
