//! The gate of a gated MLP on the CPU.

use std::{
    f32::consts::{FRAC_2_SQRT_PI, SQRT_2},
    ffi::CStr,
    marker::PhantomData,
};

use super::Activation;
use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{LANES, Lanes, Operation, load_partial, vectorized},
};

/// Results that one task computes.
const ELEMENTS_PER_TASK: usize = 8 * 1024;

/// Cost of one result, in multiply-adds.
const WORK_PER_ELEMENT: usize = 4;

/// `gate_up` `[rows, 2 * intermediate]` -> `[rows, intermediate]`.
#[derive(Clone, Copy)]
pub(super) struct ActMul {
    pub(super) activation: Activation,
    pub(super) intermediate: usize,
}

impl HostKernel for ActMul {
    const NAME: &'static CStr = c"act_mul";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let gate_up = inputs[0].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        assert!(gate_up.len() == 2 * y.len());
        if y.is_empty() {
            return;
        }
        let width = self.intermediate;
        let per_task = (ELEMENTS_PER_TASK / width).max(1) * width;
        let len = y.len();
        let y = Shared::new(y);
        pool::for_each(len.div_ceil(per_task), len * WORK_PER_ELEMENT, |task| {
            let start = task * per_task;
            let end = len.min(start + per_task);
            let gate_up = &gate_up[2 * start..2 * end];
            // SAFETY: tasks write disjoint rows.
            let y = unsafe { y.part(start, end - start) };
            match self.activation {
                Activation::Silu => vectorized(Rows::<Silu>::new(width, gate_up, y)),
                Activation::GeluTanh => vectorized(Rows::<GeluTanh>::new(width, gate_up, y)),
            }
        });
    }
}

/// What makes an activation of `x * sigmoid(exponent(x))`. No closure: one would not be compiled with
/// the features of the CPU.
trait Exponent {
    fn exponent<L: Lanes>(x: L) -> L;
}

struct Silu;

impl Exponent for Silu {
    #[inline(always)]
    fn exponent<L: Lanes>(x: L) -> L {
        x
    }
}

struct GeluTanh;

impl Exponent for GeluTanh {
    #[inline(always)]
    fn exponent<L: Lanes>(x: L) -> L {
        let cubic = x.mul(x).mul(L::splat(0.044_715));
        x.mul(L::splat(FRAC_2_SQRT_PI * SQRT_2))
            .mul(cubic.add(L::splat(1.0)))
    }
}

struct Rows<'a, E> {
    width: usize,
    gate_up: &'a [f32],
    y: &'a mut [f32],
    activation: PhantomData<E>,
}

impl<'a, E> Rows<'a, E> {
    fn new(width: usize, gate_up: &'a [f32], y: &'a mut [f32]) -> Self {
        Self {
            width,
            gate_up,
            y,
            activation: PhantomData,
        }
    }
}

impl<E: Exponent> Operation for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self.gate_up.chunks_exact(2 * self.width);
        for (row, y) in rows.zip(self.y.chunks_exact_mut(self.width)) {
            let (gate, up) = row.split_at(self.width);
            let full = self.width / LANES * LANES;
            let mut i = 0;
            while i < full {
                // SAFETY: `i + 8` is at most the width, the length of all three.
                unsafe {
                    let gate = L::load(gate.as_ptr().add(i));
                    let up = L::load(up.as_ptr().add(i));
                    act_mul::<E, L>(gate, up).store(y.as_mut_ptr().add(i));
                }
                i += LANES;
            }
            let rest = self.width - full;
            // SAFETY: the rest of the row.
            let last: L = unsafe {
                act_mul::<E, L>(
                    load_partial(gate.as_ptr().add(full), rest),
                    load_partial(up.as_ptr().add(full), rest),
                )
            };
            y[full..].copy_from_slice(&last.to_array()[..rest]);
        }
    }
}

#[inline(always)]
fn act_mul<E: Exponent, L: Lanes>(gate: L, up: L) -> L {
    let one = L::splat(1.0);
    let negated = E::exponent(gate).mul(L::splat(-1.0));
    gate.div(one.add(negated.exp())).mul(up)
}
