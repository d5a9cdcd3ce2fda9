//! A table of i32 in device memory, written and read by slot. Contract: `contract.md`.
//!
//! The daemon keeps the token ids of all running requests in such a table, so that a step can be
//! built on tokens that are not computed yet.

mod gpu;
mod native;

use mlx_rs::{Array, Dtype, ops::concatenate};

use crate::{check::Arguments, error::Result, ffi::Output, gpu::is_chosen, node::HostKernel};

/// Writes `values[i]` into `table[slots[i]]`, in place.
///
/// The handle is replaced by the new version; the old one shows the new contents too, so nothing
/// else may hold it. Of equal slots the last one wins.
///
/// # Shapes
/// - `table`: `[n]` int32
/// - `values`: `[m]` int32 or uint32
/// - `slots`: `[m]` int32 in `0..n`; [`PAD_SLOT`](crate::PAD_SLOT) skips the value
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together. A slot
/// out of range is an error when the result is evaluated, and on a GPU skipped (read as 0);
/// nothing is written out of range.
pub fn write_slots(table: &mut Array, values: &Array, slots: &Array) -> Result<()> {
    const CHECK: Arguments = Arguments {
        kernel: "write_slots",
    };
    check_table(CHECK, table, slots)?;
    CHECK.dims("values", values, slots.shape(), "[m] like `slots`")?;
    if values.dtype() != Dtype::Uint32 {
        CHECK.dtype("values", values, Dtype::Int32, "int32 or uint32")?;
    }
    if is_chosen()? {
        *table = gpu::write_slots(table, values, slots)?;
        return Ok(());
    }
    let [written] =
        native::WriteSlots.add(&[&*table, values, slots], [Output::InPlace { input: 0 }])?;
    *table = written;
    Ok(())
}

/// `table[slots[i]]` for every `i`.
///
/// # Shapes
/// - `table`: `[n]` int32
/// - `slots`: `[m]` int32 in `0..n`
/// - result: `[m]` int32
///
/// # Errors
/// As [`write_slots`].
pub fn gather_slots(table: &Array, slots: &Array) -> Result<Array> {
    gather_slots_of(&[(table, slots)])
}

/// As [`gather_slots`] from several tables, the values of one after those of another.
///
/// # Errors
/// As [`write_slots`].
///
/// # Panics
/// If there is no table.
pub fn gather_slots_of(tables: &[(&Array, &Array)]) -> Result<Array> {
    const CHECK: Arguments = Arguments {
        kernel: "gather_slots",
    };
    assert!(!tables.is_empty());
    for (table, slots) in tables {
        check_table(CHECK, table, slots)?;
    }
    if is_chosen()? {
        let gathered = tables
            .iter()
            .map(|(table, slots)| gpu::gather_slots(table, slots))
            .collect::<Result<Vec<_>>>()?;
        return Ok(match gathered.as_slice() {
            [values] => values.clone(),
            gathered => concatenate(gathered, 0)?,
        });
    }
    let inputs: Vec<&Array> = tables
        .iter()
        .flat_map(|(table, slots)| [*table, *slots])
        .collect();
    let output = Output::Fresh {
        shape: &[tables.iter().map(|(_, slots)| slots.dim(0)).sum()],
        dtype: Dtype::Int32,
    };
    let [values] = native::GatherSlots.add(&inputs, [output])?;
    Ok(values)
}

fn check_table(check: Arguments, table: &Array, slots: &Array) -> Result<()> {
    check.ndim("table", table, 1, "[n]")?;
    check.dtype("table", table, Dtype::Int32, "int32")?;
    check.ndim("slots", slots, 1, "[m]")?;
    check.dtype("slots", slots, Dtype::Int32, "int32")
}
