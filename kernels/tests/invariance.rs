//! A row's result is the same bits whatever is computed with it, and by however many threads.

mod support;

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    process::Command,
};

use metal_rpc_kernels::{
    QuantizedFormat, QuantizedMatrix, gelu_tanh_mul, linear, quantized_linear, rms_norm, silu_mul,
};
use mlx_rs::{Array, Dtype};
use support::{
    FLOATS, Random, array,
    attention::Batch,
    bits, f32s, int,
    paged_attention_cases::{Case, case},
    rounded,
};

#[test]
fn linear_rows_do_not_depend_on_the_batch() {
    let mut random = Random::new(20);
    for dtype in FLOATS {
        for (inputs, outputs) in [(40, 50), (77, 25), (1100, 49)] {
            let (weight, _) = rounded(&random.units(outputs * inputs), &[outputs, inputs], dtype);
            let x = random.units(140 * inputs);
            let run = |x: &[f32]| {
                let x = array(x, &[x.len() / inputs, inputs]);
                bits(&f32s(&linear(&x, &weight, None).expect("fits")))
            };
            let alone: Vec<u32> = x.chunks(inputs).flat_map(run).collect();
            for rows in [2, 3, 5, 7, 15, 16, 17, 64, 70, 140] {
                assert_eq!(
                    run(&x[..rows * inputs]),
                    alone[..rows * outputs],
                    "{dtype:?} {rows} rows"
                );
            }
        }
    }
}

#[test]
fn normalised_and_gated_rows_do_not_depend_on_the_batch() {
    let mut random = Random::new(21);
    let dim = 1030;
    let x = random.units(120 * dim);
    let weight = array(&random.units(dim), &[dim]);
    let norm = |x: &[f32]| {
        let x = array(x, &[x.len() / dim, dim]);
        bits(&f32s(&rms_norm(&x, &weight, 1e-6).expect("fits")))
    };
    assert_eq!(norm(&x), x.chunks(dim).flat_map(norm).collect::<Vec<_>>());
    for act_mul in [silu_mul, gelu_tanh_mul] {
        let gate = |x: &[f32]| {
            let gated = act_mul(&array(x, &[x.len() / dim, dim]));
            bits(&f32s(&gated.expect("fits")))
        };
        assert_eq!(gate(&x), x.chunks(dim).flat_map(gate).collect::<Vec<_>>());
    }
}

/// Every query alone, and the queries of each request in pieces, give the bits of the whole batch.
#[test]
fn attention_does_not_depend_on_the_batch_or_on_chunked_prefill() {
    let mut random = Random::new(22);
    let requests = [(300, 700), (1, 513), (40, 40), (1, 1500)];
    for (head_dim, sliding_window, soft_cap) in [
        (16, None, None),
        (20, Some(100), None),
        (16, Some(300), Some(5.0)),
        (64, None, None),
    ] {
        let case = Case {
            head_dim,
            sliding_window,
            soft_cap,
            ..case(&requests)
        };
        let batch = Batch::new(&case, Dtype::Bfloat16, &mut random);
        let row = case.num_heads * head_dim;
        let whole = bits(&batch.attend(&batch.query, &batch.all()).expect("fits"));
        let mut first_token = 0;
        for (request, &(query_len, seq_len)) in requests.iter().enumerate() {
            for step in [1, 7, 100, query_len] {
                for start in (0..query_len).step_by(step).take(30) {
                    let len = step.min(query_len - start);
                    let range = (first_token + start) * row..(first_token + start + len) * row;
                    let piece = (request, len, seq_len - query_len + start + len);
                    let out = batch
                        .attend(&batch.query[range.clone()], &[piece])
                        .expect("fits");
                    assert!(
                        bits(&out) == whole[range],
                        "request {request}, queries {start}..{}, {case:?} (KERNELS_SEED={})",
                        start + len,
                        support::seed()
                    );
                }
            }
            first_token += query_len;
        }
    }
}

/// A matrix `[700, 576]`.
fn quantized(random: &mut Random, bits: u8) -> QuantizedMatrix {
    let (outputs, groups) = (700, 9);
    let words = groups * 2 * usize::from(bits);
    let codes: Vec<u32> = (0..outputs * words)
        .map(|_| u32::try_from(random.bits() >> 32).expect("32 bits"))
        .collect();
    let mut shared = || array(&random.units(outputs * groups), &[outputs, groups]);
    let (scales, biases) = (shared(), shared());
    let format = QuantizedFormat::Affine {
        bits,
        group_size: 64,
    };
    let packed = Array::from_slice(&codes, &[int(outputs), int(words)]);
    QuantizedMatrix::new(format, packed, scales, Some(biases)).expect("fits")
}

/// Where `digest` leaves its result when another process runs it.
const DIGEST_FILE: &str = "KERNELS_DIGEST_FILE";

/// Digest of results that are large enough to be shared by threads.
#[test]
fn digest() {
    let mut random = Random::new(23);
    let mut hasher = DefaultHasher::new();
    for rows in [1, 5, 90] {
        let (weight, _) = rounded(&random.units(700 * 576), &[700, 576], Dtype::Bfloat16);
        let x = array(&random.units(rows * 576), &[rows, 576]);
        bits(&f32s(&linear(&x, &weight, None).expect("fits"))).hash(&mut hasher);
        for bits_of_code in [4, 8] {
            let matrix = quantized(&mut random, bits_of_code);
            bits(&f32s(&quantized_linear(&x, &matrix, None).expect("fits"))).hash(&mut hasher);
        }
    }
    for requests in [vec![(1, 3000)], vec![(200, 900), (1, 400)]] {
        let batch = Batch::new(
            &Case {
                head_dim: 64,
                ..case(&requests)
            },
            Dtype::Float16,
            &mut random,
        );
        bits(&batch.attend(&batch.query, &batch.all()).expect("fits")).hash(&mut hasher);
    }
    if let Some(file) = std::env::var_os(DIGEST_FILE) {
        fs::write(file, hasher.finish().to_string()).expect("the digest is written");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let digests: Vec<String> = ["1", "2", "5"]
        .iter()
        .map(|threads| {
            let file = dir.join(format!("digest-{threads}"));
            let status = Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", "digest"])
                .env("RAYON_NUM_THREADS", threads)
                .env(DIGEST_FILE, &file)
                .status()
                .expect("this test runs again");
            assert!(status.success());
            fs::read_to_string(file).expect("the digest was written")
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}
