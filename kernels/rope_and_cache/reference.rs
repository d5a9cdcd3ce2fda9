//! From projections to queries, keys and values in plain loops.

/// How heads are normalised and turned.
pub(crate) struct Heads<'a> {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Weights of queries and keys, and what is added to the mean square.
    pub(crate) norm: Option<([&'a [f32]; 2], f64)>,
    /// Radians a token, factor, and whether neighbours turn together.
    pub(crate) rope: Option<(&'a [f32], f32, bool)>,
}

/// Queries, keys and values of all tokens, in f64.
pub(crate) fn rope_and_cache(qkv: &[f32], positions: &[i32], heads: &Heads<'_>) -> [Vec<f64>; 3] {
    let mut results = [Vec::new(), Vec::new(), Vec::new()];
    let ends = [heads.num_heads, heads.num_heads + heads.num_kv_heads];
    let row = (ends[1] + heads.num_kv_heads) * heads.head_dim;
    for (token, &position) in positions.iter().enumerate() {
        let x = qkv[token * row..][..row].chunks_exact(heads.head_dim);
        for (index, x) in x.enumerate() {
            let kind = ends.iter().filter(|&&end| index >= end).count();
            let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            if kind < 2 {
                if let Some((weights, eps)) = &heads.norm {
                    normalise(&mut y, weights[kind], *eps);
                }
                if let Some((inv_freq, scale, interleaved)) = heads.rope {
                    for (i, &frequency) in inv_freq.iter().enumerate() {
                        #[expect(clippy::cast_precision_loss, reason = "as transformers does")]
                        let angle = f64::from(position as f32 * frequency);
                        let (a, b) = match interleaved {
                            true => (2 * i, 2 * i + 1),
                            false => (i, i + inv_freq.len()),
                        };
                        let (sine, cosine) = angle.sin_cos();
                        let (y0, y1) = (y[a], y[b]);
                        y[a] = (y0 * cosine - y1 * sine) * f64::from(scale);
                        y[b] = (y1 * cosine + y0 * sine) * f64::from(scale);
                    }
                }
            }
            results[kind].extend(y);
        }
    }
    results
}

fn normalise(row: &mut [f64], weight: &[f32], eps: f64) {
    #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^53")]
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    for (x, &weight) in row.iter_mut().zip(weight) {
        *x *= f64::from(weight) / (mean + eps).sqrt();
    }
}
