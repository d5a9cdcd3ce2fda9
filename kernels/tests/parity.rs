//! Every kernel against its reference on its cases. Tolerances: each kernel's `contract.md`.

mod support;

#[path = "../act_mul/cases.rs"]
mod act_mul_cases;
#[path = "../act_mul/reference.rs"]
mod act_mul_reference;
#[path = "../argmax/cases.rs"]
mod argmax_cases;
#[path = "../argmax/reference.rs"]
mod argmax_reference;
#[path = "../reshape_and_cache/cases.rs"]
mod cache_cases;
#[path = "../reshape_and_cache/reference.rs"]
mod cache_reference;
#[path = "../linear/cases.rs"]
mod linear_cases;
#[path = "../linear/reference.rs"]
mod linear_reference;
#[path = "../rms_norm/cases.rs"]
mod rms_norm_cases;
#[path = "../rms_norm/reference.rs"]
mod rms_norm_reference;
#[path = "../rope/cases.rs"]
mod rope_cases;
#[path = "../rope/reference.rs"]
mod rope_reference;

use metal_rpc_kernels::{
    NO_TOKEN, PAD_SLOT, RopePairing, argmax, gather_slots, gelu_tanh_mul, linear,
    reshape_and_cache, rms_norm, rope, rows, scale, silu_mul, write_slots,
};
use mlx_rs::{Array, Dtype};
use support::{
    FLOATS, Random, array, array_i32, assert_close, attention::Batch, f32s, i32s, int, ints,
    rounded,
};

#[test]
fn linear_is_within_the_bound_of_its_sum() {
    let mut random = Random::new(1);
    for dtype in FLOATS {
        for case in linear_cases::cases() {
            let linear_cases::Case {
                rows,
                inputs,
                outputs,
                ..
            } = case;
            let x = random.units(rows * inputs);
            let (w, weight) = rounded(&random.units(outputs * inputs), &[outputs, inputs], dtype);
            let (b, bias) = rounded(&random.units(outputs), &[outputs], dtype);
            let y = linear(&array(&x, &[rows, inputs]), &w, case.bias.then_some(&b));
            let bias = case.bias.then_some(bias.as_slice());
            let (expected, tolerance) = linear_reference::linear(&x, &weight, bias, inputs);
            let what = format!("linear {dtype:?} {case:?}");
            assert_close(&what, &f32s(&y.expect(&what)), &expected, &tolerance);
        }
    }
}

#[test]
fn linear_of_nothing_is_nothing_or_zero() {
    let shapes = [(0, 8, 3), (2, 0, 3), (20, 0, 3), (2, 8, 0), (20, 8, 0)];
    for (rows, inputs, outputs) in shapes {
        let x = array(&vec![1.0; rows * inputs], &[rows, inputs]);
        let weight = array(&vec![1.0; outputs * inputs], &[outputs, inputs]);
        let y = linear(&x, &weight, None).expect("fits");
        assert_eq!(y.shape(), &[int(rows), int(outputs)]);
        assert_eq!(f32s(&y), vec![0.0; rows * outputs]);
    }
}

#[test]
fn linear_keeps_leading_axes_and_dtype_and_takes_any_strides() {
    let mut random = Random::new(2);
    let x = array(&random.units(2 * 3 * 40), &[2, 3, 40]);
    let (weight, flat) = rounded(&random.units(40 * 7), &[40, 7], Dtype::Float32);
    let expected = {
        // The transpose, made row-contiguous by hand.
        let rows: Vec<f32> = (0..7)
            .flat_map(|o| (0..40).map(move |i| (i, o)))
            .map(|(i, o)| flat[i * 7 + o])
            .collect();
        f32s(&linear(&x, &array(&rows, &[7, 40]), None).expect("fits"))
    };
    let y = linear(&x, &weight.t(), None).expect("fits");
    assert_eq!(y.shape(), &[2, 3, 7]);
    if support::is_cpu() {
        assert_eq!(f32s(&y), expected);
    } else {
        // A GPU's product of other strides is another one.
        let expected: Vec<f64> = expected.iter().copied().map(f64::from).collect();
        assert_close("linear of a transpose", &f32s(&y), &expected, &[1e-5]);
    }
    let half = x.as_dtype(Dtype::Bfloat16).expect("cast");
    let y = linear(&half, &weight.t(), None).expect("fits");
    assert_eq!(y.dtype(), Dtype::Bfloat16);
}

#[test]
fn paged_attention_is_close_to_its_reference() {
    let mut random = Random::new(3);
    for dtype in FLOATS {
        for (index, case) in support::paged_attention_cases::cases().iter().enumerate() {
            // Emulation takes its time: there each case has one dtype.
            if cfg!(feature = "emulation") && FLOATS[index % FLOATS.len()] != dtype {
                continue;
            }
            let batch = Batch::new(case, dtype, &mut random);
            let what = format!("paged_attention {dtype:?} {case:?}");
            let out = batch.attend(&batch.query, &batch.all()).expect(&what);
            assert_close(&what, &out, &batch.reference(), &[5e-6]);
        }
    }
}

