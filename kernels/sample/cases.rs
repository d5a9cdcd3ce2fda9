//! Random rows of the sampler, and what must hold of each.

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    LogprobsMode,
    native::Scratch,
    params::{History, SampleBatch, SampleParams, Span},
    reference,
};
use crate::NO_TOKEN;

/// One row with all it reads.
#[derive(Clone, Debug)]
pub(super) struct Case {
    logits: Vec<f32>,
    batch: SampleBatch,
    table: Vec<i32>,
}

/// Logits as models make them, and as they must not surprise: ties and masked tokens.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let value = || {
        prop_oneof![
            6 => -12.0f32..12.0,
            3 => (-4i8..4).prop_map(f32::from),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(-0.0),
        ]
    };
    prop_oneof![
        vec(value(), 1..400),
        vec(-0.01f32..0.01, 1..3000),
        (1usize..200).prop_map(|len| vec![1.5; len]),
        (1usize..200, 0usize..200).prop_map(|(len, at)| {
            let mut logits = vec![f32::NEG_INFINITY; len];
            logits[at % len] = -3.0;
            logits
        }),
    ]
}

/// Tokens, words and biases to choose lists from, before they are fitted to a vocabulary.
type Lists = (Vec<u32>, Vec<u32>, Vec<Vec<u32>>, Vec<(u32, f32)>, Vec<u32>);

fn lists() -> impl Strategy<Value = Lists> {
    let tokens = || vec(any::<u32>(), 0..6);
    (
        prop_oneof![2 => Just(vec![]), 1 => tokens()],
        prop_oneof![2 => Just(vec![]), 1 => tokens()],
        prop_oneof![2 => Just(vec![]), 1 => vec(vec(any::<u32>(), 1..3), 0..8)],
        prop_oneof![2 => Just(vec![]), 1 => vec((any::<u32>(), -100.0f32..100.0), 0..4)],
        prop_oneof![2 => Just(vec![]), 1 => vec(any::<u32>(), 100)],
    )
}

fn params() -> impl Strategy<Value = SampleParams> {
    let penalty = || select(vec![0.0, 0.0, 0.5, -1.5]);
    (
        select(vec![0.0, 1e-6, 0.1, 0.7, 1.0, 1.0, 2.0]),
        select(vec![
            0.0, 1e-6, 0.1, 0.25, 0.5, 0.9, 0.95, 0.999_999, 1.0, 1.0,
        ]),
        select(vec![0, 0, 1, 2, 5, 40, 128, 5000]),
        select(vec![0.0, 0.0, 1e-9, 0.05, 0.4, 1.0]),
        (penalty(), penalty(), select(vec![1.0, 1.0, 0.6, 1.3])),
        any::<u64>(),
    )
        .prop_map(
            |(temperature, top_p, top_k, min_p, penalties, seed)| SampleParams {
                temperature,
                top_p,
                top_k,
                min_p,
                presence_penalty: penalties.0,
                frequency_penalty: penalties.1,
                repetition_penalty: penalties.2,
                seed,
                ..SampleParams::default()
            },
        )
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let history = (0u32..3, 0u32..30, vec(any::<u32>(), 40..80));
    (logits(), params(), lists(), history).prop_map(|(logits, params, lists, history)| {
        let vocab_size = u32::try_from(logits.len()).expect("a small vocabulary");
        let fit = |token: u32| (token % vocab_size).cast_signed();
        let (allowed, stop, words, bias, grammar) = lists;
        let mut batch = SampleBatch::default();
        // A grammar that allows about half of the tokens, at least one.
        let words_of_mask = vocab_size.div_ceil(32) as usize;
        let mut mask: Vec<i32> = grammar.iter().map(|bits| bits.cast_signed()).collect();
        mask.truncate(words_of_mask);
        if let Some(first) = mask.first_mut() {
            *first |= 1;
            mask.resize(words_of_mask, 0);
        }
        let params = SampleParams {
            history: History {
                start: history.0,
                num_prompt_tokens: history.1,
                num_tokens: 35,
            },
            grammar: batch.push_list(mask),
            allowed: batch.push_list(allowed.into_iter().map(fit)),
            stop: batch.push_list(stop.into_iter().map(fit)),
            bad_words: batch.push_list(words.into_iter().flat_map(|word| {
                let len = i32::try_from(word.len()).expect("a short word");
                std::iter::once(len).chain(word.into_iter().map(fit))
            })),
            bias: batch.push_list(
                bias.into_iter()
                    .flat_map(|(token, bias)| [fit(token), bias.to_bits().cast_signed()]),
            ),
            ..params
        };
        batch.rows.push(params);
        Case {
            logits,
            batch,
            table: history.2.into_iter().map(fit).collect(),
        }
    })
}

