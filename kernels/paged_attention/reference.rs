//! Attention over the paged cache in plain loops.

/// What a layer and a batch look like, with all arrays flat and in f32.
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key_cache: &'a [f32],
    pub(crate) value_cache: &'a [f32],
    pub(crate) block_table: &'a [i32],
    pub(crate) query_start_loc: &'a [i32],
    pub(crate) seq_lens: &'a [i32],
    pub(crate) sinks: Option<&'a [f32]>,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) scale: f32,
    pub(crate) sliding_window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
}

fn size(value: i32) -> usize {
    usize::try_from(value).expect("the reference is given valid metadata")
}

/// The attention of every query, in f64; zero for tokens of no request.
pub(crate) fn paged_attention(inputs: &Inputs<'_>) -> Vec<f64> {
    let mut out = vec![0.0; inputs.query.len()];
    let max_blocks = inputs.block_table.len() / inputs.seq_lens.len().max(1);
    for (request, &seq_len) in inputs.seq_lens.iter().enumerate() {
        let start = size(inputs.query_start_loc[request]);
        let end = size(inputs.query_start_loc[request + 1]);
        let blocks = &inputs.block_table[request * max_blocks..][..max_blocks];
        for token in start..end {
            let position = size(seq_len) - (end - start) + (token - start);
            for head in 0..inputs.num_heads {
                let row = (token * inputs.num_heads + head) * inputs.head_dim;
                attend(inputs, blocks, position, head, row, &mut out);
            }
        }
    }
    out
}

fn attend(
    inputs: &Inputs<'_>,
    blocks: &[i32],
    position: usize,
    head: usize,
    row: usize,
    out: &mut [f64],
) {
    let dim = inputs.head_dim;
    let kv_head = head / (inputs.num_heads / inputs.num_kv_heads);
    let first = inputs
        .sliding_window
        .map_or(0, |window| (position + 1).saturating_sub(window as usize));
    let at = |key: usize| {
        let slot =
            size(blocks[key / inputs.block_size]) * inputs.block_size + key % inputs.block_size;
        (slot * inputs.num_kv_heads + kv_head) * dim
    };
    let score = |key: usize| {
        let keys = &inputs.key_cache[at(key)..][..dim];
        let products = keys.iter().zip(&inputs.query[row..]);
        let product: f64 = products.map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
        let score = product * f64::from(inputs.scale);
        inputs.soft_cap.map_or(score, |cap| {
            let cap = f64::from(cap);
            cap * (score / cap).tanh()
        })
    };
    let scores: Vec<f64> = (first..=position).map(score).collect();
    let sink = inputs.sinks.map(|sinks| f64::from(sinks[head]));
    let max = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
    let total: f64 = scores
        .iter()
        .copied()
        .chain(sink)
        .map(|s| (s - max).exp())
        .sum();
    for (key, score) in (first..=position).zip(scores) {
        let weight = (score - max).exp() / total;
        for i in 0..dim {
            out[row + i] += weight * f64::from(inputs.value_cache[at(key) + i]);
        }
    }
}
