//! Rows of tokens in the order of their experts, and back. Contract: `contract.md`.

mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{check::Arguments, error::Result, ffi::Output, node::HostKernel, route::Routes};

/// The rows of a batch, in the order of their experts.
#[derive(Clone, Debug)]
pub struct Dispatched {
    /// `[tokens * k, dim]`.
    pub rows: Array,
    /// Which rows belong to which expert.
    pub groups: ExpertGroups,
}

/// Which rows belong to which expert, and to which token.
#[derive(Clone, Debug)]
pub struct ExpertGroups {
    /// `[num_experts]` int32: where each expert's rows end.
    pub(crate) ends: Array,
    /// `[tokens, k]` int32: where each token's rows are.
    pub(crate) row_of: Array,
}

/// Repeats each row of `x` for each of its experts, and puts the rows of an expert together.
///
/// # Shapes
/// - `x`: `[tokens, dim]` float32, bfloat16 or float16
/// - `experts`: `[tokens, k]` int32
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together. An
/// expert that is not below `num_experts` is an error when a result is evaluated.
///
/// # Source
/// Same division of work as vLLM's `moe_permute` (csrc/moe).
pub fn dispatch(x: &Array, experts: &Array, num_experts: i32) -> Result<Dispatched> {
    const CHECK: Arguments = Arguments { kernel: "dispatch" };
    CHECK.ndim("x", x, 2, "[tokens, dim]")?;
    CHECK.dtype("experts", experts, Dtype::Int32, "int32")?;
    let (tokens, dim) = (x.shape()[0], x.shape()[1]);
    let k = match *experts.shape() {
        [rows, k] if rows == tokens => k,
        _ => return Err(CHECK.shape("experts", experts, "[tokens, k] with the tokens of `x`")),
    };
    let x32 = CHECK.as_f32("x", x)?;
    let node = native::Dispatch {
        dim: CHECK.size(dim),
    };
    let fresh = |shape, dtype| Output::Fresh { shape, dtype };
    let [rows, ends, row_of] = node.add(
        &[&x32, experts],
        [
            fresh(&[tokens * k, dim], Dtype::Float32),
            fresh(&[num_experts], Dtype::Int32),
            fresh(&[tokens, k], Dtype::Int32),
        ],
    )?;
    let rows = match x32 {
        Cow::Borrowed(_) => rows,
        Cow::Owned(_) => rows.as_dtype(x.dtype())?,
    };
    Ok(Dispatched {
        rows,
        groups: ExpertGroups { ends, row_of },
    })
}

/// Adds the rows of each token, weighed, in the order of its experts in `routes`.
///
/// # Shapes
/// - `rows`: `[tokens * k, dim]` float32, bfloat16 or float16, in the order of `groups`
/// - result: `[tokens, dim]`, dtype of `rows`
///
/// # Errors
/// As [`dispatch`].
///
/// # Source
/// Same division of work as vLLM's `moe_unpermute` (csrc/moe).
pub fn combine(rows: &Array, groups: &ExpertGroups, routes: &Routes) -> Result<Array> {
    const CHECK: Arguments = Arguments { kernel: "combine" };
    let shape = groups.row_of.shape();
    CHECK.dims(
        "weights",
        &routes.weights,
        shape,
        "[tokens, k] like the groups",
    )?;
    let (tokens, k) = (shape[0], shape[1]);
    let dim = match *rows.shape() {
        [num_rows, dim] if num_rows == tokens * k => dim,
        _ => return Err(CHECK.shape("rows", rows, "[tokens * k, dim]")),
    };
    let node = native::Combine {
        experts_per_token: CHECK.size(k),
        dim: CHECK.size(dim),
    };
    let rows32 = CHECK.as_f32("rows", rows)?;
    let output = Output::Fresh {
        shape: &[tokens, dim],
        dtype: Dtype::Float32,
    };
    let [y] = node.add(&[&rows32, &groups.row_of, &routes.weights], [output])?;
    match rows32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(rows.dtype())?),
    }
}
