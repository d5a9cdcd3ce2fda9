//! What a draw depends on, and what it does not: seeds, batches, histories, broken logits.

use metal_rpc_kernels::{self as kernels, KernelError, eval};
use metal_rpc_protocol::SamplingParams;
use metald::sampler::{LogprobsMode, SampleRow, sample};
use mlx_rs::Array;

const MODE: LogprobsMode = LogprobsMode::RawLogprobs;

fn dim(size: usize) -> i32 {
    i32::try_from(size).expect("a small array")
}

/// Deterministic logits: a counter through a mixing function, about normal with this deviation.
fn logits(seed: u64, len: usize, deviation: f32) -> Vec<f32> {
    let uniform = |i: u64| {
        let mut x = (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        f32::from(u16::try_from((x ^ x >> 29) >> 48).expect("16 bits")) / 65536.0
    };
    let value = |i: u64| (0..4).map(|part| uniform(4 * i + part) - 0.5).sum::<f32>();
    (0..len as u64)
        .map(|i| value(i) * 1.7 * deviation)
        .collect()
}

fn row(params: &SamplingParams, seed: u64, num_tokens: u32) -> SampleRow<'_> {
    SampleRow {
        params,
        seed,
        table_offset: 0,
        num_prompt_tokens: 0,
        num_tokens,
        grammar: None,
    }
}

