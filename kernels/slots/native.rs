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

/// `table` `[n]`, `slots` `[m]` -> `[m]`.
#[derive(Clone, Copy)]
pub(super) struct GatherSlots;

impl HostKernel for GatherSlots {
    const NAME: &'static CStr = c"gather_slots";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let table = inputs[0].as_slice::<i32>();
        let slots = inputs[1].as_slice::<i32>();
        for (value, &slot) in outputs[0].as_mut_slice::<i32>().iter_mut().zip(slots) {
            *value = table[index(slot, table.len())];
        }
    }
}

fn index(slot: i32, len: usize) -> usize {
    match usize::try_from(slot) {
        Ok(index) if index < len => index,
        _ => panic!("slot {slot} is not in a table of {len}"),
    }
}
