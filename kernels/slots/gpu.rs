//! Scatter and gather of a few i32 on a GPU.

use mlx_rs::{Array, Dtype};

use crate::{
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, groups_of},
};

const THREADS: i32 = 256;

/// `table` `[n]`, `values`, `slots` `[m]` -> `table`.
pub(super) fn write_slots(table: &Array, values: &Array, slots: &Array) -> Result<Array> {
    let count = slots.dim(0);
    let launch = Launch {
        kernel: "write_slots",
        sources: &[dialect_source!("write.kh")],
        words: &[],
        scalars: &[table.dim(0).into(), count.into()],
        groups: [groups_of(count, THREADS), 1, 1],
        threads: THREADS,
    };
    let [table] = launch.add(&[table, values, slots], [Output::InPlace { input: 0 }])?;
    Ok(table)
}

/// `table` `[n]`, `slots` `[m]` -> `[m]`.
pub(super) fn gather_slots(table: &Array, slots: &Array) -> Result<Array> {
    let count = slots.dim(0);
    let launch = Launch {
        kernel: "gather_slots",
        sources: &[dialect_source!("gather.kh")],
        words: &[],
        scalars: &[table.dim(0).into(), count.into()],
        groups: [groups_of(count, THREADS), 1, 1],
        threads: THREADS,
    };
    let output = Output::Fresh {
        shape: slots.shape(),
        dtype: Dtype::Int32,
    };
    let [values] = launch.add(&[table, slots], [output])?;
    Ok(values)
}