/// Samples rows of equal length against the token table.
fn tokens(logits: &[Vec<f32>], rows: &[SampleRow<'_>], table: &Array) -> Vec<i32> {
    let shape = [dim(logits.len()), dim(logits[0].len())];
    let logits = Array::from_slice(&logits.concat(), &shape);
    let sampled = sample(&logits, rows, table, MODE).expect("sampled");
    eval([&sampled.token_ids]).expect("the pass runs");
    kernels::to_vec_i32(&sampled.token_ids).expect("tokens")
}

fn table() -> Array {
    let history: Vec<i32> = (0..64).map(|i| i * 7 % 50).collect();
    Array::from_slice(&history, &[64])
}

/// Parameters that between them use every part of the sampler.
fn mixed_params() -> Vec<SamplingParams> {
    let default = SamplingParams::default;
    let greedy = SamplingParams {
        temperature: 0.0,
        ..default()
    };
    vec![
        greedy.clone(),
        default(),
        SamplingParams {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.9,
            ..default()
        },
        SamplingParams {
            top_p: 0.95,
            logprobs: Some(5),
            ..default()
        },
        SamplingParams {
            min_p: 0.01,
            repetition_penalty: 1.2,
            ..default()
        },
        SamplingParams {
            frequency_penalty: 0.5,
            presence_penalty: 0.3,
            ..greedy.clone()
        },
        SamplingParams {
            bad_words_token_ids: vec![vec![3], vec![7, 9]],
            ..default()
        },
        SamplingParams {
            allowed_token_ids: Some(vec![4, 5, 600]),
            ..default()
        },
        SamplingParams {
            logit_bias: vec![(17, 30.0)],
            logprobs: Some(0),
            ..greedy
        },
    ]
}

/// Chi-square of the counts of draws against probabilities; bins of little weight are joined.
fn chi_square(counts: &[u32], probabilities: &[f64]) -> (f64, usize) {
    let draws = f64::from(counts.iter().sum::<u32>());
    let (mut statistic, mut bins) = (0.0, 0);
    let (mut observed, mut expected) = (0.0, 0.0);
    for (&count, probability) in counts.iter().zip(probabilities) {
        observed += f64::from(count);
        expected += probability * draws;
        if expected >= 10.0 {
            statistic += (observed - expected).powi(2) / expected;
            bins += 1;
            (observed, expected) = (0.0, 0.0);
        }
    }
    (statistic, bins)
}

#[test]
fn draws_follow_the_distribution() {
    // Goal: the draw is fair. Method: chi-square of 20,000 draws with fixed seeds against the
    // reported processed log probabilities, which the golden test holds against vLLM's.
    const DRAWS: usize = 20_000;
    let vocab_size = 1200; // More than one block of the inverse CDF.
    let logits = logits(1, vocab_size, 3.0);
    let cases = [
        SamplingParams::default(),
        SamplingParams {
            temperature: 0.6,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_k: 30,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: 0.8,
            ..SamplingParams::default()
        },
        SamplingParams {
            min_p: 0.1,
            top_p: 0.99,
            temperature: 1.5,
            ..SamplingParams::default()
        },
    ];
    for params in cases {
        let params = SamplingParams {
            logprobs: Some(-1),
            ..params
        };
        let logprobs = processed(&logits, &params);
        let probabilities: Vec<f64> = logprobs.iter().map(|&p| f64::from(p).exp()).collect();
        let params = SamplingParams {
            logprobs: None,
            ..params
        };
        let mut counts = vec![0; vocab_size];
        // One seed at many positions, and many seeds at one position.
        for half in 0..2u64 {
            let rows: Vec<_> = (0..DRAWS as u64 / 2)
                .map(|i| match half {
                    0 => row(&params, 0x5eed, u32::try_from(i).expect("small")),
                    _ => row(&params, i, 3),
                })
                .collect();
            let logits = Array::from_slice(&logits, &[1, dim(vocab_size)]);
            for rows in rows.chunks(500) {
                let logits =
                    mlx_rs::ops::broadcast_to(&logits, &[dim(rows.len()), dim(vocab_size)])
                        .expect("one row, many times");
                let sampled = sample(&logits, rows, &table(), MODE).expect("sampled");
                eval([&sampled.token_ids]).expect("the pass runs");
                for token in kernels::to_vec_i32(&sampled.token_ids).expect("tokens") {
                    counts[usize::try_from(token).expect("a token")] += 1;
                }
            }
        }
        for (token, &count) in counts.iter().enumerate() {
            assert!(
                count == 0 || probabilities[token] > 0.0,
                "{params:?} drew masked {token}"
            );
        }
        let (statistic, bins) = chi_square(&counts, &probabilities);
        // The statistic has mean `bins` and variance `2 bins`; five deviations are one in 10^6.
        let limit = bins as f64 + 5.0 * (2.0 * bins as f64).sqrt();
        assert!(bins > 5, "{params:?}: {bins} bins are no test");
        assert!(
            statistic < limit,
            "{params:?}: chi-square {statistic} of {bins} bins"
        );
    }
}

/// The distribution that a row is drawn by, by token.
fn processed(logits: &[f32], params: &SamplingParams) -> Vec<f32> {
    let array = Array::from_slice(logits, &[1, dim(logits.len())]);
    let mode = LogprobsMode::ProcessedLogprobs;
    let sampled = sample(&array, &[row(params, 0, 0)], &table(), mode).expect("sampled");
    let scores = sampled.logprobs.expect("asked for");
    eval([&scores.token_ids, &scores.logprobs]).expect("the pass runs");
    let mut by_token = vec![0.0; logits.len()];
    let ids = kernels::to_vec_i32(&scores.token_ids).expect("ids");
    let values = kernels::to_vec_f32(&scores.logprobs).expect("values");
    for (id, value) in ids.into_iter().zip(values).skip(1) {
        by_token[usize::try_from(id).expect("an id")] = value;
    }
    by_token
}

#[test]
fn a_row_gets_the_same_token_alone_and_in_any_batch() {
    let params = mixed_params();
    let rows: Vec<_> = (0..40u32)
        .map(|i| {
            row(
                &params[i as usize % params.len()],
                u64::from(i) * 77,
                10 + i % 20,
            )
        })
        .collect();
    let all: Vec<_> = (0..40).map(|i| logits(i, 5000, 2.0)).collect();
    let together = tokens(&all, &rows, &table());
    assert!(together.iter().all(|&token| (0..5000).contains(&token)));
    for (i, row) in rows.iter().enumerate() {
        let alone = tokens(&all[i..=i], &[*row], &table());
        assert_eq!(alone, together[i..=i], "row {i} alone");
    }
    let reversed = |values: &[Vec<f32>]| values.iter().rev().cloned().collect::<Vec<_>>();
    let rows: Vec<_> = rows.into_iter().rev().collect();
    let mut backwards = tokens(&reversed(&all), &rows, &table());
    backwards.reverse();
    assert_eq!(backwards, together);
}

#[test]
fn seed_and_position_alone_change_a_draw() {
    let params = SamplingParams::default();
    let logits = vec![logits(9, 3000, 1.0)];
    let draw = |seed, num_tokens| tokens(&logits, &[row(&params, seed, num_tokens)], &table())[0];
    let first: Vec<_> = (0..30).map(|position| draw(5, position)).collect();
    let again: Vec<_> = (0..30).map(|position| draw(5, position)).collect();
    let other: Vec<_> = (0..30).map(|position| draw(6, position)).collect();
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first.iter().any(|token| *token != first[0]));
    // The position counts output tokens, wherever the prompt ends and the table's row begins.
    let moved = SampleRow {
        table_offset: 11,
        num_prompt_tokens: 20,
        num_tokens: 27,
        ..row(&params, 5, 0)
    };
    assert_eq!(tokens(&logits, &[moved], &table())[0], first[7]);
}

