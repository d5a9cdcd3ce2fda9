//! How often weights are read.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{BLOCK_ROWS, Dense, Group, Product, Span, Weight};
use crate::{dot::Rows, simd::Lanes};

/// Counts how often each element of the weights is read.
#[derive(Clone, Copy)]
struct Counting<'a> {
    weight: Dense<'a, f32>,
    inputs: usize,
    reads: &'a [AtomicUsize],
}

impl Counting<'_> {
    fn count(&self, output: usize, inputs: Span) {
        for input in inputs.first..inputs.first + inputs.len {
            self.reads[output * self.inputs + input].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Weight for Counting<'_> {
    fn output_size_bytes(&self) -> usize {
        self.weight.output_size_bytes()
    }

    #[inline(always)]
    unsafe fn stream<L: Lanes>(self, x: Rows<f32>, outputs: Span, out: *mut f32, stride: usize) {
        let (first, len) = (0, self.inputs);
        for output in outputs.first..outputs.first + outputs.len {
            self.count(output, Span { first, len });
        }
        // SAFETY: the caller's promise.
        unsafe { self.weight.stream::<L>(x, outputs, out, stride) };
    }

    #[inline(always)]
    unsafe fn convert<L: Lanes>(
        self,
        output: usize,
        inputs: Span,
        to: *mut f32,
        strides: [usize; 2],
    ) {
        self.count(output, inputs);
        // SAFETY: the caller's promise.
        unsafe { self.weight.convert::<L>(output, inputs, to, strides) };
    }
}

/// How often each element of a group's weights is read for so many rows.
fn reads(rows: &[usize]) -> Vec<Vec<usize>> {
    let (inputs, outputs) = (600, 100);
    let weight = vec![1.0; outputs * inputs];
    let counts: Vec<Vec<AtomicUsize>> = rows
        .iter()
        .map(|_| weight.iter().map(|_| AtomicUsize::new(0)).collect())
        .collect();
    let mut first = 0;
    let mut groups = Vec::new();
    for (&len, reads) in rows.iter().zip(&counts) {
        let weight = Dense::new(&weight, outputs, inputs);
        groups.push(Group {
            weight: Counting {
                weight,
                inputs,
                reads,
            },
            rows: Span { first, len },
        });
        first += len;
    }
    let x = vec![1.0; first * inputs];
    let mut y = vec![0.0; first * outputs];
    Product {
        x: &x,
        inputs,
        outputs,
        groups: &groups,
    }
    .compute(&mut y);
    assert!(y.iter().all(|&y| y == 600.0));
    counts
        .into_iter()
        .map(|counts| counts.into_iter().map(AtomicUsize::into_inner).collect())
        .collect()
}

#[test]
fn weights_are_read_once_and_only_where_there_are_rows() {
    let rows = [1, 0, 15, BLOCK_ROWS, 0];
    for (rows, reads) in rows.iter().zip(reads(&rows)) {
        assert!(
            reads.iter().all(|&reads| reads == (*rows).min(1)),
            "{rows} rows"
        );
    }
    // Further blocks of rows convert them again.
    let reads = &reads(&[3 * BLOCK_ROWS])[0];
    assert!(reads.iter().all(|&reads| (1..=3).contains(&reads)));
}
