//! The gate of a gated MLP in plain loops.

/// `gate / (1 + exp(-gate)) * up` in f64, row by row.
pub(crate) fn silu_mul(gate_up: &[f32], intermediate: usize) -> Vec<f64> {
    let mut results = Vec::new();
    for row in gate_up.chunks_exact(2 * intermediate) {
        let (gate, up) = row.split_at(intermediate);
        for (gate, up) in gate.iter().zip(up) {
            let gate = f64::from(*gate);
            results.push(gate / (1.0 + (-gate).exp()) * f64::from(*up));
        }
    }
    results
}
