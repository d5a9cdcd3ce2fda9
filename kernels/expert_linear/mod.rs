//! The linear layers of a mixture of experts. Contract: `contract.md`.

mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, dispatch::ExpertGroups, element::FloatType, error::Result, ffi::Output,
    node::HostKernel,
};

const CHECK: Arguments = Arguments {
    kernel: "expert_linear",
};

/// Multiplies every row of `x` with the weights of its expert, and adds that expert's bias.
///
/// The weights of an expert are read once for all its rows, and those of an expert without rows are
/// not read. A row has the bits that [`linear`](crate::linear) gives it with its expert's weights.
///
/// # Shapes
/// - `x`: `[rows, in]` float32, bfloat16 or float16, in the order of `groups`
/// - `weight`: `[experts, out, in]` float32, bfloat16 or float16
/// - `bias`: `[experts, out]` float32, bfloat16 or float16
/// - result: `[rows, out]`, dtype of `x`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
pub fn expert_linear(
    x: &Array,
    groups: &ExpertGroups,
    weight: &Array,
    bias: Option<&Array>,
) -> Result<Array> {
    let weight_type = FloatType::of(CHECK.kernel, "weight", weight)?;
    let [experts, outputs, inputs] = match *weight.shape() {
        [experts, outputs, inputs] if groups.ends.shape() == [experts] => {
            [experts, outputs, inputs]
        }
        _ => {
            return Err(CHECK.shape(
                "weight",
                weight,
                "[experts, out, in], experts as dispatched",
            ));
        }
    };
    let rows = CHECK.product(groups.row_of.shape());
    let matches = matches!(*x.shape(), [n, dim] if CHECK.size(n) == rows && dim == inputs);
    if !matches {
        return Err(CHECK.shape("x", x, "[rows, in] with all dispatched rows"));
    }
    let bias_type = match bias {
        Some(bias) => {
            CHECK.dims("bias", bias, &[experts, outputs], "[experts, out]")?;
            Some(FloatType::of(CHECK.kernel, "bias", bias)?)
        }
        None => None,
    };
    let node = native::ExpertLinear {
        inputs: CHECK.size(inputs),
        outputs: CHECK.size(outputs),
        weight: weight_type,
        bias: bias_type,
    };
    let x32 = CHECK.as_f32("x", x)?;
    let output = Output::Fresh {
        shape: &[x.shape()[0], outputs],
        dtype: Dtype::Float32,
    };
    let [y] = match bias {
        Some(bias) => node.add(&[&x32, &groups.ends, weight, bias], [output])?,
        None => node.add(&[&x32, &groups.ends, weight], [output])?,
    };
    match x32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
    }
}
