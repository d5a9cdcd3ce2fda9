//! Codes of four bits in eight lanes and in sixteen.

use half::{bf16, f16};

use super::{Packed, Shared};
use crate::{
    dot::Rows,
    product::{Span, Weight},
    quantized_linear::code::{Code, E2m1, Integer},
    simd::{Lanes, Operation, vectorized},
};

const OUTPUTS: usize = 7;

/// Few rows in eight lanes.
struct InEight<'a, C> {
    packed: Packed<'a, C>,
    x: Rows<f32>,
    y: &'a mut [f32],
}

impl<C: Code> Operation for InEight<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let outputs = Span {
            first: 0,
            len: OUTPUTS,
        };
        // SAFETY: `check` makes rows, outputs and results that exist.
        unsafe {
            self.packed
                .stream::<L>(self.x, outputs, self.y.as_mut_ptr(), OUTPUTS);
        }
    }
}

fn number(index: usize) -> f32 {
    f32::from(i16::try_from(index * 7919 % 2003).expect("below 2003") - 1001) / 1001.0
}

fn check<C: Code>(shared: Shared<'_>, groups: usize, group_size: usize) {
    let inputs = groups * group_size;
    let codes: Vec<u8> = (0..OUTPUTS * inputs / 2)
        .map(|index| u8::try_from(index * 104_729 % 251).expect("below 251"))
        .collect();
    let packed = Packed::<C>::new((&codes, shared), (OUTPUTS, inputs), group_size);
    for rows in [1, 2, 3, 5, 8, 15] {
        let x: Vec<f32> = (0..rows * inputs).map(number).collect();
        let x = Rows {
            ptr: x.as_ptr(),
            stride: inputs,
            count: rows,
        };
        let (mut eight, mut sixteen) = (vec![0.0; rows * OUTPUTS], vec![0.0; rows * OUTPUTS]);
        vectorized(InEight {
            packed,
            x,
            y: &mut eight,
        });
        let outputs = Span {
            first: 0,
            len: OUTPUTS,
        };
        // SAFETY: the CPU was asked; rows, outputs and results exist.
        unsafe { packed.stream_sixteen(x, outputs, sixteen.as_mut_ptr(), OUTPUTS) };
        let largest = eight.iter().fold(0.0_f32, |most, y| most.max(y.abs()));
        for (index, (eight, sixteen)) in eight.iter().zip(&sixteen).enumerate() {
            let difference = (eight - sixteen).abs();
            assert!(
                difference <= largest * 1e-5,
                "result {index} of {rows} rows is {eight} in eight lanes, {sixteen} in sixteen"
            );
        }
    }
}

#[test]
fn sixteen_lanes_differ_from_eight_by_rounding() {
    if !crate::product::Avx512::is_available() {
        return;
    }
    // More groups than a register has scales, and fewer.
    for (groups, group_size) in [(35, 32), (9, 64), (3, 128)] {
        let len = OUTPUTS * groups;
        let floats: Vec<f32> = (1..=2 * len).map(number).collect();
        let (scales, biases) = floats.split_at(len);
        let brains: Vec<bf16> = floats.iter().copied().map(bf16::from_f32).collect();
        let halves: Vec<f16> = floats.iter().copied().map(f16::from_f32).collect();
        let exponents: Vec<u8> = (0..len)
            .map(|index| u8::try_from(110 + index * 31 % 29).expect("below 140"))
            .collect();
        check::<Integer<4>>(Shared::F32(scales, biases), groups, group_size);
        check::<Integer<4>>(
            Shared::Bf16(&brains[..len], &brains[len..]),
            groups,
            group_size,
        );
        check::<Integer<4>>(
            Shared::F16(&halves[..len], &halves[len..]),
            groups,
            group_size,
        );
        check::<E2m1>(Shared::E8m0(&exponents), groups, group_size);
    }
}
