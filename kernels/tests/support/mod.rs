//! What the tests of this crate share: seeded numbers, arrays, comparisons.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod attention;
#[path = "../../paged_attention/cases.rs"]
pub(crate) mod paged_attention_cases;
#[path = "../../paged_attention/reference.rs"]
pub(crate) mod paged_attention_reference;

use metal_rpc_kernels::{eval, to_vec_f32, to_vec_i32};
use mlx_rs::{Array, Dtype};

/// The dtypes that weights and caches may have.
pub(crate) const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16];

/// Whether MLX's operations run on the CPU.
pub(crate) fn is_cpu() -> bool {
    let device = mlx_rs::Device::try_default().and_then(|device| device.get_type());
    matches!(device, Ok(mlx_rs::DeviceType::Cpu))
}

/// Whether values out of range fail the evaluation: a GPU's kernels skip them.
pub(crate) fn reports_values() -> bool {
    is_cpu() && !cfg!(feature = "emulation")
}

/// Seed of all random numbers: `KERNELS_SEED`, or a fixed one.
pub(crate) fn seed() -> u64 {
    std::env::var("KERNELS_SEED").map_or(0x5eed, |text| {
        text.parse().expect("KERNELS_SEED must be a number")
    })
}

/// A small generator (splitmix64): the same numbers everywhere, for one seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(stream: u64) -> Self {
        Self(seed() ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The same numbers whatever `KERNELS_SEED` says.
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.bits() % bound as u64).expect("below a usize")
    }

    /// Uniform in -1 .. 1.
    pub(crate) fn unit(&mut self) -> f32 {
        let bits = u16::try_from(self.bits() >> 48).expect("16 bits");
        f32::from(bits) / 32768.0 - 1.0 + 1.0 / 65536.0
    }

    pub(crate) fn units(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

pub(crate) fn int(value: usize) -> i32 {
    i32::try_from(value).expect("test sizes are small")
}

pub(crate) fn ints(values: &[usize]) -> Vec<i32> {
    values.iter().map(|&value| int(value)).collect()
}

pub(crate) fn array(values: &[f32], shape: &[usize]) -> Array {
    Array::from_slice(values, &ints(shape))
}

pub(crate) fn array_i32(values: &[i32]) -> Array {
    Array::from_slice(values, &[int(values.len())])
}

/// `values` rounded to `dtype`: the array, and the rounded values.
pub(crate) fn rounded(values: &[f32], shape: &[usize], dtype: Dtype) -> (Array, Vec<f32>) {
    let array = array(values, shape).as_dtype(dtype).expect("cast");
    array.eval().expect("cast");
    let values = f32s(&array);
    (array, values)
}

/// Evaluates, and reads as f32.
pub(crate) fn f32s(array: &Array) -> Vec<f32> {
    // By itself: on a GPU MLX's cast does not know of memory that is written in place.
    eval([array]).expect("evaluates");
    let array = array.as_dtype(Dtype::Float32).expect("cast");
    eval([&array]).expect("evaluates");
    to_vec_f32(&array).expect("reads")
}

/// Evaluates, and reads as i32.
pub(crate) fn i32s(array: &Array) -> Vec<i32> {
    eval([array]).expect("evaluates");
    to_vec_i32(array).expect("reads")
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Fails unless every value is within its tolerance.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of results");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        let tolerance = tolerance[i.min(tolerance.len() - 1)];
        assert!(
            error <= tolerance,
            "{what}: element {i} is {actual}, not {expected}: off by {error:.3e}, allowed \
             {tolerance:.3e} (KERNELS_SEED={})",
            seed()
        );
    }
}
