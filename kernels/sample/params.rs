//! What one row of logits asks of the sampler, as plain numbers that travel as arrays.

/// Where a list of one row lies in [`SampleBatch::lists`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index of the first element.
    pub start: u32,
    /// Number of elements; none means that the row does not ask for it.
    pub len: u32,
}

impl Span {
    pub(crate) fn is_empty(self) -> bool {
        self.len == 0
    }

    pub(crate) fn of(self, lists: &[i32]) -> &[i32] {
        &lists[self.start as usize..][..self.len as usize]
    }
}

/// Where the tokens of a row's request lie in the token table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Index of the first token of the prompt.
    pub start: u32,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens of prompt and output.
    pub num_tokens: u32,
}

/// The parameters of one row. The default samples from the softmax of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; below [`GREEDY_TEMPERATURE`] the most likely token is taken.
    pub temperature: f32,
    /// Mass of the most likely tokens to keep; 1 keeps all.
    pub top_p: f32,
    /// Number of the most likely tokens to keep, and all that tie with the last; 0 keeps all.
    pub top_k: u32,
    /// Least probability to keep, relative to the most likely token; 0 keeps all.
    pub min_p: f32,
    /// Taken off the logit of each token that the output has.
    pub presence_penalty: f32,
    /// Taken off a token's logit for each time that the output has it.
    pub frequency_penalty: f32,
    /// Divides (multiplies, when negative) the logit of each token that prompt or output has.
    pub repetition_penalty: f32,
    /// Of the draw: the number is a function of it and of the output position alone.
    pub seed: u64,
    /// The request's tokens.
    pub history: History,
    /// How many of the most likely tokens to score; -1 for all; `None` scores nothing.
    pub num_logprobs: Option<i32>,
    /// Allowed tokens as vLLM's grammar bitmask: bit `t % 32` of word `t / 32`.
    pub grammar: Span,
    /// The only tokens allowed.
    pub allowed: Span,
    /// Words that must not be completed, each as its length and its tokens.
    pub bad_words: Span,
    /// Tokens that must not end the output yet.
    pub stop: Span,
    /// Pairs of a token and the bits of the f32 that is added to its logit.
    pub bias: Span,
    /// Tokens to score instead of the most likely ones.
    pub scored: Span,
    /// How long the request may think: the number of tokens, the lengths of the phrases that begin
    /// it, end it and are forced to end it, and the phrases one after the other.
    pub thinking: Span,
    /// The token to report in place of the one that is drawn.
    pub traced: Option<i32>,
}

/// Temperatures below this take the most likely token (vLLM's `_SAMPLING_EPS`).
pub const GREEDY_TEMPERATURE: f32 = 1e-5;

/// Stands for "score nothing" among the counts of scored tokens.
const NO_LOGPROBS: i32 = i32::MIN;

/// Stands for "the one that is drawn" among traced tokens.
const NOT_TRACED: i32 = -1;

/// Words of 32 bits that a row's parameters take.
pub const SAMPLE_WORDS: usize = 28;

impl Default for SampleParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            history: History::default(),
            num_logprobs: None,
            grammar: Span::default(),
            allowed: Span::default(),
            bad_words: Span::default(),
            stop: Span::default(),
            bias: Span::default(),
            scored: Span::default(),
            thinking: Span::default(),
            traced: None,
        }
    }
}

