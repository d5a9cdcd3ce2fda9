//! The gate of a gated MLP on a GPU.

use mlx_rs::Array;

use super::Activation;
use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, groups_of, int, word},
};

/// `gate_up` `[.., 2 * intermediate]` -> `shape`, which is `[.., intermediate]`.
pub(super) fn act_mul(
    gate_up: &Array,
    (x_type, activation): (FloatType, Activation),
    shape: &[i32],
) -> Result<Array> {
    let act = match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
    };
    let intermediate = shape.last().copied().unwrap_or(0);
    let rows = int(gate_up.size() / 2) / intermediate.max(1);
    let launch = Launch {
        kernel: "act_mul",
        sources: &[dialect_source!("kernel.kh")],
        words: &[("X", word(x_type)), ("ACT", act)],
        scalars: &[intermediate.into(), rows.into()],
        // A grid has 65,535 rows at most.
        groups: [
            groups_of(intermediate, 8 * 256),
            rows.min(32_768),
            groups_of(rows, 32_768),
        ],
        threads: 256,
    };
    let output = Output::Fresh {
        shape,
        dtype: gate_up.dtype(),
    };
    let [y] = launch.add(&[gate_up], [output])?;
    Ok(y)
}