/// Activations of the cache's dtype: what a GPU's matrix units take. The result is rounded to it.
#[test]
fn paged_attention_takes_activations_of_two_bytes() {
    let mut random = Random::new(40);
    for (dtype, ulp) in [
        (Dtype::Bfloat16, 1.0 / 128.0),
        (Dtype::Float16, 1.0 / 1024.0),
    ] {
        for case in support::paged_attention_cases::cases() {
            if case.head_dim % 8 != 0 || case.num_heads == 64 {
                continue;
            }
            let batch = Batch::new(&case, dtype, &mut random).rounded_queries();
            let what = format!("paged_attention {dtype:?} {case:?}");
            let out = batch
                .attend_as(dtype, &batch.query, &batch.all())
                .expect(&what);
            // Weights and results are rounded to the dtype, both below 1.
            assert_close(&what, &out, &batch.reference(), &[1.5 * ulp]);
        }
    }
}

#[test]
fn reshape_and_cache_rounds_like_mlx_and_touches_nothing_else() {
    let mut random = Random::new(4);
    for dtype in FLOATS {
        for (num_blocks, block_size, num_kv_heads, head_dim, num_tokens) in cache_cases::SHAPES {
            let row = num_kv_heads * head_dim;
            let num_slots = num_blocks * block_size;
            let hard = cache_cases::hard_values();
            let mut values = || -> Vec<f32> {
                let any = |random: &mut Random| match random.below(2) {
                    0 => hard[random.below(hard.len())],
                    _ => random.unit(),
                };
                (0..num_tokens * row).map(|_| any(&mut random)).collect()
            };
            let (key, value) = (values(), values());
            let mut slots: Vec<i32> = (0..int(num_slots)).collect();
            random.shuffle(&mut slots);
            slots.truncate(num_tokens);
            slots[num_tokens / 2] = PAD_SLOT;

            let shape = [num_blocks, block_size, num_kv_heads, head_dim];
            let old = random.units(num_slots * row);
            let (mut key_cache, mut expected_keys) = rounded(&old, &shape, dtype);
            let (mut value_cache, mut expected_values) = rounded(&old, &shape, dtype);
            let tokens = [num_tokens, num_kv_heads, head_dim];
            reshape_and_cache(
                &array(&key, &tokens),
                &array(&value, &tokens),
                &mut key_cache,
                &mut value_cache,
                &array_i32(&slots),
            )
            .expect("fits");
            for (rows, expected, cache) in [
                (&key, &mut expected_keys, &key_cache),
                (&value, &mut expected_values, &value_cache),
            ] {
                let (_, rows) = rounded(rows, &tokens, dtype);
                cache_reference::write_rows(&rows, &slots, row, expected);
                assert_eq!(
                    support::bits(&f32s(cache)),
                    support::bits(expected),
                    "{dtype:?}"
                );
            }
        }
    }
}

#[test]
fn slots_are_written_and_gathered() {
    let mut table = array_i32(&[10, 11, 12, 13, 14]);
    write_slots(
        &mut table,
        &array_i32(&[7, 8, 9]),
        &array_i32(&[4, PAD_SLOT, 0]),
    )
    .expect("fits");
    assert_eq!(i32s(&table), [9, 11, 12, 13, 7]);
    let tokens = Array::from_slice(&[1u32, 2], &[2]);
    write_slots(&mut table, &tokens, &array_i32(&[1, 1])).expect("fits");
    // The gather is built on a write that is not evaluated yet.
    let gathered = gather_slots(&table, &array_i32(&[4, 1, 1, 0])).expect("fits");
    assert_eq!(i32s(&gathered), [7, 2, 2, 9]);
}

#[test]
fn rms_norm_is_within_a_few_ulp() {
    let mut random = Random::new(5);
    for dtype in FLOATS {
        for (rows, dim) in rms_norm_cases::CASES {
            let x: Vec<f32> = random.units(rows * dim).iter().map(|x| x * 30.0).collect();
            let (w, weight) = rounded(&random.units(dim), &[dim], dtype);
            let y = rms_norm(&array(&x, &[rows, dim]), &w, 1e-5).expect("fits");
            let expected = rms_norm_reference::rms_norm(&x, &weight, f64::from(1e-5f32));
            let tolerance: Vec<f64> = expected.iter().map(|y| y.abs() * 1e-6).collect();
            assert_close(
                &format!("rms_norm {dtype:?} {rows}x{dim}"),
                &f32s(&y),
                &expected,
                &tolerance,
            );
        }
    }
}

/// Numbers for a gate: mostly between -20 and 20, and one far out.
fn gates_and_ups(random: &mut Random, rows: usize, intermediate: usize) -> Vec<f32> {
    let units = random.units(rows * 2 * intermediate);
    let mut x: Vec<f32> = units.iter().map(|x| x * 20.0).collect();
    x[0] = -100.0;
    x
}

