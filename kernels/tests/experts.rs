//! Mixtures of experts: parity with the references, independence of the batch, errors.

mod support;

#[path = "../dispatch/cases.rs"]
mod dispatch_cases;
#[path = "../dispatch/reference.rs"]
mod dispatch_reference;
#[path = "../expert_linear/cases.rs"]
mod expert_linear_cases;
#[path = "../linear/reference.rs"]
mod linear_reference;
#[path = "../route/cases.rs"]
mod route_cases;
#[path = "../route/reference.rs"]
mod route_reference;

use metal_rpc_kernels::{
    Dispatched, GroupRank, KernelError, QuantizedFormat, QuantizedMatrix, RouteGroups, RouteParams,
    RouteScores, Routes, combine, dispatch, eval, expert_linear, linear, quantized_expert_linear,
    quantized_linear, route,
};
use mlx_rs::{Array, Dtype, ops::indexing::IndexOp};
use route_reference::Rule;
use support::{FLOATS, Random, array, assert_close, bits, f32s, i32s, int, ints, rounded};

fn params(rule: &Rule) -> RouteParams {
    RouteParams {
        experts_per_token: rule.k,
        scores: match rule.sigmoid {
            true => RouteScores::Sigmoid,
            false => RouteScores::Softmax,
        },
        groups: rule.groups.map(|(num_groups, kept, deciding)| RouteGroups {
            num_groups,
            kept,
            rank: match deciding {
                1 => GroupRank::Best,
                _ => GroupRank::BestTwo,
            },
        }),
        normalize: rule.normalize,
        scale: rule.scale,
    }
}

#[test]
fn routes_are_those_of_the_reference() {
    let mut random = Random::new(30);
    for (num_experts, corrected, rule) in route_cases::cases() {
        for tokens in [1, 7, 70] {
            let logits: Vec<f32> = random.units(tokens * num_experts);
            let logits: Vec<f32> = logits.iter().map(|logit| logit * 4.0).collect();
            let correction = random.units(if corrected { num_experts } else { 0 });
            let correction_array = array(&correction, &[correction.len()]);
            let routes = route(
                &array(&logits, &[tokens, num_experts]),
                corrected.then_some(&correction_array),
                &params(&rule),
            );
            let routes = routes.expect("fits");
            let experts = i32s(&routes.experts);
            let weights = f32s(&routes.weights);
            for (token, logits) in logits.chunks(num_experts).enumerate() {
                let (chosen, expected) = route_reference::route(logits, &correction, &rule);
                let range = token * rule.k..(token + 1) * rule.k;
                let what = format!("route {num_experts} experts {rule:?} token {token}");
                assert_eq!(experts[range.clone()], ints(&chosen), "{what}");
                let tolerances: Vec<f64> = expected.iter().map(|weight| weight * 2e-6).collect();
                assert_close(&what, &weights[range], &expected, &tolerances);
            }
        }
    }
}

#[test]
fn of_equal_ranks_the_lower_expert_wins_and_nan_comes_last() {
    let logits = [
        [1.0, 2.0, 2.0, 1.0, 2.0, 2.0],
        [0.0; 6],
        [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0, 1.0, 3.0],
        [f32::NAN, 0.0, 1.0, f32::NAN, 2.0, 3.0],
    ];
    let params = RouteParams {
        experts_per_token: 3,
        scores: RouteScores::Sigmoid,
        groups: None,
        normalize: false,
        scale: 1.0,
    };
    let choose = |logits: &[f32], params: &RouteParams| {
        let logits = array(logits, &[logits.len() / 6, 6]);
        i32s(&route(&logits, None, params).expect("fits").experts)
    };
    let expected = [[1, 2, 4], [0, 1, 2], [5, 1, 3], [5, 4, 2]];
    for (row, expected) in logits.iter().zip(expected) {
        assert_eq!(choose(row, &params), expected);
    }
    let of_nothing = choose(&[f32::NAN; 6], &params);
    assert!(of_nothing.iter().all(|expert| (0..6).contains(expert)));
    let groups = RouteGroups {
        num_groups: 3,
        kept: 2,
        rank: GroupRank::BestTwo,
    };
    let grouped = RouteParams {
        groups: Some(groups),
        ..params
    };
    assert_eq!(choose(&logits[1], &grouped), [0, 1, 2]);
    assert_eq!(choose(&logits[0], &grouped), [1, 4, 5]);
}

