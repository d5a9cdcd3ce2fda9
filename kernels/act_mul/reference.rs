//! The gate of a gated MLP in plain loops.

/// `silu(gate) * up` in f64, row by row.
pub(crate) fn silu_mul(gate_up: &[f32], intermediate: usize) -> Vec<f64> {
    act_mul(gate_up, intermediate, |x| x / (1.0 + (-x).exp()))
}

/// The exponent of GELU at `x`: twice what its tanh is taken of.
pub(crate) fn gelu_exponent(x: f64) -> f64 {
    2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))
}

/// `gelu(gate) * up` in f64, row by row; where tanh is near -1 by the exponential that it ends in.
pub(crate) fn gelu_tanh_mul(gate_up: &[f32], intermediate: usize) -> Vec<f64> {
    act_mul(gate_up, intermediate, |x| {
        let exponent = gelu_exponent(x);
        match exponent < -20.0 {
            true => x * exponent.exp(),
            false => x / 2.0 * (1.0 + (exponent / 2.0).tanh()),
        }
    })
}

fn act_mul(gate_up: &[f32], intermediate: usize, act: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut results = Vec::new();
    for row in gate_up.chunks_exact(2 * intermediate) {
        let (gate, up) = row.split_at(intermediate);
        let pairs = gate.iter().zip(up);
        results.extend(pairs.map(|(gate, up)| act(f64::from(*gate)) * f64::from(*up)));
    }
    results
}