impl Case {
    fn params(&self) -> &SampleParams {
        &self.batch.rows[0]
    }

    fn sample(&self, scratch: &mut Scratch) -> i32 {
        scratch.sample(&self.logits, self.params(), &self.batch.lists, &self.table)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_distribution_is_the_references(case in cases()) {
        let expected =
            reference::processed_logits(&case.logits, case.params(), &case.batch.lists, &case.table);
        let mut scratch = Scratch::default();
        let token = case.sample(&mut scratch);
        if expected.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            prop_assert_eq!(token, NO_TOKEN);
            return Ok(());
        }
        let mode = LogprobsMode::ProcessedLogits;
        let actual = scratch.scored(&case.logits, case.params(), &case.batch.lists, mode);
        for (token, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            prop_assert_eq!(actual, expected, "token {}", token);
        }
        let token = usize::try_from(token).expect("a token is drawn");
        prop_assert!(expected[token] > f32::NEG_INFINITY, "token {} is masked", token);
        if case.params().is_greedy() {
            let max = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(Some(token), expected.iter().position(|&logit| logit == max));
        }
    }

    #[test]
    fn a_row_does_not_see_the_rows_before_it(case in cases(), others in vec(cases(), 1..4)) {
        let alone = case.sample(&mut Scratch::default());
        let mut scratch = Scratch::default();
        for other in others {
            other.sample(&mut scratch);
            prop_assert_eq!(case.sample(&mut scratch), alone);
        }
    }

    #[test]
    fn a_nan_gives_no_token(case in cases(), at in any::<prop::sample::Index>()) {
        let mut case = case;
        let at = at.index(case.logits.len());
        case.logits[at] = f32::NAN;
        prop_assert_eq!(case.sample(&mut Scratch::default()), NO_TOKEN);
    }
}

/// Elements of the room for logits, for weights and for counts that a row made the sampler take.
fn room_taken(params: &SampleParams) -> [usize; 3] {
    let logits: Vec<f32> = (0..5000u16)
        .map(|i| f32::from(i * 7 % 5000) / 500.0)
        .collect();
    let (lists, table) = ([1 << 5 | 1 << 9], [3, 4]);
    let mut scratch = Scratch::default();
    assert_ne!(scratch.sample(&logits, params, &lists, &table), NO_TOKEN);
    let mode = LogprobsMode::RawLogprobs;
    assert_eq!(scratch.scored(&logits, params, &lists, mode).len(), 5000);
    scratch.room()
}

#[test]
fn a_row_pays_for_nothing_that_it_does_not_ask_for() {
    // Goal: a batch without a need pays for none of it. Method: the room that the work is done in
    // starts empty. The cases that do ask for something are the canary: they take room.
    let greedy = SampleParams {
        temperature: 0.0,
        ..SampleParams::default()
    };
    let check = |params: SampleParams, expected: [bool; 3]| {
        assert_eq!(
            room_taken(&params).map(|taken| taken > 0),
            expected,
            "{params:?}"
        );
    };
    check(greedy, [false; 3]);
    let filtered = SampleParams {
        seed: 3,
        top_k: 4,
        top_p: 0.5,
        min_p: 0.5,
        num_logprobs: Some(5),
        ..greedy
    };
    check(filtered, [false; 3]);

    let bound = SampleParams {
        grammar: Span { start: 0, len: 1 },
        ..greedy
    };
    check(bound, [true, false, false]);
    check(SampleParams::default(), [true, true, false]);
    let penalized = SampleParams {
        presence_penalty: 0.5,
        history: History {
            num_tokens: 2,
            ..History::default()
        },
        ..greedy
    };
    check(penalized, [true, false, true]);
}
