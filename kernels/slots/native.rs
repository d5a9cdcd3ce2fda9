//! Scatter and gather of a few i32 on the CPU.

use std::ffi::CStr;

use crate::{
    PAD_SLOT,
    node::{HostKernel, View},
};

/// `table` `[n]`, `values` `[m]`, `slots` `[m]` -> `table`.
#[derive(Clone, Copy)]
pub(super) struct WriteSlots;

impl HostKernel for WriteSlots {
    const NAME: &'static CStr = c"write_slots";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        // The bits of a u32 token id are those of the i32, both below 2^31.
        let values = inputs[1].as_slice::<i32>();
        let slots = inputs[2].as_slice::<i32>();
        let table = outputs[0].as_mut_slice::<i32>();
        for (&value, &slot) in values.iter().zip(slots) {
            if slot != PAD_SLOT {
                table[index(slot, table.len())] = value;
            }
        }
    }
}

/// Pairs of `table` `[n]` and `slots` `[m]` -> `[sum of m]`.
#[derive(Clone, Copy)]
pub(super) struct GatherSlots;

impl HostKernel for GatherSlots {
    const NAME: &'static CStr = c"gather_slots";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let mut values = outputs[0].as_mut_slice::<i32>().iter_mut();
        for pair in inputs.chunks_exact(2) {
            let table = pair[0].as_slice::<i32>();
            for (&slot, value) in pair[1].as_slice::<i32>().iter().zip(&mut values) {
                *value = table[index(slot, table.len())];
            }
        }
    }
}

fn index(slot: i32, len: usize) -> usize {
    match usize::try_from(slot) {
        Ok(index) if index < len => index,
        _ => panic!("slot {slot} is not in a table of {len}"),
    }
}
