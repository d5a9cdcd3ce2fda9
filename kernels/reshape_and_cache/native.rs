//! Copy and conversion of whole rows on the CPU.

use std::ffi::CStr;

use crate::{
    PAD_SLOT,
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
};

/// Tokens that one task writes.
const TOKENS_PER_TASK: usize = 16;

/// `key`, `value` `[num_tokens, row]`, `slot_mapping`, `key_cache`, `value_cache` `[num_slots, row]`
/// -> `key_cache`, `value_cache`.
#[derive(Clone, Copy)]
pub(super) struct ReshapeAndCache {
    pub(super) num_slots: usize,
    /// `num_kv_heads * head_dim`.
    pub(super) row: usize,
    pub(super) cache: FloatType,
}

impl HostKernel for ReshapeAndCache {
    const NAME: &'static CStr = c"reshape_and_cache";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let slots = inputs[2].as_slice::<i32>();
        for &slot in slots {
            let in_range = usize::try_from(slot).is_ok_and(|slot| slot < self.num_slots);
            assert!(
                in_range || slot == PAD_SLOT,
                "slot {slot} is not in a cache of {} slots",
                self.num_slots
            );
        }
        with_float_type!(self.cache, T => {
            for (input, output) in inputs.iter().zip(outputs) {
                self.write::<T>(input.as_slice(), slots, output.as_mut_slice());
            }
        });
    }
}

impl ReshapeAndCache {
    fn write<T: Float>(&self, rows: &[f32], slots: &[i32], cache: &mut [T]) {
        assert!(rows.len() == slots.len() * self.row);
        assert!(cache.len() == self.num_slots * self.row);
        let cache = Shared::new(cache);
        let num_tasks = slots.len().div_ceil(TOKENS_PER_TASK);
        pool::for_each(num_tasks, rows.len(), |task| {
            let first = task * TOKENS_PER_TASK;
            let last = slots.len().min(first + TOKENS_PER_TASK);
            for token in first..last {
                let Ok(slot) = usize::try_from(slots[token]) else {
                    continue; // PAD_SLOT
                };
                // SAFETY: slots of one forward are distinct by contract; if they were not, plain
                // numbers would be overwritten by plain numbers.
                let to = unsafe { cache.part(slot * self.row, self.row) };
                for (to, from) in to.iter_mut().zip(&rows[token * self.row..][..self.row]) {
                    *to = T::from_f32(*from);
                }
            }
        });
    }
}
