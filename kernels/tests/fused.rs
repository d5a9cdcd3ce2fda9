//! Kernels that do the work of several: close to their reference, and the bits of those several.

mod support;

#[path = "../add_rms_norm/cases.rs"]
mod add_rms_norm_cases;
#[path = "../add_rms_norm/reference.rs"]
mod add_rms_norm_reference;
#[path = "../rope_and_cache/cases.rs"]
mod rope_and_cache_cases;
#[path = "../rope_and_cache/reference.rs"]
mod rope_and_cache_reference;

use metal_rpc_kernels::{
    PAD_SLOT, QkNorm, QkvParams, RopePairing, RopeParams, add_rms_norm, data_ptr, eval,
    reshape_and_cache, rms_norm, rope, rope_and_cache,
};
use mlx_rs::{Array, Dtype};
use rope_and_cache_cases::Case;
use rope_and_cache_reference::Heads;
use support::{FLOATS, Random, array, array_i32, assert_close, bits, f32s, int, rounded};

const EPS: f32 = 1e-5;

#[test]
fn add_rms_norm_is_an_addition_and_a_norm() {
    let mut random = Random::new(30);
    for dtype in FLOATS {
        for (rows, dim) in add_rms_norm_cases::CASES {
            let shape = [rows, dim];
            let (x, residual) = (random.units(rows * dim), random.units(rows * dim));
            let (weight, weights) = rounded(&random.units(dim), &[dim], dtype);
            let (x_array, residual_array) = (array(&x, &shape), array(&residual, &shape));
            let (y, sum) = add_rms_norm(&x_array, &residual_array, &weight, EPS).expect("fits");
            let what = format!("add_rms_norm {dtype:?} {rows}x{dim}");
            let (expected, expected_sum) =
                add_rms_norm_reference::add_rms_norm(&x, &residual, &weights, f64::from(EPS));
            let tolerance: Vec<f64> = expected.iter().map(|y| y.abs() * 1e-6).collect();
            assert_close(&what, &f32s(&y), &expected, &tolerance);
            assert_eq!(bits(&f32s(&sum)), bits(&expected_sum), "{what}");

            let normed = rms_norm(&x_array.add(&residual_array).expect("adds"), &weight, EPS);
            assert_eq!(
                bits(&f32s(&y)),
                bits(&f32s(&normed.expect("fits"))),
                "{what}"
            );
        }
    }
}

#[test]
fn added_and_normalised_rows_do_not_depend_on_the_batch() {
    let mut random = Random::new(31);
    let dim = 1030;
    let (x, residual) = (random.units(60 * dim), random.units(60 * dim));
    let weight = array(&random.units(dim), &[dim]);
    let run = |x: &[f32], residual: &[f32]| {
        let shape = [x.len() / dim, dim];
        let results = add_rms_norm(&array(x, &shape), &array(residual, &shape), &weight, EPS);
        bits(&f32s(&results.expect("fits").0))
    };
    let alone = x.chunks(dim).zip(residual.chunks(dim));
    let alone: Vec<u32> = alone.flat_map(|(x, residual)| run(x, residual)).collect();
    assert_eq!(run(&x, &residual), alone);
}

/// A layer and a batch with random numbers in them.
struct Layer {
    case: Case,
    qkv: Vec<f32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    inv_freq: Vec<f32>,
    norms: [(Array, Vec<f32>); 2],
    dtype: Dtype,
}

const NUM_BLOCKS: usize = 8;
const BLOCK_SIZE: usize = 16;

impl Layer {
    fn new(case: Case, dtype: Dtype, random: &mut Random) -> Self {
        let width = (case.num_heads + 2 * case.num_kv_heads) * case.head_dim;
        let mut slots: Vec<i32> = (0..int(NUM_BLOCKS * BLOCK_SIZE)).collect();
        random.shuffle(&mut slots);
        slots.truncate(case.num_tokens);
        if case.num_tokens > 1 {
            slots[case.num_tokens / 2] = PAD_SLOT;
        }
        let dim = [case.head_dim];
        Self {
            case,
            qkv: random.units(case.num_tokens * width),
            positions: (0..case.num_tokens)
                .map(|_| int(random.below(131_072)))
                .collect(),
            slots,
            inv_freq: (0..case.rotary_dim / 2)
                .map(|_| random.unit().abs())
                .collect(),
            norms: [(); 2].map(|()| rounded(&random.units(case.head_dim), &dim, dtype)),
            dtype,
        }
    }

    fn pairing(&self) -> RopePairing {
        match self.case.interleaved {
            true => RopePairing::Interleaved,
            false => RopePairing::Halves,
        }
    }

    fn inv_freq(&self) -> Array {
        array(&self.inv_freq, &[self.inv_freq.len()])
    }

    fn params(&self) -> QkvParams {
        let [(query, _), (key, _)] = self.norms.clone();
        QkvParams {
            num_heads: int(self.case.num_heads),
            norm: self.case.norm.then_some(QkNorm {
                query,
                key,
                eps: EPS,
            }),
            rope: (self.case.rotary_dim > 0).then(|| RopeParams {
                inv_freq: self.inv_freq(),
                scale: 1.1,
                pairing: self.pairing(),
            }),
        }
    }

    /// Two caches of sevens.
    fn caches(&self) -> [Array; 2] {
        let shape = [
            NUM_BLOCKS,
            BLOCK_SIZE,
            self.case.num_kv_heads,
            self.case.head_dim,
        ];
        let sevens = vec![7.0; shape.iter().product()];
        [(); 2].map(|()| rounded(&sevens, &shape, self.dtype).0)
    }

