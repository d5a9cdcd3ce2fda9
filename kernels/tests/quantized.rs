//! Quantised layers: against plain loops, against MLX's own layout, and against themselves in other
//! batches.

mod support;

#[path = "../quantized_linear/cases.rs"]
mod cases;
#[path = "../quantized_linear/reference.rs"]
mod reference;

use cases::Case;
use metal_rpc_kernels::{
    KernelError, NO_TOKEN, QuantizedFormat, QuantizedMatrix, eval, quantized_linear, quantized_rows,
};
use mlx_rs::{Array, Dtype, ops};
use support::{FLOATS, Random, array, array_i32, assert_close, bits, f32s, int, rounded};

/// A random matrix of `case`'s shape, and what it means.
struct Sample {
    matrix: QuantizedMatrix,
    weights: Vec<f64>,
    magnitudes: Vec<f64>,
    inputs: usize,
    /// Where a CPU may multiply in integers.
    group_size: Option<usize>,
}

fn words(random: &mut Random, len: usize) -> Vec<u32> {
    let word = |_| u32::try_from(random.bits() >> 32).expect("32 bits");
    (0..len).map(word).collect()
}

fn affine(case: &Case, dtype: Dtype, random: &mut Random) -> Sample {
    let (bits, group_size) = (usize::from(case.bits), usize::from(case.group_size));
    let inputs = case.groups * group_size;
    let row = inputs * bits / 32;
    let words = words(random, case.outputs * row);
    let shape = [case.outputs, case.groups];
    let mut shared = || rounded(&random.units(case.outputs * case.groups), &shape, dtype);
    let ((scales, scale_values), (biases, bias_values)) = (shared(), shared());
    let (weights, magnitudes) =
        reference::affine(&words, &scale_values, &bias_values, (bits, group_size));
    let format = QuantizedFormat::Affine {
        bits: case.bits,
        group_size: case.group_size,
    };
    let packed = Array::from_slice(&words, &[int(case.outputs), int(row)]);
    Sample {
        matrix: QuantizedMatrix::new(format, packed, scales, Some(biases)).expect("fits"),
        weights,
        magnitudes,
        inputs,
        group_size: [4, 8].contains(&bits).then_some(group_size),
    }
}

fn mxfp4((outputs, groups): (usize, usize), random: &mut Random) -> Sample {
    let words = words(random, outputs * groups * 4);
    let exponents: Vec<u8> = (0..outputs * groups)
        .map(|_| u8::try_from(110 + random.below(30)).expect("below 140"))
        .collect();
    let weights = reference::mxfp4(&words, &exponents);
    let packed = Array::from_slice(&words, &[int(outputs), int(groups * 4)]);
    let scales = Array::from_slice(&exponents, &[int(outputs), int(groups)]);
    Sample {
        matrix: QuantizedMatrix::new(QuantizedFormat::Mxfp4, packed, scales, None).expect("fits"),
        magnitudes: weights.iter().map(|weight| weight.abs()).collect(),
        weights,
        inputs: groups * 32,
        group_size: None,
    }
}

fn check(what: &str, sample: &Sample, rows: usize, random: &mut Random) {
    let x = random.units(rows * sample.inputs);
    let parts = (sample.weights.as_slice(), sample.magnitudes.as_slice());
    let (expected, tolerance) = reference::product(&x, parts, sample.inputs, sample.group_size);
    let y = quantized_linear(&array(&x, &[rows, sample.inputs]), &sample.matrix, None);
    assert_close(what, &f32s(&y.expect(what)), &expected, &tolerance);
}

#[test]
fn affine_products_are_within_the_bound_of_their_sum() {
    let mut random = Random::new(60);
    for (index, case) in cases::cases().iter().enumerate() {
        let dtype = FLOATS[index % FLOATS.len()];
        let sample = affine(case, dtype, &mut random);
        check(
            &format!("{dtype:?} {case:?}"),
            &sample,
            case.rows,
            &mut random,
        );
    }
}

#[test]
fn small_floats_are_within_the_bound_of_their_sum() {
    let mut random = Random::new(61);
    for (rows, outputs, groups) in [(1, 9, 1), (2, 5, 9), (8, 50, 7), (33, 11, 18)] {
        let sample = mxfp4((outputs, groups), &mut random);
        let what = format!("mxfp4 {rows} x {groups} groups @ {outputs}");
        check(&what, &sample, rows, &mut random);
    }
}

