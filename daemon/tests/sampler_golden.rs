//! The distribution before the draw against vLLM's own ops, on adversarial logits.
//!
//! The golden is made by `golden/make_sampler_golden.py`.

use metal_rpc_kernels::{self as kernels, eval};
use metal_rpc_protocol::SamplingParams;
use metald::sampler::{
    LogprobsMode, SampleRow, Sampled, prompt_logprobs, prompt_token_scores, sample,
};
use mlx_rs::Array;
use safetensors::SafeTensors;
use serde_json::Value;

/// Log probabilities are differences of logits (the same bits in both) and a logarithm of a sum of
/// some 75 powers, which are right to 2 ulp. Relative, for the logits of 1e30.
const TOLERANCE: f32 = 2e-6;

struct Golden {
    vocab_size: usize,
    /// `[num_rows, vocab_size]`
    logits: Vec<f32>,
    /// `[num_rows * params.len(), vocab_size]`
    processed: Vec<f32>,
    params: Vec<Value>,
    prompt: Vec<i32>,
    output: Vec<i32>,
    targets: Vec<i32>,
    /// `[num_rows, targets.len(), columns]`
    scores: Vec<f32>,
    /// `[num_rows, targets.len()]`
    ranks: Vec<i32>,
}

impl Golden {
    fn read() -> Self {
        let bytes = include_bytes!("golden/sampler.safetensors");
        let (_, header) = SafeTensors::read_metadata(bytes).expect("a safetensors file");
        let about = header
            .metadata()
            .as_ref()
            .expect("the file says how it was made");
        let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let words = |name: &str| -> Vec<u32> {
            let tensor = file.tensor(name).expect(name);
            let (words, rest) = tensor.data().as_chunks::<4>();
            assert!(rest.is_empty());
            words.iter().copied().map(u32::from_le_bytes).collect()
        };
        let floats = |name: &str| words(name).into_iter().map(f32::from_bits).collect();
        let ints = |name: &str| words(name).into_iter().map(u32::cast_signed).collect();
        let json = |name: &str| -> Value { serde_json::from_str(&about[name]).expect(name) };
        Self {
            vocab_size: file.tensor("logits").expect("logits").shape()[1],
            logits: floats("logits"),
            processed: floats("processed_logprobs"),
            params: json("params").as_array().expect("a list").clone(),
            prompt: list(&json("prompt")),
            output: list(&json("output")),
            targets: ints("targets"),
            scores: floats("scores"),
            ranks: ints("ranks"),
        }
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.logits.chunks(self.vocab_size)
    }

    /// The request's tokens, after some of another request.
    fn table(&self) -> (Array, usize) {
        let mut table = vec![60; 9];
        table.extend(self.prompt.iter().chain(&self.output));
        table.extend([61; 5]);
        (Array::from_slice(&table, &[dim(table.len())]), 9)
    }
}

fn list<T: TryFrom<i64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    let values = value.as_array().expect("a list").iter();
    values
        .map(|value| value.as_i64().expect("an integer"))
        .map(|value| T::try_from(value).expect("in range"))
        .collect()
}

fn dim(size: usize) -> i32 {
    i32::try_from(size).expect("a small array")
}

/// The parameters of a case, and the words of its grammar.
fn parameters(case: &Value) -> (SamplingParams, Option<Vec<i32>>) {
    let mut params = SamplingParams {
        logprobs: Some(-1),
        ..SamplingParams::default()
    };
    let mut grammar = None;
    for (name, value) in case.as_object().expect("an object") {
        let number = || value.as_f64().expect("a number");
        match name.as_str() {
            "temperature" => params.temperature = number(),
            "top_p" => params.top_p = number(),
            "min_p" => params.min_p = number(),
            "presence_penalty" => params.presence_penalty = number(),
            "frequency_penalty" => params.frequency_penalty = number(),
            "repetition_penalty" => params.repetition_penalty = number(),
            "top_k" => params.top_k = serde_json::from_value(value.clone()).expect("a count"),
            "min_tokens" => {
                params.min_tokens = serde_json::from_value(value.clone()).expect("a count");
            }
            "stop_token_ids" => params.stop_token_ids = list(value),
            "allowed_token_ids" => params.allowed_token_ids = Some(list(value)),
            "logit_bias" => {
                params.logit_bias = serde_json::from_value(value.clone()).expect("pairs");
            }
            "bad_words_token_ids" => {
                let words = value.as_array().expect("words").iter();
                params.bad_words_token_ids = words.map(list).collect();
            }
            "grammar" => grammar = Some(list(value)),
            _ => panic!("the golden has an unknown parameter, {name}"),
        }
    }
    (params, grammar)
}

/// The tables of a pass: tokens, and token ids and scores by row.
fn read(sampled: &Sampled) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let scores = sampled.logprobs.as_ref().expect("scores were asked for");
    eval([
        &sampled.token_ids,
        &scores.token_ids,
        &scores.logprobs,
        &scores.ranks,
    ])
    .expect("the pass runs");
    (
        kernels::to_vec_i32(&sampled.token_ids).expect("tokens"),
        kernels::to_vec_i32(&scores.token_ids).expect("token ids"),
        kernels::to_vec_f32(&scores.logprobs).expect("scores"),
    )
}

fn assert_close(actual: f32, expected: f32, what: &str) {
    // Equal infinities first: their difference is NaN.
    let close = actual == expected
        || (actual - expected).abs() <= TOLERANCE * (1.0 + expected.abs().max(actual.abs()));
    assert!(close, "{what}: {actual}, vLLM has {expected}");
}