    /// Bits of queries, keys and values through the fused kernel, for some tokens.
    fn fused(&self, tokens: std::ops::Range<usize>) -> [Vec<u32>; 3] {
        let width = self.qkv.len() / self.case.num_tokens;
        let qkv = &self.qkv[tokens.start * width..tokens.end * width];
        let [mut keys, mut values] = self.caches();
        let query = rope_and_cache(
            &array(qkv, &[tokens.len(), width]),
            &array_i32(&self.positions[tokens.clone()]),
            &array_i32(&self.slots[tokens]),
            &self.params(),
            [&mut keys, &mut values],
        );
        [query.expect("fits"), keys, values].map(|array| bits(&f32s(&array)))
    }

    /// The same through one kernel after the other.
    fn one_by_one(&self) -> [Vec<u32>; 3] {
        let case = self.case;
        let heads = [case.num_heads, case.num_kv_heads, case.num_kv_heads];
        let all: usize = heads.iter().sum();
        let mut first = 0;
        let [query, key, value] = heads.map(|heads| {
            let row = |token: usize| &self.qkv[(token * all + first) * case.head_dim..];
            let part: Vec<f32> = (0..case.num_tokens)
                .flat_map(|token| row(token)[..heads * case.head_dim].to_vec())
                .collect();
            first += heads;
            array(&part, &[case.num_tokens, heads, case.head_dim])
        });
        let mut turned = [(query, 0), (key, 1)].map(|(mut x, kind)| {
            if case.norm {
                x = rms_norm(&x, &self.norms[kind].0, EPS).expect("fits");
            }
            if case.rotary_dim > 0 {
                let positions = array_i32(&self.positions);
                x = rope(&x, &positions, &self.inv_freq(), 1.1, self.pairing()).expect("fits");
            }
            x
        });
        let [mut keys, mut values] = self.caches();
        let slots = array_i32(&self.slots);
        reshape_and_cache(&turned[1], &value, &mut keys, &mut values, &slots).expect("fits");
        turned[1] = keys;
        let [query, keys] = turned;
        [query, keys, values].map(|array| bits(&f32s(&array)))
    }
}

#[test]
fn rope_and_cache_gives_the_bits_of_its_parts() {
    let mut random = Random::new(32);
    for dtype in FLOATS {
        for case in rope_and_cache_cases::CASES {
            let layer = Layer::new(case, dtype, &mut random);
            let (fused, parts) = (layer.fused(0..case.num_tokens), layer.one_by_one());
            for (kind, (fused, part)) in ["queries", "keys", "values"]
                .iter()
                .zip(fused.iter().zip(&parts))
            {
                assert!(fused == part, "{kind} of {case:?} in {dtype:?}");
            }
        }
    }
}

#[test]
fn rope_and_cache_is_close_to_its_reference_and_does_not_depend_on_the_batch() {
    let mut random = Random::new(33);
    for case in rope_and_cache_cases::CASES {
        let layer = Layer::new(case, Dtype::Float32, &mut random);
        let [query, ..] = layer.fused(0..case.num_tokens);
        let heads = Heads {
            num_heads: case.num_heads,
            num_kv_heads: case.num_kv_heads,
            head_dim: case.head_dim,
            norm: case.norm.then(|| {
                let weights = [&layer.norms[0].1[..], &layer.norms[1].1[..]];
                (weights, f64::from(EPS))
            }),
            rope: (case.rotary_dim > 0).then_some((&layer.inv_freq, 1.1, case.interleaved)),
        };
        let [expected, ..] =
            rope_and_cache_reference::rope_and_cache(&layer.qkv, &layer.positions, &heads);
        let actual: Vec<f32> = query.iter().map(|&bits| f32::from_bits(bits)).collect();
        let tolerance: Vec<f64> = expected.iter().map(|y| 2e-6 * y.abs().max(1.0)).collect();
        assert_close(&format!("{case:?}"), &actual, &expected, &tolerance);

        let alone = (0..case.num_tokens).flat_map(|token| layer.fused(token..token + 1)[0].clone());
        assert!(
            query == alone.collect::<Vec<_>>(),
            "{case:?} token by token"
        );
    }
}

#[test]
fn rope_and_cache_writes_in_place_and_refuses_what_does_not_fit() {
    let layer = Layer::new(
        rope_and_cache_cases::CASES[1],
        Dtype::Bfloat16,
        &mut Random::new(34),
    );
    let width = layer.qkv.len() / layer.case.num_tokens;
    let qkv = array(&layer.qkv, &[layer.case.num_tokens, width]);
    let positions = array_i32(&layer.positions);
    let [mut keys, mut values] = layer.caches();
    let before = data_ptr(&keys).expect("evaluated");
    let mut run = |qkv: &Array, slots: &[i32]| {
        let slots = array_i32(slots);
        let caches = [&mut keys, &mut values];
        let query = rope_and_cache(qkv, &positions, &slots, &layer.params(), caches)?;
        eval([&query, &keys])?;
        data_ptr(&keys)
    };
    assert_eq!(run(&qkv, &layer.slots).expect("fits"), before);
    let narrow = array(&layer.qkv[..3 * (width - 1)], &[3, width - 1]);
    let refused = |result: Result<usize, metal_rpc_kernels::KernelError>| {
        result.expect_err("does not fit").to_string()
    };
    assert!(refused(run(&narrow, &layer.slots)).contains("qkv"));
    assert!(refused(run(&qkv, &[1, 2])).contains("slot_mapping"));
    let outside = run(&qkv, &[1, 2, 128]);
    if support::reports_values() {
        assert!(refused(outside).contains("slot 128 is not in a cache of 128 slots"));
    } else {
        assert_eq!(outside.expect("the token is skipped"), before);
    }
}