/// `tokens * k` experts, each token's all different.
fn random_experts(random: &mut Random, tokens: usize, num_experts: usize, k: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..int(num_experts)).collect();
    let mut experts = Vec::new();
    for _ in 0..tokens {
        random.shuffle(&mut all);
        experts.extend_from_slice(&all[..k]);
    }
    experts
}

#[test]
fn rows_stand_in_the_order_of_their_experts_and_come_back_weighed() {
    let mut random = Random::new(31);
    for (tokens, num_experts, k, dim) in dispatch_cases::SHAPES {
        let what = format!("{tokens} tokens, {k} of {num_experts} experts, {dim} wide");
        let experts = random_experts(&mut random, tokens, num_experts, k);
        let x = random.units(tokens * dim);
        let experts_array = Array::from_slice(&experts, &ints(&[tokens, k]));
        let Dispatched { rows, groups } =
            dispatch(&array(&x, &[tokens, dim]), &experts_array, int(num_experts)).expect(&what);
        let (token_of, _) = dispatch_reference::dispatch(&experts, k, int(num_experts));
        let expected: Vec<f32> = token_of
            .iter()
            .flat_map(|token| &x[token * dim..][..dim])
            .copied()
            .collect();
        assert_eq!(f32s(&rows), expected, "{what}");

        // Every row gets its own values now: the number of its place among the experts' rows.
        let values = random.units(tokens * k * dim);
        let weights = random.units(tokens * k);
        let routes = Routes {
            experts: experts_array,
            weights: array(&weights, &[tokens, k]),
        };
        let y = combine(&array(&values, &[tokens * k, dim]), &groups, &routes).expect(&what);
        let y = f32s(&y);
        for token in 0..tokens {
            let mut mine: Vec<usize> = (0..tokens * k).filter(|&r| token_of[r] == token).collect();
            // Rows of a token ascend with its experts; weights are in the order of its routes.
            let chosen = &experts[token * k..][..k];
            let mut order: Vec<usize> = (0..k).collect();
            order.sort_by_key(|&index| chosen[index]);
            let mut place = vec![0; k];
            for (row, index) in mine.drain(..).zip(order) {
                place[index] = row;
            }
            let rows: Vec<&[f32]> = place
                .iter()
                .map(|row| &values[row * dim..][..dim])
                .collect();
            let (expected, tolerances) =
                dispatch_reference::combine(&rows, &weights[token * k..][..k]);
            assert_close(&what, &y[token * dim..][..dim], &expected, &tolerances);
        }
    }
}

/// Groups of these sizes, one expert a token.
fn groups_of(rows: &[usize], inputs: usize, x: &[f32]) -> Dispatched {
    let experts: Vec<i32> = rows
        .iter()
        .enumerate()
        .flat_map(|(expert, &count)| vec![int(expert); count])
        .collect();
    let tokens = experts.len();
    let experts = Array::from_slice(&experts, &ints(&[tokens, 1]));
    dispatch(&array(x, &[tokens, inputs]), &experts, int(rows.len())).expect("fits")
}

