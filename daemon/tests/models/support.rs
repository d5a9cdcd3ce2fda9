//! Runs a model without the engine: what a batch is made of, by hand.

use std::path::{Path, PathBuf};

use metal_rpc_kernels::AttentionMetadata;
use metald::{
    kv_cache::{KvCache, LayerCache},
    models::{self, Dtype, ForwardInput, GroupInput, LoadOptions, Model, ModelError},
};
use mlx_rs::{Array, DeviceType};

/// Tokens in a block: small, so that every prompt crosses several borders.
pub(crate) const BLOCK_SIZE: i32 = 4;

/// The folder of a stored checkpoint.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Loads on the CPU with memory to spare.
pub(crate) fn load(folder: &Path, dtype: Dtype) -> Result<Box<dyn Model>, ModelError> {
    let options = LoadOptions {
        dtype,
        rope_len: None,
        device: DeviceType::Cpu,
        free_bytes: u64::MAX,
        progress: &mut |_, _| {},
    };
    models::load(folder, options)
}

/// A part of a request's tokens, as one forward sees it.
pub(crate) struct Chunk<'a> {
    /// The tokens to compute.
    pub(crate) token_ids: &'a [i32],
    /// Tokens of the request that are in the cache already.
    pub(crate) num_computed: usize,
    /// The request's blocks, in order of position.
    pub(crate) blocks: &'a [i32],
}

/// A model and its cache.
pub(crate) struct Runner {
    model: Box<dyn Model>,
    cache: KvCache,
}

impl Runner {
    /// With a cache of `num_blocks`.
    pub(crate) fn new(model: Box<dyn Model>, num_blocks: i32) -> Self {
        let layer = |spec: &metal_rpc_protocol::KvCacheSpec| {
            let heads = i32::try_from(spec.num_kv_heads).expect("small");
            let head_dim = i32::try_from(spec.head_dim).expect("small");
            let dtype = Dtype::from_name(&spec.dtype).expect("known");
            LayerCache::reserve([num_blocks, BLOCK_SIZE, heads, head_dim], dtype.mlx())
                .expect("reserve")
        };
        let layers = model.kv_cache_specs().iter().map(layer).collect();
        Self {
            model,
            cache: KvCache::of_one_group(layers),
        }
    }

    /// The logits of every token, `[num_tokens][vocab_size]`, in one forward.
    pub(crate) fn run(&mut self, chunks: &[Chunk<'_>]) -> Vec<Vec<f32>> {
        let hidden = self
            .model
            .forward(&input(chunks), &mut self.cache)
            .expect("forward");
        let logits = self.model.logits(&hidden).expect("logits");
        logits.eval().expect("eval");
        let vocab_size = usize::try_from(self.model.vocab_size()).expect("small");
        logits
            .as_slice::<f32>()
            .chunks(vocab_size)
            .map(<[f32]>::to_vec)
            .collect()
    }
}

fn input(chunks: &[Chunk<'_>]) -> ForwardInput {
    let (mut token_ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut starts, mut seq_lens, mut table) = (vec![0], Vec::new(), Vec::new());
    let max_blocks = chunks.iter().map(|chunk| chunk.blocks.len()).max();
    let max_blocks = max_blocks.expect("a chunk");
    for chunk in chunks {
        token_ids.extend_from_slice(chunk.token_ids);
        for index in chunk.num_computed..chunk.num_computed + chunk.token_ids.len() {
            let position = i32::try_from(index).expect("small");
            let block = chunk.blocks[index / BLOCK_SIZE.unsigned_abs() as usize];
            positions.push(position);
            slots.push(block * BLOCK_SIZE + position % BLOCK_SIZE);
        }
        starts.push(i32::try_from(token_ids.len()).expect("small"));
        seq_lens.push(positions.last().expect("a token") + 1);
        table.extend_from_slice(chunk.blocks);
        table.resize(seq_lens.len() * max_blocks, 0);
    }
    let vector =
        |values: &[i32]| Array::from_slice(values, &[i32::try_from(values.len()).expect("small")]);
    let shape = [chunks.len(), max_blocks].map(|dim| i32::try_from(dim).expect("small"));
    ForwardInput {
        token_ids: vector(&token_ids),
        positions: vector(&positions),
        groups: vec![GroupInput {
            slot_mapping: vector(&slots),
            attention: AttentionMetadata {
                block_table: Array::from_slice(&table, &shape),
                query_start_loc: vector(&starts),
                seq_lens: vector(&seq_lens),
            },
        }],
    }
}
