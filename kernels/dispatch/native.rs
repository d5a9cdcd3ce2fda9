//! Rows in the order of their experts, on the CPU: a counting sort, and copies.

use std::ffi::CStr;

use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{LANES, Lanes, Operation, load_partial, vectorized},
};

/// Tokens of one task.
const TOKENS_PER_TASK: usize = 8;

/// `x` `[tokens, dim]`, `experts` `[tokens, k]` -> `rows`, `ends`, `row_of`.
#[derive(Clone, Copy)]
pub(super) struct Dispatch {
    pub(super) dim: usize,
}

impl HostKernel for Dispatch {
    const NAME: &'static CStr = c"dispatch";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let experts = inputs[1].as_slice::<i32>();
        let [rows, ends, row_of] = outputs else {
            unreachable!("three outputs were declared")
        };
        let row_of = row_of.as_mut_slice::<i32>();
        sort(experts, ends.as_mut_slice::<i32>(), row_of);
        if self.dim == 0 || row_of.is_empty() {
            return;
        }
        let num_tokens = x.len() / self.dim;
        let k = row_of.len() / num_tokens;
        let rows = rows.as_mut_slice::<f32>();
        let work = rows.len();
        assert!(work == row_of.len() * self.dim);
        let rows = Shared::new(rows);
        pool::for_each(num_tokens.div_ceil(TOKENS_PER_TASK), work, |task| {
            let first = task * TOKENS_PER_TASK;
            for token in first..num_tokens.min(first + TOKENS_PER_TASK) {
                let from = &x[token * self.dim..][..self.dim];
                for &row in &row_of[token * k..][..k] {
                    // SAFETY: `sort` gives every pair of token and expert a row of its own.
                    let to = unsafe { rows.part(index(row) * self.dim, self.dim) };
                    to.copy_from_slice(from);
                }
            }
        });
    }
}

/// Counts the rows of each expert and numbers them: by expert, then by token.
fn sort(experts: &[i32], ends: &mut [i32], row_of: &mut [i32]) {
    let num_experts = ends.len();
    let check = |expert: i32| match usize::try_from(expert) {
        Ok(index) if index < num_experts => index,
        _ => panic!("expert {expert} is not one of {num_experts}"),
    };
    ends.fill(0);
    for &expert in experts {
        ends[check(expert)] += 1;
    }
    // Starts now, which counting makes ends.
    let mut start = 0;
    for end in &mut *ends {
        start += std::mem::replace(end, start);
    }
    for (row, &expert) in row_of.iter_mut().zip(experts) {
        let next = &mut ends[check(expert)];
        *row = *next;
        *next += 1;
    }
}

fn index(row: i32) -> usize {
    usize::try_from(row).unwrap_or_else(|_| panic!("row {row} is negative"))
}

/// `rows` `[tokens * k, dim]`, `row_of` and `weights` `[tokens, k]` -> `[tokens, dim]`.
#[derive(Clone, Copy)]
pub(super) struct Combine {
    pub(super) experts_per_token: usize,
    pub(super) dim: usize,
}

impl HostKernel for Combine {
    const NAME: &'static CStr = c"combine";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let rows = inputs[0].as_slice::<f32>();
        let row_of = inputs[1].as_slice::<i32>();
        let weights = inputs[2].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        if y.is_empty() {
            return;
        }
        let (dim, k) = (self.dim, self.experts_per_token);
        let num_tokens = y.len() / dim;
        assert!(row_of.len() == num_tokens * k);
        assert!(weights.len() == num_tokens * k);
        let y = Shared::new(y);
        pool::for_each(num_tokens.div_ceil(TOKENS_PER_TASK), rows.len(), |task| {
            let first = task * TOKENS_PER_TASK;
            for token in first..num_tokens.min(first + TOKENS_PER_TASK) {
                vectorized(WeighedSum {
                    rows,
                    row_of: &row_of[token * k..][..k],
                    weights: &weights[token * k..][..k],
                    // SAFETY: tasks write disjoint rows.
                    y: unsafe { y.part(token * dim, dim) },
                });
            }
        });
    }
}

struct WeighedSum<'a> {
    rows: &'a [f32],
    row_of: &'a [i32],
    weights: &'a [f32],
    y: &'a mut [f32],
}

impl Operation for WeighedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.y.len();
        let full = dim / LANES * LANES;
        let mut i = 0;
        while i < dim {
            let mut sum = L::splat(0.0);
            for (&row, &weight) in self.row_of.iter().zip(self.weights) {
                let from = &self.rows[index(row) * dim..][i..dim];
                // SAFETY: eight elements of the row, or its rest.
                let values = unsafe {
                    if i < full {
                        L::load(from.as_ptr())
                    } else {
                        load_partial(from.as_ptr(), dim - full)
                    }
                };
                sum = values.mul_add(L::splat(weight), sum);
            }
            let lanes = sum.to_array();
            let to = &mut self.y[i..dim.min(i + LANES)];
            to.copy_from_slice(&lanes[..to.len()]);
            i += LANES;
        }
    }
}
