//! Reads a tensor's elements from its file into another floating-point format.
//!
//! # Cost
//! Equal formats are read into place. Others pass through a buffer of [`CHUNK_LEN`] elements a
//! thread, so memory does not grow with the tensor.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytemuck::Pod;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::Dtype;

/// Elements that one thread reads at a time: large enough that the system call costs nothing,
/// small enough for the converted data to come from the cache.
const CHUNK_LEN: usize = 1 << 18;

// safetensors is little-endian, and elements are read into place.
const _: () = assert!(cfg!(target_endian = "little"));

/// An element of a weight.
pub(super) trait Element: Pod + Send + Sync {
    const DTYPE: Dtype;

    /// `target[i] = source[i]`, exactly.
    fn widen(source: &[Self], target: &mut [f32]);

    /// `target[i] = source[i]`, rounded to nearest even.
    fn narrow(source: &[f32], target: &mut [Self]);

    /// `values[i] -= 1`, in f32.
    fn subtract_one(values: &mut [Self]) {
        let mut wide = vec![0.0; values.len()];
        Self::widen(values, &mut wide);
        wide.iter_mut().for_each(|value| *value -= 1.0);
        Self::narrow(&wide, values);
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::Float32;

    fn widen(source: &[Self], target: &mut [f32]) {
        target.copy_from_slice(source);
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.copy_from_slice(source);
    }
}

macro_rules! half_element {
    ($type:ty, $dtype:expr) => {
        impl Element for $type {
            const DTYPE: Dtype = $dtype;

            fn widen(source: &[Self], target: &mut [f32]) {
                source.convert_to_f32_slice(target);
            }

            fn narrow(source: &[f32], target: &mut [Self]) {
                target.convert_from_f32_slice(source);
            }
        }
    };
}

half_element!(f16, Dtype::Float16);
half_element!(bf16, Dtype::Bfloat16);

/// Fills `target` with the elements that stand in `file` as `dtype` from `offset_bytes` on.
///
/// # Errors
/// What the operating system says; `UnexpectedEof` if the file ends too early.
pub(super) fn read<T: Element>(
    file: &File,
    offset_bytes: u64,
    dtype: Dtype,
    target: &mut [T],
) -> io::Result<()> {
    match dtype {
        Dtype::Float32 => read_from::<f32, T>(file, offset_bytes, target),
        Dtype::Float16 => read_from::<f16, T>(file, offset_bytes, target),
        Dtype::Bfloat16 => read_from::<bf16, T>(file, offset_bytes, target),
    }
}

/// Fills `target` with the bytes of `file` from `offset_bytes` on.
///
/// # Errors
/// As [`read`].
pub(super) fn read_bytes(file: &File, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
    let chunk = CHUNK_LEN * size_of::<f32>();
    let chunks = target.par_chunks_mut(chunk).enumerate();
    chunks.try_for_each(|(index, target)| {
        file.read_exact_at(target, offset_bytes + (index * chunk) as u64)
    })
}

fn read_from<S: Element, T: Element>(
    file: &File,
    offset_bytes: u64,
    target: &mut [T],
) -> io::Result<()> {
    target
        .par_chunks_mut(CHUNK_LEN)
        .enumerate()
        .try_for_each_init(
            || (Vec::<S>::new(), Vec::<f32>::new()),
            |(source, wide), (index, target)| {
                let offset_bytes = offset_bytes + (index * CHUNK_LEN * size_of::<S>()) as u64;
                if S::DTYPE == T::DTYPE {
                    return file.read_exact_at(bytemuck::cast_slice_mut(target), offset_bytes);
                }
                source.resize(target.len(), S::zeroed());
                wide.resize(target.len(), 0.0);
                file.read_exact_at(bytemuck::cast_slice_mut(source), offset_bytes)?;
                S::widen(source, wide);
                T::narrow(wide, target);
                Ok(())
            },
        )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(bytes).expect("write");
        file
    }

    fn check<S: Element + PartialEq, T: Element + PartialEq + std::fmt::Debug>(
        stored: &[S],
        expected: &[T],
    ) {
        // Three bytes before, as after a header of odd length.
        let mut bytes = vec![0xff; 3];
        bytes.extend_from_slice(bytemuck::cast_slice(stored));
        let mut target = vec![T::zeroed(); expected.len()];
        read(&file(&bytes), 3, S::DTYPE, &mut target).expect("read");
        assert_eq!(target, expected, "{} to {}", S::DTYPE, T::DTYPE);
    }

    #[test]
    fn every_format_becomes_every_format() {
        let values = [
            0.0_f32,
            -0.0,
            1.0,
            -2.5,
            0.099_975_586,
            65504.0,
            f32::INFINITY,
        ];
        let halves = values.map(f16::from_f32);
        let brains = values.map(bf16::from_f32);
        check(&values, &values);
        check(&values, &halves);
        check(&values, &brains);
        check(&halves, &halves.map(f16::to_f32));
        check(&halves, &halves);
        check(&halves, &halves.map(|value| bf16::from_f32(value.to_f32())));
        check(&brains, &brains.map(bf16::to_f32));
        check(&brains, &brains.map(|value| f16::from_f32(value.to_f32())));
        check(&brains, &brains);
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let ulp = 2.0_f32.powi(-7);
        let stored = [1.0 + ulp / 2.0, 1.0 + ulp * 1.5, 1.0 + ulp * 0.51];
        let rounded = [1.0, 1.0 + ulp * 2.0, 1.0 + ulp].map(bf16::from_f32);
        check(&stored, &rounded);
    }

    #[test]
    fn chunks_are_put_in_order() {
        let stored: Vec<bf16> = (0..CHUNK_LEN * 2 + 5)
            .map(|index| bf16::from_bits(u16::try_from(index % 0x7f00).expect("below 2^16")))
            .collect();
        let expected: Vec<f32> = stored.iter().map(|value| value.to_f32()).collect();
        check(&stored, &expected);
    }

    #[test]
    fn an_early_end_is_an_error() {
        let mut target = [0.0_f32; 4];
        let error = read(&file(&[0; 15]), 0, Dtype::Float32, &mut target).expect_err("15 of 16");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