#[test]
fn every_row_meets_its_expert_and_gets_the_bits_of_a_linear_layer() {
    let mut random = Random::new(32);
    for dtype in FLOATS {
        for case in expert_linear_cases::CASES {
            let (inputs, outputs) = (case.inputs, case.outputs);
            let (num_experts, num_rows) = (case.rows.len(), case.rows.iter().sum::<usize>());
            let x = random.units(num_rows * inputs);
            let shape = [num_experts, outputs, inputs];
            let (w, weight) = rounded(&random.units(shape.iter().product()), &shape, dtype);
            let (b, bias) = rounded(&random.units(shape[0] * outputs), &shape[..2], dtype);
            let Dispatched { rows, groups } = groups_of(case.rows, inputs, &x);
            let what = format!("expert_linear {dtype:?} {case:?}");
            let y = expert_linear(&rows, &groups, &w, case.bias.then_some(&b)).expect(&what);
            let y = f32s(&y);
            let mut first = 0;
            for (expert, &count) in case.rows.iter().enumerate() {
                let x = &x[first * inputs..][..count * inputs];
                let y = &y[first * outputs..][..count * outputs];
                let weight = &weight[expert * outputs * inputs..][..outputs * inputs];
                let bias = case.bias.then_some(&bias[expert * outputs..][..outputs]);
                let (expected, tolerance) = linear_reference::linear(x, weight, bias, inputs);
                assert_close(&what, y, &expected, &tolerance);
                let x = array(x, &[count, inputs]);
                let bias = case.bias.then(|| b.index(int(expert)));
                let alone = linear(&x, &w.index(int(expert)), bias.as_ref()).expect(&what);
                assert_eq!(bits(y), bits(&f32s(&alone)), "{what}, expert {expert}");
                first += count;
            }
        }
    }
}

#[test]
fn quantised_experts_get_the_bits_of_their_own_matrices() {
    let mut random = Random::new(34);
    let (rows, inputs, outputs) = ([3, 0, 1, 20], 96, 40);
    let x = random.units(24 * inputs);
    let Dispatched {
        rows: sorted,
        groups,
    } = groups_of(&rows, inputs, &x);
    let (b, _) = rounded(&random.units(4 * outputs), &[4, outputs], Dtype::Float32);
    for format in [
        QuantizedFormat::Mxfp4,
        QuantizedFormat::Affine {
            bits: 4,
            group_size: 32,
        },
    ] {
        let words = inputs / 32 * format.bits().unsigned_abs() as usize;
        let mut words = |num_rows: usize| -> Vec<u32> {
            let words = (0..num_rows * words).map(|_| random.bits() >> 32);
            words
                .map(|word| u32::try_from(word).expect("32 bits"))
                .collect()
        };
        let matrix = |words: &[u32], num_rows: usize| {
            let packed = Array::from_slice(words, &ints(&[num_rows, words.len() / num_rows]));
            let shape = ints(&[num_rows, inputs / 32]);
            let groups = num_rows * inputs / 32;
            let (scales, biases) = match format {
                // 2^-2.
                QuantizedFormat::Mxfp4 => (Array::from_slice(&vec![125_u8; groups], &shape), None),
                QuantizedFormat::Affine { .. } => (
                    Array::from_slice(&vec![0.25_f32; groups], &shape),
                    Some(Array::from_slice(&vec![-2.0_f32; groups], &shape)),
                ),
            };
            QuantizedMatrix::new(format, packed, scales, biases).expect("fits")
        };
        let all = words(4 * outputs);
        let stack = matrix(&all, 4 * outputs);
        let y = quantized_expert_linear(&sorted, &groups, &stack, Some(&b)).expect("fits");
        let y = f32s(&y);
        let mut first = 0;
        for (expert, count) in rows.into_iter().enumerate() {
            let words = &all[all.len() / 4 * expert..][..all.len() / 4];
            let x = array(&x[first * inputs..][..count * inputs], &[count, inputs]);
            let bias = b.index(int(expert));
            let alone = quantized_linear(&x, &matrix(words, outputs), Some(&bias)).expect("fits");
            let y = &y[first * outputs..][..count * outputs];
            assert_eq!(bits(y), bits(&f32s(&alone)), "{format:?} {expert}");
            first += count;
        }
    }
}