#[test]
fn these_draws_never_change() {
    // A frontend that reconnects to another build continues its seeded requests.
    let params = SamplingParams::default();
    let logits = vec![vec![0.0; 1000]];
    let draw = |seed, position| tokens(&logits, &[row(&params, seed, position)], &table())[0];
    // The 1000 equal tokens make a draw floor(1000 * uniform), the uniform number being that of
    // Philox4x32-10 with the seed as key and the position as counter.
    let expected = [
        (0, 0, 399),
        (1, 0, 890),
        (0, 1, 972),
        (0xfedc_ba98_7654_3210, 1000, 343),
        (u64::MAX, 7, 430),
    ];
    for (seed, position, token) in expected {
        assert_eq!(
            draw(seed, position),
            token,
            "seed {seed}, position {position}"
        );
    }
}

#[test]
fn the_history_is_read_on_the_device() {
    // The last token of the history is still being computed when the row is compiled.
    let mut slots = kernels::reserve(&[16], mlx_rs::Dtype::Int32).expect("a token table");
    let params = SamplingParams {
        temperature: 0.0,
        frequency_penalty: 2.0,
        bad_words_token_ids: vec![vec![3, 2]],
        ..SamplingParams::default()
    };
    let array = Array::from_slice(&[0.0, 1.0, 2.0, 2.5], &[1, 4]);
    let mut drawn = Vec::new();
    for position in 0..4 {
        let rows = [row(&params, 0, position)];
        let sampled = sample(&array, &rows, &slots, MODE).expect("sampled");
        let slot = Array::from_slice(&[position.cast_signed()], &[1]);
        kernels::write_slots(&mut slots, &sampled.token_ids, &slot).expect("written");
        drawn.push(sampled.token_ids);
    }
    eval(&drawn).expect("the passes run");
    let tokens: Vec<_> = drawn
        .iter()
        .flat_map(|token| kernels::to_vec_i32(token).expect("a token"))
        .collect();
    // 3; then 2 is forbidden after 3, and 3 lost 2; then 2 is free; then 3 (0.5) beats the rest.
    assert_eq!(tokens, [3, 1, 2, 3]);
}

#[test]
fn a_row_without_a_token_leaves_the_others_alone() {
    let params = [0.0, 1.0].map(|temperature| SamplingParams {
        temperature,
        logprobs: Some(2),
        ..SamplingParams::default()
    });
    for params in &params {
        let good = logits(4, 100, 1.0);
        let mut nan = good.clone();
        nan[99] = f32::NAN;
        let none = vec![f32::NEG_INFINITY; 100];
        let rows = [row(params, 1, 2); 4];
        let sampled = tokens(&[good.clone(), nan, none, good], &rows, &table());
        assert_eq!(sampled[1..3], [-1, -1]);
        assert!(sampled[0] >= 0);
        assert_eq!(sampled[0], sampled[3]);
    }
    // An infinite logit has no softmax.
    let infinite = vec![vec![0.0, f32::INFINITY, 1.0]];
    assert_eq!(tokens(&infinite, &[row(&params[0], 0, 0)], &table()), [1]);
    assert_eq!(tokens(&infinite, &[row(&params[1], 0, 0)], &table()), [-1]);
}

#[test]
fn histories_outside_the_table_are_refused() {
    let params = SamplingParams {
        presence_penalty: 1.0,
        ..SamplingParams::default()
    };
    let logits = Array::from_slice(&[0.0, 1.0], &[1, 2]);
    let refuse = |row: SampleRow<'_>, name: &str| match sample(&logits, &[row], &table(), MODE) {
        Err(KernelError::Value { argument, .. }) => assert_eq!(argument, name),
        other => panic!("{row:?}: {other:?}"),
    };
    refuse(row(&params, 0, 65), "history");
    refuse(
        SampleRow {
            table_offset: 60,
            ..row(&params, 0, 5)
        },
        "history",
    );
    refuse(
        SampleRow {
            num_prompt_tokens: 6,
            ..row(&params, 0, 5)
        },
        "history",
    );
    refuse(
        SampleRow {
            table_offset: 1 << 33,
            ..row(&params, 0, 5)
        },
        "table_offset",
    );
    let rows = [row(&params, 0, 5); 2];
    let error = sample(&logits, &rows, &table(), MODE).expect_err("one row of logits for two");
    assert!(matches!(
        error,
        KernelError::Shape {
            argument: "logits",
            ..
        }
    ));
}