#[test]
fn rows_are_the_weights_rounded_once() {
    let mut random = Random::new(62);
    for case in cases::cases().iter().filter(|case| case.rows == 3) {
        let sample = affine(case, Dtype::Bfloat16, &mut random);
        let ids: Vec<usize> = vec![case.outputs - 1, 0, 1, 1];
        let expected: Vec<f64> = ids
            .iter()
            .flat_map(|id| &sample.weights[id * sample.inputs..][..sample.inputs])
            .copied()
            .collect();
        let rows = quantized_rows(&sample.matrix, &array_i32(&support::ints(&ids)));
        // One rounding of a sum of two terms, each at most 255; portably two.
        assert_close("rows", &f32s(&rows.expect("fits")), &expected, &[4e-5]);
    }
}

#[test]
fn mlx_packs_in_the_same_way() {
    let mut random = Random::new(63);
    let weight = array(&random.units(6 * 256), &[6, 256]);
    let ids = array_i32(&[0, 1, 2, 3, 4, 5]);
    for bits in QuantizedFormat::BITS {
        for group_size in QuantizedFormat::GROUP_SIZES {
            let size = (i32::from(group_size), i32::from(bits));
            let (packed, scales, biases) = ops::quantize(&weight, size.0, size.1).expect("MLX");
            let expected = ops::dequantize(&packed, &scales, &biases, size.0, size.1).expect("MLX");
            let format = QuantizedFormat::Affine { bits, group_size };
            let matrix = QuantizedMatrix::new(format, packed, scales, Some(biases)).expect("fits");
            let expected: Vec<f64> = f32s(&expected).into_iter().map(f64::from).collect();
            let rows = quantized_rows(&matrix, &ids).expect("fits");
            let what = format!("{bits} bits, groups of {group_size}");
            assert_close(&what, &f32s(&rows), &expected, &[5e-7]);
        }
    }
}

#[test]
fn rows_do_not_depend_on_the_batch() {
    let mut random = Random::new(64);
    let case = |bits, group_size, groups| Case {
        rows: 70,
        groups,
        outputs: 50,
        bits,
        group_size,
    };
    // The second is longer than what a tile of sixteen lanes multiplies at once; with the last, all
    // kinds of groups are there that are multiplied in integers.
    let cases = [
        case(4, 64, 9),
        case(4, 128, 17),
        case(8, 32, 17),
        case(3, 128, 5),
        case(4, 32, 3),
        case(8, 64, 5),
        case(8, 128, 3),
    ];
    let mut samples: Vec<Sample> = cases
        .iter()
        .map(|case| affine(case, Dtype::Float16, &mut random))
        .collect();
    samples.push(mxfp4((49, 20), &mut random));
    for Sample { matrix, inputs, .. } in &samples {
        let outputs = usize::try_from(matrix.outputs()).expect("small");
        let x = random.units(70 * inputs);
        let run = |x: &[f32]| {
            let x = array(x, &[x.len() / inputs, *inputs]);
            bits(&f32s(&quantized_linear(&x, matrix, None).expect("fits")))
        };
        let alone: Vec<u32> = x.chunks(*inputs).flat_map(run).collect();
        for rows in [2, 3, 4, 5, 8, 9, 15, 16, 17, 18, 64, 66, 70] {
            let together = run(&x[..rows * inputs]);
            assert!(together == alone[..rows * outputs], "{rows} rows");
        }
    }
}

#[test]
fn inputs_that_are_no_numbers_make_results_that_are_none() {
    let mut random = Random::new(66);
    for bits in [4, 8] {
        for (rows, bad) in [(1, 0), (2, 1), (9, 5), (33, 32)] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let case = Case {
                    rows,
                    groups: 3,
                    outputs: 21,
                    bits,
                    group_size: 64,
                };
                let sample = affine(&case, Dtype::Float32, &mut random);
                let mut x = random.units(rows * sample.inputs);
                x[bad * sample.inputs + 70] = value;
                let x = array(&x, &[rows, sample.inputs]);
                let y = quantized_linear(&x, &sample.matrix, None).expect("fits");
                for (row, y) in f32s(&y).chunks_exact(case.outputs).enumerate() {
                    let finite = y.iter().filter(|y| y.is_finite()).count();
                    let expected = if row == bad { 0 } else { case.outputs };
                    assert_eq!(finite, expected, "row {row}, {value} in {bad}, {bits} bits");
                }
            }
        }
    }
}

