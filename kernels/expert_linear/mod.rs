//! The linear layers of a mixture of experts. Contract: `contract.md`.

mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    dispatch::ExpertGroups,
    element::FloatType,
    error::Result,
    ffi::Output,
    node::HostKernel,
    quantized_linear::{Matrix, QuantizedMatrix, parts},
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
    let (outputs, inputs) = match *weight.shape() {
        [experts, outputs, inputs] if groups.ends.shape() == [experts] => (outputs, inputs),
        _ => {
            let rule = "[experts, out, in], experts as dispatched";
            return Err(CHECK.shape("weight", weight, rule));
        }
    };
    let call = Call {
        x,
        groups,
        weight: native::Stack::Dense(weight_type),
        inputs,
        outputs,
    };
    call.add(&[weight], bias)
}

/// As [`expert_linear`], with the weights of all experts as one matrix `[experts * out, in]`.
///
/// # Errors
/// As [`expert_linear`].
pub fn quantized_expert_linear(
    x: &Array,
    groups: &ExpertGroups,
    weight: &QuantizedMatrix,
    bias: Option<&Array>,
) -> Result<Array> {
    let experts = groups.ends.dim(0);
    if experts == 0 || weight.outputs() % experts != 0 {
        let rule = "[experts * out, in], experts as dispatched";
        return Err(CHECK.shape("weight", weight.scales(), rule));
    }
    let call = Call {
        x,
        groups,
        weight: native::Stack::Quantized(Matrix::of(weight)),
        inputs: weight.inputs(),
        outputs: weight.outputs() / experts,
    };
    call.add(&parts(weight).collect::<Vec<_>>(), bias)
}

/// What both functions have in common.
struct Call<'a> {
    x: &'a Array,
    groups: &'a ExpertGroups,
    weight: native::Stack,
    inputs: i32,
    outputs: i32,
}

impl Call<'_> {
    fn add(self, weight: &[&Array], bias: Option<&Array>) -> Result<Array> {
        let Self { x, groups, .. } = self;
        let rows = CHECK.product(groups.row_of.shape());
        let matches = matches!(*x.shape(), [n, dim] if CHECK.size(n) == rows && dim == self.inputs);
        if !matches {
            return Err(CHECK.shape("x", x, "[rows, in] with all dispatched rows"));
        }
        let bias_type = match bias {
            Some(bias) => {
                let dims = [groups.ends.dim(0), self.outputs];
                CHECK.dims("bias", bias, &dims, "[experts, out]")?;
                Some(FloatType::of(CHECK.kernel, "bias", bias)?)
            }
            None => None,
        };
        let node = native::ExpertLinear {
            inputs: CHECK.size(self.inputs),
            outputs: CHECK.size(self.outputs),
            weight: self.weight,
            bias: bias_type,
        };
        let x32 = CHECK.as_f32("x", x)?;
        let output = Output::Fresh {
            shape: &[x.dim(0), self.outputs],
            dtype: Dtype::Float32,
        };
        let inputs: Vec<&Array> = [&*x32, &groups.ends]
            .into_iter()
            .chain(weight.iter().copied())
            .chain(bias)
            .collect();
        let [y] = node.add(&inputs, [output])?;
        match x32 {
            Cow::Borrowed(_) => Ok(y),
            Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
        }
    }
}