/// What a layer computes for some tokens, as bits.
fn layer(logits: &[f32], x: &[f32], weight: &Array) -> Vec<u32> {
    let [num_experts, _, dim] = *weight.shape() else {
        panic!("three axes")
    };
    let tokens = x.len() / dim.unsigned_abs() as usize;
    let params = RouteParams {
        experts_per_token: 3,
        scores: RouteScores::Softmax,
        groups: None,
        normalize: true,
        scale: 1.0,
    };
    let logits = Array::from_slice(logits, &[int(tokens), num_experts]);
    let routes = route(&logits, None, &params).expect("fits");
    let x = Array::from_slice(x, &[int(tokens), dim]);
    let Dispatched { rows, groups } = dispatch(&x, &routes.experts, num_experts).expect("fits");
    let rows = expert_linear(&rows, &groups, weight, None).expect("fits");
    bits(&f32s(&combine(&rows, &groups, &routes).expect("fits")))
}

#[test]
fn a_token_does_not_depend_on_the_batch() {
    let mut random = Random::new(33);
    let (num_experts, dim) = (5, 84);
    let (weight, _) = rounded(
        &random.units(num_experts * dim * dim),
        &[num_experts, dim, dim],
        Dtype::Bfloat16,
    );
    // Enough that an expert has rows for both ways through the product.
    let tokens = 60;
    let (logits, x) = (
        random.units(tokens * num_experts),
        random.units(tokens * dim),
    );
    let part = |first: usize, len: usize| {
        layer(
            &logits[first * num_experts..][..len * num_experts],
            &x[first * dim..][..len * dim],
            &weight,
        )
    };
    let whole = part(0, tokens);
    for len in [1, 2, 7, 25] {
        for first in (0..=tokens - len).step_by(len) {
            assert_eq!(
                part(first, len),
                whole[first * dim..][..len * dim],
                "{len} from {first}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape_of = |result: Result<Array, KernelError>| match result {
        Err(KernelError::Shape { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    let x = array(&[1.0; 8], &[2, 4]);
    let experts = Array::from_slice(&[0, 1], &[2, 1]);
    let Dispatched { rows, groups } = dispatch(&x, &experts, 3).expect("fits");
    let ones = |shape: &[usize]| array(&vec![1.0; shape.iter().product()], shape);
    let bad_rows = expert_linear(&ones(&[3, 4]), &groups, &ones(&[3, 5, 4]), None);
    assert_eq!(shape_of(bad_rows), "x");
    assert_eq!(
        shape_of(expert_linear(&rows, &groups, &ones(&[2, 5, 4]), None)),
        "weight"
    );
    let bias = ones(&[3, 4]);
    let bad_bias = expert_linear(&rows, &groups, &ones(&[3, 5, 4]), Some(&bias));
    assert_eq!(shape_of(bad_bias), "bias");
    let params = RouteParams {
        experts_per_token: 4,
        scores: RouteScores::Softmax,
        groups: None,
        normalize: true,
        scale: 1.0,
    };
    let too_many = route(&ones(&[1, 3]), None, &params);
    assert!(matches!(too_many, Err(KernelError::Value { .. })));
    let groups = RouteGroups {
        num_groups: 2,
        kept: 1,
        rank: GroupRank::Best,
    };
    let uneven = RouteParams {
        experts_per_token: 1,
        groups: Some(groups),
        ..params
    };
    let uneven = route(&ones(&[1, 3]), None, &uneven);
    assert!(matches!(uneven, Err(KernelError::Value { .. })));
    // Values show when the result is evaluated, and the stream goes on.
    let stray = dispatch(&x, &Array::from_slice(&[0, 3], &[2, 1]), 3).expect("fits");
    let message = eval([&stray.rows]).expect_err("out of range").to_string();
    assert!(message.contains("expert 3 is not one of 3"), "{message}");
    assert_eq!(f32s(&rows), [1.0; 8]);
}
