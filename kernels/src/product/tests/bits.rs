//! All ways through a product give the same bits: those of one CPU, and where no matrix unit takes
//! part those of other CPUs too.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::super::avx512::Avx512;
use super::super::{Dense, Eight, Group, Product, Span};
use crate::element::Float;

fn numbers(len: usize, step: usize) -> Vec<f32> {
    let number = |i: usize| f32::from(i16::try_from(i * step % 2003).expect("below 2003") - 1001);
    (0..len).map(|i| number(i) / 1001.0).collect()
}

fn weights<T: Float>(outputs: usize, inputs: usize) -> Vec<T> {
    let numbers = numbers(outputs * inputs, 7919);
    numbers.into_iter().map(T::from_f32).collect()
}

/// The bits of a product that goes through `compute`.
fn bits<T: Float>(
    x: &[f32],
    weight: &[T],
    (rows, inputs, outputs): (usize, usize, usize),
    compute: &impl Fn(&Product<'_, Dense<'_, T>>, &mut [f32]),
) -> Vec<u32> {
    let group = |first, len| Group {
        weight: Dense::new(weight, outputs, inputs),
        rows: Span { first, len },
    };
    let mut y = vec![f32::NAN; rows * outputs];
    let groups = [group(0, rows / 3), group(rows / 3, rows - rows / 3)];
    let product = Product {
        x,
        inputs,
        outputs,
        groups: &groups,
    };
    compute(&product, &mut y);
    y.into_iter().map(f32::to_bits).collect()
}

/// The bits of a product, once it is sure that its rows have the same alone.
fn invariant<T: Float>(
    (x, weight): (&[f32], &[T]),
    (rows, inputs, outputs): (usize, usize, usize),
    compute: impl Fn(&Product<'_, Dense<'_, T>>, &mut [f32]),
) -> Vec<u32> {
    let together = bits(x, weight, (rows, inputs, outputs), &compute);
    let alone: Vec<u32> = (0..rows)
        .flat_map(|row| {
            let x = &x[row * inputs..][..inputs];
            bits(x, weight, (1, inputs, outputs), &compute)
        })
        .collect();
    assert!(together == alone, "{rows} rows of {inputs} by {outputs}");
    together
}

fn check<T: Float>() {
    for inputs in [0, 3, 8, 40, 520, 4104, 8200] {
        for (rows, outputs) in [(1, 13), (2, 7), (9, 12), (24, 29), (30, 100)] {
            if rows * outputs * inputs > 1 << 20 {
                continue;
            }
            let shape = (rows, inputs, outputs);
            let x = numbers(rows * inputs, 104_729);
            let weight = weights::<T>(outputs, inputs);
            let eight = invariant((&x, &weight), shape, |product, y| {
                product.compute_with::<Eight>(y);
            });
            #[cfg(target_arch = "x86_64")]
            if Avx512::is_available() {
                let wide = invariant((&x, &weight), shape, |product, y| {
                    product.compute_with::<Avx512>(y);
                });
                assert!(wide == eight, "{shape:?} in AVX-512 and in eight lanes");
            }
            invariant((&x, &weight), shape, |product, y| product.compute(y));
        }
    }
}

#[test]
fn every_way_gives_the_bits_of_one_row() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}
