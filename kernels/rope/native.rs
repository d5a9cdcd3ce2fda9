//! Rotary position embedding on the CPU: angles once a token, shared by its heads.

use std::{cell::RefCell, ffi::CStr};

use super::RopePairing;
use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{Lanes, Operation, vectorized},
};

/// Elements that one task turns.
const ELEMENTS_PER_TASK: usize = 8 * 1024;

/// Cost of one sine and cosine, in multiply-adds.
const WORK_PER_ANGLE: usize = 32;

/// `x` `[num_tokens, num_heads, head_dim]`, `positions` `[num_tokens]`, `inv_freq` -> like `x`.
#[derive(Clone, Copy)]
pub(super) struct Rope {
    pub(super) num_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) pairing: RopePairing,
}

/// By how much the pairs of one token turn.
#[derive(Default)]
pub(crate) struct Angles {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Angles {
    /// Those of the token at `position`.
    #[inline(always)]
    pub(crate) fn fill(&mut self, position: i32, inv_freq: &[f32], scale: f32) {
        self.cosines.clear();
        self.sines.clear();
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^24")]
        let position = position as f32;
        for inv_freq in inv_freq {
            let (sine, cosine) = (position * inv_freq).sin_cos();
            self.cosines.push(cosine * scale);
            self.sines.push(sine * scale);
        }
    }
}

thread_local! {
    static ANGLES: RefCell<Angles> = RefCell::default();
}

impl HostKernel for Rope {
    const NAME: &'static CStr = c"rope";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let positions = inputs[1].as_slice::<i32>();
        let inv_freq = inputs[2].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        let row = self.num_heads * self.head_dim;
        assert!(x.len() == positions.len() * row);
        assert!(y.len() == x.len());
        if y.is_empty() {
            return;
        }
        let tokens_per_task = (ELEMENTS_PER_TASK / row).max(1);
        let work = x.len() + positions.len() * inv_freq.len() * WORK_PER_ANGLE;
        let y = Shared::new(y);
        pool::for_each(positions.len().div_ceil(tokens_per_task), work, |task| {
            let first = task * tokens_per_task;
            let last = positions.len().min(first + tokens_per_task);
            ANGLES.with_borrow_mut(|angles| {
                vectorized(Tokens {
                    rope: self,
                    x: &x[first * row..last * row],
                    positions: &positions[first..last],
                    inv_freq,
                    angles,
                    // SAFETY: tasks write disjoint tokens.
                    y: unsafe { y.part(first * row, (last - first) * row) },
                });
            });
        });
    }
}

struct Tokens<'a> {
    rope: &'a Rope,
    x: &'a [f32],
    positions: &'a [i32],
    inv_freq: &'a [f32],
    angles: &'a mut Angles,
    y: &'a mut [f32],
}

impl Operation for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let head_dim = self.rope.head_dim;
        let row = self.rope.num_heads * head_dim;
        let rows = self.x.chunks_exact(row).zip(self.y.chunks_exact_mut(row));
        for (&position, (x, y)) in self.positions.iter().zip(rows) {
            self.angles.fill(position, self.inv_freq, self.rope.scale);
            for (x, y) in x.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)) {
                turn(self.rope.pairing, x, self.angles, y);
            }
        }
    }
}

/// Turns one head.
#[inline(always)]
pub(crate) fn turn(pairing: RopePairing, x: &[f32], angles: &Angles, y: &mut [f32]) {
    let Angles { cosines, sines } = angles;
    let num_pairs = cosines.len();
    assert!(sines.len() == num_pairs);
    let (x_turned, x_kept) = x.split_at(2 * num_pairs);
    let (y_turned, y_kept) = y.split_at_mut(2 * num_pairs);
    y_kept.copy_from_slice(x_kept);
    match pairing {
        RopePairing::Halves => {
            let (x0, x1) = x_turned.split_at(num_pairs);
            let (y0, y1) = y_turned.split_at_mut(num_pairs);
            for i in 0..num_pairs {
                y0[i] = x0[i] * cosines[i] - x1[i] * sines[i];
                y1[i] = x1[i] * cosines[i] + x0[i] * sines[i];
            }
        }
        RopePairing::Interleaved => {
            for i in 0..num_pairs {
                let (x0, x1) = (x_turned[2 * i], x_turned[2 * i + 1]);
                y_turned[2 * i] = x0 * cosines[i] - x1 * sines[i];
                y_turned[2 * i + 1] = x1 * cosines[i] + x0 * sines[i];
            }
        }
    }
}
