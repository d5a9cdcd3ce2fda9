//! The sampler: from logits to token ids, and what is told about them. Contract: `contract.md`.

mod draw;
mod filter;
mod gpu;
mod lanes;
mod native;
mod params;
mod process;
mod scores;
mod thinking;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod reference;

use mlx_rs::{Array, Dtype};

pub use params::{GREEDY_TEMPERATURE, History, SAMPLE_WORDS, SampleBatch, SampleParams, Span};

use crate::{
    check::Arguments,
    element::FloatType,
    error::{KernelError, Result},
    ffi::Output,
    gpu::is_chosen,
    node::HostKernel,
    upload::upload,
};

const CHECK: Arguments = Arguments { kernel: "sample" };

/// What the reported numbers are (vLLM's `--logprobs-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogprobsMode {
    /// Log probabilities by the model's logits.
    #[default]
    RawLogprobs,
    /// The model's logits.
    RawLogits,
    /// Log probabilities by the logits that the token was drawn by.
    ProcessedLogprobs,
    /// The logits that the token was drawn by; -inf where it could not be drawn.
    ProcessedLogits,
}

impl LogprobsMode {
    /// The mode that vLLM calls `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw_logprobs" => Some(Self::RawLogprobs),
            "raw_logits" => Some(Self::RawLogits),
            "processed_logprobs" => Some(Self::ProcessedLogprobs),
            "processed_logits" => Some(Self::ProcessedLogits),
            _ => None,
        }
    }

    fn is_processed(self) -> bool {
        matches!(self, Self::ProcessedLogprobs | Self::ProcessedLogits)
    }

    fn normalizes(self) -> bool {
        matches!(self, Self::RawLogprobs | Self::ProcessedLogprobs)
    }
}

/// Scores of tokens, one row a position.
#[derive(Clone, Debug)]
pub struct TokenScores {
    /// `[rows, columns]` i32: the position's own token, then those reported beside it.
    pub token_ids: Array,
    /// `[rows, columns]` float32
    pub logprobs: Array,
    /// `[rows]` i32: how many tokens score at least as high as the position's own.
    pub ranks: Array,
}

impl TokenScores {
    /// All that has to be computed.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.token_ids, &self.logprobs, &self.ranks].into_iter()
    }
}

/// Samples a token from each row of a [plain](SampleBatch::is_plain) batch.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]` float32, bfloat16 or float16
/// - `params`: `[rows, SAMPLE_WORDS]` int32, [`SampleBatch::words`]
/// - result: `[rows]` i32, -1 where no token can be drawn
///
/// # Errors
/// [`KernelError`] if shapes and dtypes do not fit.
pub fn sample_plain(logits: &Array, params: &Array) -> Result<Array> {
    let logits_type = FloatType::of(CHECK.kernel, "logits", logits)?;
    check_shape(CHECK, logits)?;
    let shape = [logits.dim(0), dim(SAMPLE_WORDS)];
    CHECK.dims("params", params, &shape, "[rows, SAMPLE_WORDS]")?;
    CHECK.dtype("params", params, Dtype::Int32, "int32")?;
    if is_chosen()? {
        return gpu::sample(logits, logits_type, params);
    }
    let node = native::Sample {
        rows: CHECK.size(logits.dim(0)),
        vocab_size: CHECK.size(logits.dim(1)),
        mode: LogprobsMode::default(),
        columns: None,
    };
    let tokens = Output::Fresh {
        shape: &[logits.dim(0)],
        dtype: Dtype::Int32,
    };
    let logits = CHECK.as_f32("logits", logits)?;
    let [tokens] = node.add(&[&logits, params], [tokens])?;
    Ok(tokens)
}

/// Samples a token from each row.
///
/// A row's result is the same bits whatever other rows are in the batch and however many threads
/// share the work.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]` float32
/// - `token_table`: `[n]` i32; read by rows that [need their history](SampleParams::needs_history)
/// - result: `[rows]` i32, -1 where no token can be drawn; scores if any row asks for them
///
/// Rows with fewer scores than others are padded with token 0 at -inf.
///
/// # Errors
/// [`KernelError`] if shapes and dtypes do not fit, or a row's history lies outside the table.
///
/// # Source
/// vllm/v1/sample/sampler.py; the details are in `contract.md`.
pub fn sample(
    logits: &Array,
    batch: &SampleBatch,
    token_table: &Array,
    mode: LogprobsMode,
) -> Result<(Array, Option<TokenScores>)> {
    let vocab_size = check_logits(CHECK, logits)?;
    let rows = batch.rows.len();
    if CHECK.size(logits.shape()[0]) != rows {
        return Err(CHECK.shape(
            "logits",
            logits,
            "[rows, vocab_size] with the batch's `rows`",
        ));
    }
    let needs_table = batch.rows.iter().any(SampleParams::needs_history);
    if needs_table {
        check_histories(batch, token_table)?;
    }
    let params = upload(&batch.words(), &[dim(rows), dim(SAMPLE_WORDS)])?;
    if batch.is_plain() {
        return Ok((sample_plain(logits, &params)?, None));
    }
    // MLX has no array without elements to point at.
    let lists = if batch.lists.is_empty() {
        &[0][..]
    } else {
        &batch.lists
    };
    let lists = Array::from_slice(lists, &[dim(lists.len())]);
    let mut inputs = vec![logits, &params, &lists];
    if needs_table {
        inputs.push(token_table);
    }
    let scored = batch.rows.iter().filter(|row| row.is_scored());
    let node = native::Sample {
        rows,
        vocab_size,
        mode,
        columns: scored.map(|row| 1 + row.num_scores(vocab_size)).max(),
    };
    let row_shape = [dim(rows)];
    let tokens = Output::Fresh {
        shape: &row_shape,
        dtype: Dtype::Int32,
    };
    let Some(columns) = node.columns else {
        let [tokens] = node.add(&inputs, [tokens])?;
        return Ok((tokens, None));
    };
    let table_shape = [dim(rows), dim(columns)];
    let [token_ids, logprobs, ranks] = score_outputs(&table_shape, &row_shape);
    let [tokens, token_ids, logprobs, ranks] =
        node.add(&inputs, [tokens, token_ids, logprobs, ranks])?;
    let scores = TokenScores {
        token_ids,
        logprobs,
        ranks,
    };
    Ok((tokens, Some(scores)))
}