#[test]
fn the_distribution_before_the_draw_is_vllms() {
    let golden = Golden::read();
    let parsed: Vec<_> = golden.params.iter().map(parameters).collect();
    let (table, table_offset) = golden.table();
    let num_prompt_tokens = u32::try_from(golden.prompt.len()).expect("short");
    let num_tokens = num_prompt_tokens + u32::try_from(golden.output.len()).expect("short");

    // All cases are one mixed batch.
    let mut rows = Vec::new();
    let mut logits = Vec::new();
    for row in golden.rows() {
        for (params, grammar) in &parsed {
            logits.extend_from_slice(row);
            rows.push(SampleRow {
                params,
                seed: rows.len() as u64,
                table_offset,
                num_prompt_tokens,
                num_tokens,
                grammar: grammar.as_deref(),
            });
        }
    }
    let logits = Array::from_slice(&logits, &[dim(rows.len()), dim(golden.vocab_size)]);
    let sampled = sample(&logits, &rows, &table, LogprobsMode::ProcessedLogprobs).expect("sampled");
    let (tokens, token_ids, scores) = read(&sampled);

    let columns = golden.vocab_size + 1;
    let expected = golden.processed.chunks(golden.vocab_size);
    for (case, (expected, &token)) in expected.zip(&tokens).enumerate() {
        let params = &golden.params[case % golden.params.len()];
        let what = format!("logits {}, {params}", case / golden.params.len());
        let is_greedy = rows[case].params.temperature == 0.0;
        let row = golden
            .rows()
            .nth(case / golden.params.len())
            .expect("a row");
        if row.iter().any(|logit| logit.is_nan()) {
            // vLLM may mask the NaN and go on; a model that makes one is broken all the same.
            assert_eq!(token, -1, "{what}: NaN among the logits");
            continue;
        }
        let has_nan = expected.iter().any(|logprob| logprob.is_nan());
        if has_nan && !(is_greedy && token >= 0) {
            assert_eq!(token, -1, "{what}: no distribution, no token");
            continue;
        }
        let token = usize::try_from(token).unwrap_or_else(|_| panic!("{what}: no token"));
        if has_nan {
            // A greedy row takes an infinite logit, as vLLM's argmax does.
            assert_eq!(row[token], f32::INFINITY, "{what}");
            continue;
        }
        assert!(
            expected[token] > f32::NEG_INFINITY,
            "{what}: {token} cannot be drawn"
        );
        let cells = (case * columns + 1)..(case + 1) * columns;
        let mut seen = vec![false; golden.vocab_size];
        for (&id, &actual) in token_ids[cells.clone()].iter().zip(&scores[cells]) {
            let id = usize::try_from(id).expect("a token id");
            assert!(
                !std::mem::replace(&mut seen[id], true),
                "{what}: {id} twice"
            );
            let kept = expected[id] > f32::NEG_INFINITY;
            assert_eq!(actual > f32::NEG_INFINITY, kept, "{what}: support at {id}");
            assert_close(actual, expected[id], &format!("{what}: token {id}"));
        }
    }
}

#[test]
fn scores_and_ranks_of_given_tokens_are_vllms() {
    let golden = Golden::read();
    let num_targets = golden.targets.len();
    let columns = golden.scores.len() / golden.ranks.len();
    let targets = Array::from_slice(&golden.targets, &[dim(num_targets)]);
    for (number, row) in golden.rows().enumerate() {
        if row
            .iter()
            .any(|logit| logit.is_nan() || *logit == f32::INFINITY)
            || row.iter().all(|&logit| logit == f32::NEG_INFINITY)
        {
            continue;
        }
        let logits = Array::from_slice(
            &row.repeat(num_targets),
            &[dim(num_targets), dim(row.len())],
        );
        let mode = LogprobsMode::RawLogprobs;
        let actual = prompt_logprobs(&logits, &targets, dim(columns) - 1, mode).expect("scored");
        eval([&actual.token_ids, &actual.logprobs, &actual.ranks]).expect("the pass runs");
        let ids = kernels::to_vec_i32(&actual.token_ids).expect("token ids");
        let scores = kernels::to_vec_f32(&actual.logprobs).expect("scores");
        let ranks = kernels::to_vec_i32(&actual.ranks).expect("ranks");
        let expected = &golden.scores[number * num_targets * columns..][..num_targets * columns];
        for (i, (&actual, &expected)) in scores.iter().zip(expected).enumerate() {
            assert_close(actual, expected, &format!("logits {number}, cell {i}"));
            // vLLM orders ties as it likes, so an id is checked by what it scores.
            let id = usize::try_from(ids[i]).expect("a token id");
            let likeliest = i / columns * columns + 1;
            let offset = scores[likeliest] - row[ids[likeliest].unsigned_abs() as usize];
            assert_close(
                actual,
                row[id] + offset,
                &format!("logits {number}, cell {i}, its id"),
            );
        }
        let expected = &golden.ranks[number * num_targets..][..num_targets];
        assert_eq!(ranks, expected, "ranks of logits {number}");
        assert!(ids.chunks(columns).map(|ids| &ids[0]).eq(&golden.targets));
        // The same tokens by name, all of them in one row; what is no token scores -inf.
        let mut named = golden.targets.clone();
        named.extend([-1, dim(golden.vocab_size), i32::MAX]);
        let row = Array::from_slice(row, &[1, dim(row.len())]);
        let named = Array::from_slice(&named, &[1, dim(named.len())]);
        let by_name = prompt_token_scores(&row, &named, mode).expect("scored");
        eval([&by_name]).expect("the pass runs");
        let mut expected: Vec<f32> = scores.iter().step_by(columns).copied().collect();
        expected.extend([f32::NEG_INFINITY; 3]);
        assert_eq!(kernels::to_vec_f32(&by_name).expect("scores"), expected);
    }
}