#[test]
fn silu_mul_is_within_a_few_ulp() {
    let mut random = Random::new(6);
    for (rows, intermediate) in act_mul_cases::CASES {
        let x = gates_and_ups(&mut random, rows, intermediate);
        let y = silu_mul(&array(&x, &[rows, 2 * intermediate])).expect("fits");
        let expected = act_mul_reference::silu_mul(&x, intermediate);
        let tolerance: Vec<f64> = expected.iter().map(|y| y.abs() * 1e-6 + 1e-30).collect();
        assert_close(
            &format!("silu_mul {rows}x{intermediate}"),
            &f32s(&y),
            &expected,
            &tolerance,
        );
    }
}

#[test]
fn gelu_tanh_mul_is_within_a_few_ulp_of_its_exponential() {
    let mut random = Random::new(16);
    for (rows, intermediate) in act_mul_cases::CASES {
        // Also where the tanh has a slope.
        for scale in [1.0, 0.1] {
            let x = gates_and_ups(&mut random, rows, intermediate);
            let x: Vec<f32> = x.iter().map(|x| x * scale).collect();
            let y = gelu_tanh_mul(&array(&x, &[rows, 2 * intermediate])).expect("fits");
            let expected = act_mul_reference::gelu_tanh_mul(&x, intermediate);
            let gates = x
                .chunks(2 * intermediate)
                .flat_map(|row| &row[..intermediate]);
            let tolerance: Vec<f64> = expected
                .iter()
                .zip(gates)
                .map(|(y, gate)| {
                    let exponent = act_mul_reference::gelu_exponent(f64::from(*gate));
                    y.abs() * 1e-6 * (1.0 - exponent.min(0.0)) + 1e-30
                })
                .collect();
            assert_close(
                &format!("gelu_tanh_mul {rows}x{intermediate}"),
                &f32s(&y),
                &expected,
                &tolerance,
            );
        }
    }
}

/// A step that is built on a token that never was is run.
#[test]
fn rows_without_a_token_disturb_no_others() {
    let weight = array(&Random::new(18).units(6), &[3, 2]);
    let with = rows(&weight, &array_i32(&[2, NO_TOKEN, 0])).expect("fits");
    let without = rows(&weight, &array_i32(&[2, 0])).expect("fits");
    let (with, without) = (f32s(&with), f32s(&without));
    assert_eq!([&with[..2], &with[4..]].concat(), without);
    assert!(with[2..4].iter().all(|x| x.is_finite()));
}

#[test]
fn scale_is_exact() {
    let mut random = Random::new(17);
    for shape in [&[1][..], &[3, 7], &[40, 2048], &[0, 5]] {
        let x = random.units(shape.iter().product());
        let expected: Vec<f32> = x.iter().map(|x| x * 0.3).collect();
        assert_eq!(
            f32s(&scale(&array(&x, shape), 0.3).expect("fits")),
            expected
        );
    }
}

#[test]
fn rope_turns_by_exact_angles() {
    let mut random = Random::new(7);
    for case in rope_cases::CASES {
        let pairs = case.rotary_dim / 2;
        let inv_freq: Vec<f32> = (0..pairs)
            .map(|i| {
                case.theta.powf(
                    -f32::from(u16::try_from(i).expect("small"))
                        / f32::from(u16::try_from(pairs).expect("small")),
                )
            })
            .collect();
        let positions: Vec<i32> = (0..case.num_tokens)
            .map(|_| int(random.below(131_072)))
            .collect();
        let x = random.units(case.num_tokens * case.num_heads * case.head_dim);
        for (pairing, interleaved) in [
            (RopePairing::Halves, false),
            (RopePairing::Interleaved, true),
        ] {
            let y = rope(
                &array(&x, &[case.num_tokens, case.num_heads, case.head_dim]),
                &array_i32(&positions),
                &array(&inv_freq, &[pairs]),
                case.scale,
                pairing,
            )
            .expect("fits");
            let expected = rope_reference::rope(
                &x,
                &positions,
                &inv_freq,
                case.scale,
                case.head_dim,
                interleaved,
            );
            assert_close(
                &format!("rope {case:?} {pairing:?}"),
                &f32s(&y),
                &expected,
                &[1e-6],
            );
        }
    }
}

#[test]
fn argmax_is_the_first_of_the_greatest() {
    let mut random = Random::new(8);
    let mut rows = argmax_cases::rows();
    rows.extend((0..20).map(|_| random.units(2000)));
    for row in &rows {
        let token = argmax(&array(row, &[1, row.len()])).expect("fits");
        assert_eq!(i32s(&token), [int(argmax_reference::argmax(row))]);
    }
    // Many rows at once, enough to be shared by threads.
    let all: Vec<f32> = (0..50).flat_map(|_| random.units(4096)).collect();
    let expected: Vec<i32> = all
        .chunks(4096)
        .map(|row| int(argmax_reference::argmax(row)))
        .collect();
    let logits = Array::from_slice(&all, &ints(&[50, 4096]));
    assert_eq!(i32s(&argmax(&logits).expect("fits")), expected);
}
