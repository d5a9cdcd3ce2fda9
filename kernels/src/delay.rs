//! A node that waits: a device that is busy, to measure what surrounds one.

use std::{ffi::CStr, thread, time::Instant};

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    error::Result,
    ffi::Output,
    node::{HostKernel, View},
};

/// `x` -> `x`, later.
#[derive(Clone, Copy)]
struct Delay {
    until: Instant,
}

impl HostKernel for Delay {
    const NAME: &'static CStr = c"delay";
    const IS_REPEATABLE: bool = false;

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        outputs[0]
            .as_mut_slice::<f32>()
            .copy_from_slice(inputs[0].as_slice());
        let remaining = self.until.saturating_duration_since(Instant::now());
        if !remaining.is_zero() {
            thread::sleep(remaining);
        }
    }
}

/// A copy of `x`, which is not ready before `until`; no core is busy meanwhile.
///
/// # Shapes
/// `x`: any, float32; the result is like it.
///
/// # Errors
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if `x` is not float32.
pub fn delay(x: &Array, until: Instant) -> Result<Array> {
    const CHECK: Arguments = Arguments { kernel: "delay" };
    CHECK.dtype("x", x, Dtype::Float32, "float32")?;
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: Dtype::Float32,
    };
    let [later] = Delay { until }.add(&[x], [output])?;
    Ok(later)
}
