//! Runs a model without the engine: what a batch is made of, by hand.

use std::path::{Path, PathBuf};

use metal_rpc_kernels::{AttentionMetadata, QkvParams, eval};
use metald::{
    kv_cache::{CacheGroups, KvCache},
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
    num_blocks: i32,
}

impl Runner {
    /// With a cache of `num_blocks` for each group, and a group for each kind of attention.
    ///
    /// Whoever reads the null block finds that it is not a number.
    pub(crate) fn new(model: Box<dyn Model>, num_blocks: i32) -> Self {
        let specs = model.kv_cache_specs();
        let mut windows: Vec<Option<u32>> = specs.iter().map(|spec| spec.sliding_window).collect();
        windows.sort_unstable();
        windows.dedup();
        let layers_of = |window: &Option<u32>| {
            let layers = (0..).zip(&specs);
            let same = layers.filter(|(_, spec)| spec.sliding_window == *window);
            same.map(|(layer, _)| layer).collect()
        };
        let groups: Vec<Vec<u32>> = windows.iter().map(layers_of).collect();
        let all_blocks = num_blocks * i32::try_from(groups.len()).expect("small");
        let groups = CacheGroups::new(&specs, &groups).expect("layers are alike");
        let sizes = [all_blocks, BLOCK_SIZE].map(i32::cast_unsigned);
        let mut cache = KvCache::reserve(&specs, groups, sizes).expect("reserve");
        let slots: Vec<i32> = (0..BLOCK_SIZE).collect();
        for layer in 0..specs.len() {
            let (cache, _) = cache.layer(layer);
            let (heads, dim) = (cache.key().dim(2), cache.key().dim(3));
            let shape = [BLOCK_SIZE, (1 + 2 * heads) * dim];
            let nan = Array::full::<f32>(&shape, Array::from_f32(f32::NAN)).expect("small");
            let params = QkvParams {
                num_heads: 1,
                norm: None,
                rope: None,
            };
            let slots = vector(&slots);
            cache
                .write(&nan, &slots, &slots, &params)
                .expect("in range");
        }
        Self {
            model,
            cache,
            num_blocks,
        }
    }

    /// The logits of every token, `[num_tokens][vocab_size]`, in one forward.
    pub(crate) fn run(&mut self, chunks: &[Chunk<'_>]) -> Vec<Vec<f32>> {
        let input = self.input(chunks);
        let hidden = self.model.forward(&input, &mut self.cache);
        let hidden = hidden.expect("forward");
        let logits = self.model.logits(&hidden).expect("logits");
        let logits = logits.as_dtype(mlx_rs::Dtype::Float32).expect("casts");
        eval([&logits]).expect("eval");
        let vocab_size = usize::try_from(self.model.vocab_size()).expect("small");
        logits
            .as_slice::<f32>()
            .chunks(vocab_size)
            .map(<[f32]>::to_vec)
            .collect()
    }

    fn input(&self, chunks: &[Chunk<'_>]) -> ForwardInput {
        let (mut token_ids, mut positions) = (Vec::new(), Vec::new());
        let (mut starts, mut seq_lens) = (vec![0], Vec::new());
        for chunk in chunks {
            token_ids.extend_from_slice(chunk.token_ids);
            positions.extend(chunk.positions());
            starts.push(i32::try_from(token_ids.len()).expect("small"));
            seq_lens.push(positions.last().expect("a token") + 1);
        }
        let (starts, seq_lens) = (vector(&starts), vector(&seq_lens));
        let groups = (0..).zip(self.cache.groups().windows());
        let groups = groups.map(|(group, window)| {
            let (slots, block_table) = self.tables(chunks, group, *window);
            GroupInput {
                slot_mapping: vector(&slots),
                attention: AttentionMetadata {
                    block_table,
                    query_start_loc: starts.clone(),
                    seq_lens: seq_lens.clone(),
                },
            }
        });
        ForwardInput {
            token_ids: vector(&token_ids),
            positions: vector(&positions),
            groups: groups.collect(),
        }
    }

    /// Slots and block table of one group: each has blocks of its own, and the null block where its
    /// layers see nothing any more.
    fn tables(&self, chunks: &[Chunk<'_>], group: i32, window: Option<u32>) -> (Vec<i32>, Array) {
        let offset = group * self.num_blocks;
        let max_blocks = chunks.iter().map(|chunk| chunk.blocks.len()).max();
        let max_blocks = max_blocks.expect("a chunk");
        let (mut slots, mut table) = (Vec::new(), Vec::new());
        for (row, chunk) in chunks.iter().enumerate() {
            slots.extend(chunk.positions().map(|position| {
                let block = offset + chunk.blocks[(position / BLOCK_SIZE).unsigned_abs() as usize];
                block * BLOCK_SIZE + position % BLOCK_SIZE
            }));
            let first_seen = window.map_or(0, |window| {
                (chunk.num_computed + 1).saturating_sub(window as usize)
            });
            let first_seen = first_seen / BLOCK_SIZE.unsigned_abs() as usize;
            let blocks = chunk.blocks.iter().enumerate();
            table.extend(blocks.map(|(index, block)| match index < first_seen {
                true => 0,
                false => offset + block,
            }));
            table.resize((row + 1) * max_blocks, 0);
        }
        let shape = [chunks.len(), max_blocks].map(|dim| i32::try_from(dim).expect("small"));
        (slots, Array::from_slice(&table, &shape))
    }
}

impl Chunk<'_> {
    fn positions(&self) -> impl Iterator<Item = i32> + use<> {
        let first = i32::try_from(self.num_computed).expect("small");
        let len = i32::try_from(self.token_ids.len()).expect("small");
        first..first + len
    }
}

fn vector(values: &[i32]) -> Array {
    Array::from_slice(values, &[i32::try_from(values.len()).expect("small")])
}