impl SampleParams {
    /// Whether the most likely token is taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_TEMPERATURE
    }

    /// Whether any penalty is on.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// Whether the row's tokens have to be read from the token table.
    #[must_use]
    pub fn needs_history(&self) -> bool {
        self.has_penalties() || !self.bad_words.is_empty() || !self.thinking.is_empty()
    }

    /// Whether the logits are drawn from (or maximised) as they are.
    pub(crate) fn keeps_logits(&self) -> bool {
        !self.needs_history()
            && [self.grammar, self.allowed, self.stop, self.bias]
                .iter()
                .all(|span| span.is_empty())
    }

    /// Whether scores of tokens are asked for.
    #[must_use]
    pub fn is_scored(&self) -> bool {
        self.num_logprobs.is_some() || !self.scored.is_empty()
    }

    /// Number of tokens that the output has, which is the position of the next one.
    pub(crate) fn output_position(&self) -> u32 {
        let history = self.history;
        history.num_tokens.saturating_sub(history.num_prompt_tokens)
    }

    /// Number of scores beside that of the sampled token.
    pub(crate) fn num_scores(&self, vocab_size: usize) -> usize {
        if !self.scored.is_empty() {
            return self.scored.len as usize;
        }
        self.num_logprobs.map_or(0, |count| {
            usize::try_from(count).unwrap_or(vocab_size).min(vocab_size)
        })
    }

    pub(crate) fn to_words(self) -> [i32; SAMPLE_WORDS] {
        let seed = self.seed.to_le_bytes();
        let history = self.history;
        let float = |value: f32| value.to_bits().cast_signed();
        let mut words = [0; SAMPLE_WORDS];
        words[..14].copy_from_slice(&[
            float(self.temperature),
            float(self.top_p),
            self.top_k.cast_signed(),
            float(self.min_p),
            float(self.presence_penalty),
            float(self.frequency_penalty),
            float(self.repetition_penalty),
            i32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]),
            i32::from_le_bytes([seed[4], seed[5], seed[6], seed[7]]),
            history.start.cast_signed(),
            history.num_prompt_tokens.cast_signed(),
            history.num_tokens.cast_signed(),
            self.num_logprobs.unwrap_or(NO_LOGPROBS),
            self.traced.unwrap_or(NOT_TRACED),
        ]);
        let spans = [
            self.grammar,
            self.allowed,
            self.bad_words,
            self.stop,
            self.bias,
            self.scored,
            self.thinking,
        ];
        for (pair, span) in words[14..].chunks_exact_mut(2).zip(spans) {
            pair.copy_from_slice(&[span.start.cast_signed(), span.len.cast_signed()]);
        }
        words
    }

    pub(crate) fn from_words(words: &[i32; SAMPLE_WORDS]) -> Self {
        let int = |i: usize| words[i].cast_unsigned();
        let float = |i: usize| f32::from_bits(int(i));
        let span = |i: usize| Span {
            start: int(i),
            len: int(i + 1),
        };
        Self {
            temperature: float(0),
            top_p: float(1),
            top_k: int(2),
            min_p: float(3),
            presence_penalty: float(4),
            frequency_penalty: float(5),
            repetition_penalty: float(6),
            seed: u64::from(int(7)) | u64::from(int(8)) << 32,
            history: History {
                start: int(9),
                num_prompt_tokens: int(10),
                num_tokens: int(11),
            },
            num_logprobs: Some(words[12]).filter(|&count| count != NO_LOGPROBS),
            traced: Some(words[13]).filter(|&token| token != NOT_TRACED),
            grammar: span(14),
            allowed: span(16),
            bad_words: span(18),
            stop: span(20),
            bias: span(22),
            scored: span(24),
            thinking: span(26),
        }
    }
}

/// The rows of one pass of the sampler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleBatch {
    /// The parameters of each row.
    pub rows: Vec<SampleParams>,
    /// What the rows' spans point into.
    pub lists: Vec<i32>,
}

impl SampleBatch {
    /// Whether every row draws from its logits as they are, and nothing is told about them.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let is_plain =
            |row: &SampleParams| row.keeps_logits() && !row.is_scored() && row.traced.is_none();
        self.rows.iter().all(is_plain)
    }

    /// The rows as [`sample_plain`](crate::sample_plain) takes them, [`SAMPLE_WORDS`] each.
    #[must_use]
    pub fn words(&self) -> Vec<i32> {
        self.rows.iter().flat_map(|row| row.to_words()).collect()
    }

    /// Appends a list.
    ///
    /// # Panics
    /// If the batch's lists have more than 2^32 elements.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = i32>) -> Span {
        let start = self.lists.len();
        self.lists.extend(values);
        let index = |value: usize| u32::try_from(value).expect("lists fit an u32");
        Span {
            start: index(start),
            len: index(self.lists.len() - start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_carry_every_field() {
        let mut span = 100;
        let mut next = || {
            span += 2;
            Span {
                start: span,
                len: span + 1,
            }
        };
        let params = SampleParams {
            temperature: 0.7,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            presence_penalty: -0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 1.1,
            seed: 0xfedc_ba98_7654_3210,
            history: History {
                start: u32::MAX,
                num_prompt_tokens: 7,
                num_tokens: 11,
            },
            num_logprobs: Some(-1),
            grammar: next(),
            allowed: next(),
            bad_words: next(),
            stop: next(),
            bias: next(),
            scored: next(),
            thinking: next(),
            traced: Some(4),
        };
        for params in [params, SampleParams::default()] {
            assert_eq!(SampleParams::from_words(&params.to_words()), params);
        }
    }
}
