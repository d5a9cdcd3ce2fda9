//! Argmax on the CPU, one task a row.

use std::ffi::CStr;

use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{LANES, Lanes, Operation, vectorized},
};

/// Values compared at a time: few enough that the index of the best is searched in cache.
const BLOCK: usize = 1024;

/// `logits` `[n, vocab_size]` -> `[n]` i32.
#[derive(Clone, Copy)]
pub(super) struct Argmax {
    pub(super) vocab_size: usize,
}

impl HostKernel for Argmax {
    const NAME: &'static CStr = c"argmax";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let logits = inputs[0].as_slice::<f32>();
        let tokens = outputs[0].as_mut_slice::<i32>();
        assert!(logits.len() == tokens.len() * self.vocab_size);
        let num_rows = tokens.len();
        let tokens = Shared::new(tokens);
        // A value costs about a fourth of a multiply-add: it is read once and compared.
        pool::for_each(num_rows, logits.len() / 4, |row| {
            let best = vectorized(Row(&logits[row * self.vocab_size..][..self.vocab_size]));
            // SAFETY: one task a row.
            let token = unsafe { tokens.part(row, 1) };
            token[0] = i32::try_from(best).expect("MLX's dimensions are i32");
        });
    }
}

struct Row<'a>(&'a [f32]);

impl Operation for Row<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self) -> usize {
        let mut best = f32::NEG_INFINITY;
        let mut best_index = 0;
        for (block_index, block) in self.0.chunks(BLOCK).enumerate() {
            let found = block_max::<L>(block);
            if found.is_nan() || found > best {
                let wanted = |value: &f32| *value == found || value.is_nan();
                let offset = block.iter().position(wanted);
                best = found;
                best_index = block_index * BLOCK + offset.expect("the maximum is one of them");
                if found.is_nan() {
                    return best_index;
                }
            }
        }
        best_index
    }
}

/// The greatest value, or NaN if there is one.
#[inline(always)]
fn block_max<L: Lanes>(block: &[f32]) -> f32 {
    let mut max = L::splat(f32::NEG_INFINITY);
    // NaN if any value is NaN or infinite: zero times the value, summed.
    let mut taint = L::splat(0.0);
    let mut chunks = block.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        // SAFETY: a chunk has eight elements.
        let values = unsafe { L::load(chunk.as_ptr()) };
        max = max.max(values);
        taint = values.mul_add(L::splat(0.0), taint);
    }
    if taint.sum().is_nan() || chunks.remainder().iter().any(|value| value.is_nan()) {
        let scalar = |a: f32, &b: &f32| {
            if a.is_nan() || b.is_nan() {
                f32::NAN
            } else {
                a.max(b)
            }
        };
        return block.iter().fold(f32::NEG_INFINITY, scalar);
    }
    let rest = chunks.remainder().iter().copied();
    rest.fold(max.max_lane(), f32::max)
}