/// Scores the tokens that a prompt goes on with, and the most likely ones beside them.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]` float32
/// - `targets`: `[rows]` i32, the token that follows each position
/// - result: `1 + num_logprobs` columns; -1 stands for the whole vocabulary
///
/// # Errors
/// [`KernelError`] if shapes and dtypes do not fit.
pub fn score_tokens(
    logits: &Array,
    targets: &Array,
    num_logprobs: i32,
    mode: LogprobsMode,
) -> Result<TokenScores> {
    const CHECK: Arguments = Arguments {
        kernel: "score_tokens",
    };
    let vocab_size = check_logits(CHECK, logits)?;
    let rows = logits.shape()[0];
    CHECK.dims(
        "targets",
        targets,
        &[rows],
        "[rows] with the logits' `rows`",
    )?;
    CHECK.dtype("targets", targets, Dtype::Int32, "int32")?;
    let reported = usize::try_from(num_logprobs)
        .unwrap_or(vocab_size)
        .min(vocab_size);
    let node = native::ScoreTokens {
        rows: CHECK.size(rows),
        vocab_size,
        normalize: mode.normalizes(),
        columns: 1 + reported,
    };
    let (table_shape, row_shape) = ([rows, dim(1 + reported)], [rows]);
    let outputs = score_outputs(&table_shape, &row_shape);
    let [token_ids, logprobs, ranks] = node.add(&[logits, targets], outputs)?;
    Ok(TokenScores {
        token_ids,
        logprobs,
        ranks,
    })
}

/// Scores the tokens that each row names.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]` float32
/// - `token_ids`: `[rows, columns]` i32; what is no token of the vocabulary scores -inf
/// - result: `[rows, columns]` float32
///
/// # Errors
/// [`KernelError`] if shapes and dtypes do not fit.
pub fn score_token_ids(logits: &Array, token_ids: &Array, mode: LogprobsMode) -> Result<Array> {
    const CHECK: Arguments = Arguments {
        kernel: "score_token_ids",
    };
    let vocab_size = check_logits(CHECK, logits)?;
    let rows = logits.shape()[0];
    const RULE: &str = "[rows, columns] with the logits' `rows`";
    CHECK.ndim("token_ids", token_ids, 2, RULE)?;
    CHECK.dtype("token_ids", token_ids, Dtype::Int32, "int32")?;
    let shape = [rows, token_ids.shape()[1]];
    CHECK.dims("token_ids", token_ids, &shape, RULE)?;
    let node = native::ScoreTokenIds {
        rows: CHECK.size(rows),
        vocab_size,
        normalize: mode.normalizes(),
        columns: CHECK.size(shape[1]),
    };
    let scores = Output::Fresh {
        shape: &shape,
        dtype: Dtype::Float32,
    };
    let [scores] = node.add(&[logits, token_ids], [scores])?;
    Ok(scores)
}

/// The size of the vocabulary, which is not zero.
fn check_logits(check: Arguments, logits: &Array) -> Result<usize> {
    check.dtype("logits", logits, Dtype::Float32, "float32")?;
    check_shape(check, logits)
}

fn check_shape(check: Arguments, logits: &Array) -> Result<usize> {
    const RULE: &str = "[rows, vocab_size]";
    check.ndim("logits", logits, 2, RULE)?;
    match check.size(logits.shape()[1]) {
        0 => Err(check.shape("logits", logits, RULE)),
        vocab_size => Ok(vocab_size),
    }
}

fn check_histories(batch: &SampleBatch, token_table: &Array) -> Result<()> {
    CHECK.ndim("token_table", token_table, 1, "[n]")?;
    CHECK.dtype("token_table", token_table, Dtype::Int32, "int32")?;
    let len = CHECK.size(token_table.shape()[0]);
    let fits = |row: &SampleParams| {
        let history = row.history;
        let end = u64::from(history.start) + u64::from(history.num_tokens);
        history.num_prompt_tokens <= history.num_tokens && end <= len as u64
    };
    let mut readers = batch.rows.iter().filter(|row| row.needs_history());
    if readers.all(fits) {
        return Ok(());
    }
    Err(KernelError::Value {
        kernel: CHECK.kernel,
        argument: "history",
        rule: "within the token table, the prompt first",
    })
}

fn score_outputs<'a>(table: &'a [i32; 2], row: &'a [i32; 1]) -> [Output<'a>; 3] {
    let fresh = |shape, dtype| Output::Fresh { shape, dtype };
    [
        fresh(&table[..], Dtype::Int32),
        fresh(&table[..], Dtype::Float32),
        fresh(&row[..], Dtype::Int32),
    ]
}

fn dim(size: usize) -> i32 {
    i32::try_from(size).expect("dimensions of an array fit an i32")
}