/// Magnitudes at both ends of what f32 holds: a group's unit has an inverse all the same.
#[test]
fn very_small_and_very_large_inputs_keep_their_precision() {
    let mut random = Random::new(67);
    for bits in [4, 8] {
        let case = Case {
            rows: 3,
            groups: 2,
            outputs: 17,
            bits,
            group_size: 64,
        };
        let sample = affine(&case, Dtype::Float32, &mut random);
        let units = random.units(3 * sample.inputs);
        let shape = [3, sample.inputs];
        let run = |x: &[f32]| {
            let y = quantized_linear(&array(x, &shape), &sample.matrix, None);
            f32s(&y.expect("fits"))
        };
        let plain = run(&units);
        for exponent in [-90, 90] {
            let factor = 2_f32.powi(exponent);
            let scaled: Vec<f32> = units.iter().map(|x| x * factor).collect();
            let expected: Vec<u32> = plain.iter().map(|y| (y * factor).to_bits()).collect();
            let actual: Vec<u32> = run(&scaled).into_iter().map(f32::to_bits).collect();
            assert_eq!(actual, expected, "{bits} bits, 2^{exponent}");
        }
        let tiny = vec![1e-44; 3 * sample.inputs];
        assert!(run(&tiny).iter().all(|y| y.abs() < 1e-38));
        assert!(run(&vec![0.0; 3 * sample.inputs]).iter().all(|&y| y == 0.0));
    }
}

#[test]
fn bias_and_leading_axes_and_dtype_are_kept() {
    let mut random = Random::new(65);
    let sample = mxfp4((5, 2), &mut random);
    let x = array(&random.units(2 * 3 * 64), &[2, 3, 64]);
    let bias = random.units(5);
    let plain = f32s(&quantized_linear(&x, &sample.matrix, None).expect("fits"));
    let y = quantized_linear(&x, &sample.matrix, Some(&array(&bias, &[5]))).expect("fits");
    assert_eq!(y.shape(), &[2, 3, 5]);
    let expected: Vec<f32> = plain
        .iter()
        .zip(bias.iter().cycle())
        .map(|(y, b)| y + b)
        .collect();
    assert_eq!(f32s(&y), expected);
    let half = x.as_dtype(Dtype::Bfloat16).expect("cast");
    let y = quantized_linear(&half, &sample.matrix, None).expect("fits");
    assert_eq!(y.dtype(), Dtype::Bfloat16);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let zeros = |shape: &[i32], dtype| ops::zeros_dtype(shape, dtype).expect("zeros");
    let scales = zeros(&[3, 2], Dtype::Float16);
    let packed = zeros(&[3, 16], Dtype::Uint32);
    let four = QuantizedFormat::Affine {
        bits: 4,
        group_size: 64,
    };
    let make = |format, packed: &Array, scales: &Array, biases: Option<&Array>| {
        QuantizedMatrix::new(format, packed.clone(), scales.clone(), biases.cloned())
    };
    let refused = |matrix: Result<_, KernelError>, part: &str| {
        let error = matrix.expect_err("must be refused").to_string();
        assert!(error.contains(part), "{error}");
    };
    assert!(make(four, &packed, &scales, Some(&scales)).is_ok());
    let seven = QuantizedFormat::Affine {
        bits: 7,
        group_size: 64,
    };
    refused(
        make(seven, &packed, &scales, Some(&scales)),
        "2, 3, 4, 5, 6 or 8 bits",
    );
    refused(make(four, &scales, &scales, Some(&scales)), "uint32");
    refused(make(four, &packed, &scales, None), "biases");
    let other = zeros(&[3, 2], Dtype::Float32);
    refused(make(four, &packed, &scales, Some(&other)), "that of scales");
    let wide = zeros(&[3, 17], Dtype::Uint32);
    refused(
        make(four, &wide, &scales, Some(&scales)),
        "[outputs, inputs * bits / 32]",
    );
    refused(
        make(QuantizedFormat::Mxfp4, &packed, &scales, None),
        "[3, 16]",
    );

    let matrix = make(four, &packed, &scales, Some(&scales)).expect("fits");
    let x = zeros(&[1, 64], Dtype::Float32);
    let error = quantized_linear(&x, &matrix, None).expect_err("64 of 128");
    assert!(
        error.to_string().contains("`x` must be [.., in]"),
        "{error}"
    );
    // A step that is built on a token that never was is run.
    let rows = quantized_rows(&matrix, &array_i32(&[NO_TOKEN])).expect("a node");
    assert_eq!(rows.shape(), [1, 128]);
    eval([&rows]).expect("a row that nobody reads");
    let rows = quantized_rows(&matrix, &array_i32(&[3])).expect("a node");
    let error = eval([&rows]).expect_err("three rows").to_string();
    assert!(error.contains("id 3 is not below 3"), "{error}");
}
