//! A batch for the attention, with a cache as scattered and as hostile as can be.

use metal_rpc_kernels::{AttentionMetadata, AttentionParams, KernelError, paged_attention};
use mlx_rs::{Array, Dtype};

use super::{
    Random, array, array_i32, f32s, int, ints,
    paged_attention_cases::Case,
    paged_attention_reference::{self as reference, Inputs},
    rounded,
};

/// A case made into arrays.
///
/// Blocks of all requests are dealt out from one shuffled pool, as those of several frontends are.
/// Everything in the pool that is not a key or a value of a request is NaN, so that one step
/// beyond a context shows in the result.
pub(crate) struct Batch {
    pub(crate) case: Case,
    pub(crate) query: Vec<f32>,
    pub(crate) key_cache: Array,
    pub(crate) value_cache: Array,
    keys: Vec<f32>,
    values: Vec<f32>,
    block_table: Vec<Vec<i32>>,
    sinks: Vec<f32>,
}

impl Batch {
    pub(crate) fn new(case: &Case, dtype: Dtype, random: &mut Random) -> Self {
        let num_tokens =
            case.requests.iter().map(|request| request.0).sum::<usize>() + case.padding;
        let blocks_of = |&(_, seq_len): &(usize, usize)| seq_len.div_ceil(case.block_size);
        let num_blocks = case.requests.iter().map(blocks_of).sum::<usize>() + 3;
        let mut free: Vec<i32> = (0..int(num_blocks)).collect();
        random.shuffle(&mut free);
        let mut take = |count: usize| free.split_off(free.len() - count);
        let block_table: Vec<Vec<i32>> = case
            .requests
            .iter()
            .map(|request| take(blocks_of(request)))
            .collect();

        let row = case.num_kv_heads * case.head_dim;
        let shape = [
            num_blocks,
            case.block_size,
            case.num_kv_heads,
            case.head_dim,
        ];
        let mut cache = || {
            let mut cache = vec![f32::NAN; num_blocks * case.block_size * row];
            for (request, blocks) in case.requests.iter().zip(&block_table) {
                for position in 0..request.1 {
                    let block =
                        usize::try_from(blocks[position / case.block_size]).expect("a block");
                    let slot = block * case.block_size + position % case.block_size;
                    cache[slot * row..][..row].copy_from_slice(&random.units(row));
                }
            }
            rounded(&cache, &shape, dtype)
        };
        let (key_cache, keys) = cache();
        let (value_cache, values) = cache();
        Self {
            query: random.units(num_tokens * case.num_heads * case.head_dim),
            sinks: random.units(case.num_heads),
            case: case.clone(),
            key_cache,
            value_cache,
            keys,
            values,
            block_table,
        }
    }

    /// The kernel's result for some queries: `(request, query_len, seq_len)` each, in order.
    pub(crate) fn attend(
        &self,
        query: &[f32],
        requests: &[(usize, usize, usize)],
    ) -> Result<Vec<f32>, KernelError> {
        self.attend_as(Dtype::Float32, query, requests)
    }

    /// As `attend`, with queries of another dtype.
    pub(crate) fn attend_as(
        &self,
        dtype: Dtype,
        query: &[f32],
        requests: &[(usize, usize, usize)],
    ) -> Result<Vec<f32>, KernelError> {
        let case = &self.case;
        let row = case.num_heads * case.head_dim;
        let (table, starts, seq_lens) = self.metadata(requests);
        let max_blocks = table.len() / requests.len().max(1);
        let metadata = AttentionMetadata {
            block_table: Array::from_slice(&table, &ints(&[requests.len(), max_blocks])),
            query_start_loc: array_i32(&starts),
            seq_lens: array_i32(&seq_lens),
        };
        let params = AttentionParams {
            scale: self.scale(),
            sliding_window: case.sliding_window,
            soft_cap: case.soft_cap,
            sinks: case.sinks.then(|| array(&self.sinks, &[case.num_heads])),
        };
        let query = array(query, &[query.len() / row, case.num_heads, case.head_dim]);
        let query = query.as_dtype(dtype)?;
        let out = paged_attention(
            &query,
            &self.key_cache,
            &self.value_cache,
            &metadata,
            &params,
        )?;
        Ok(f32s(&out))
    }

    /// The same with queries that the cache's dtype can hold.
    pub(crate) fn rounded_queries(mut self) -> Self {
        let len = self.query.len();
        (_, self.query) = rounded(&self.query, &[len], self.key_cache.dtype());
        self
    }

    /// All requests of the case, as `attend` takes them.
    pub(crate) fn all(&self) -> Vec<(usize, usize, usize)> {
        let requests = self.case.requests.iter().enumerate();
        requests
            .map(|(i, &(query_len, seq_len))| (i, query_len, seq_len))
            .collect()
    }

    pub(crate) fn reference(&self) -> Vec<f64> {
        let (table, starts, seq_lens) = self.metadata(&self.all());
        reference::paged_attention(&Inputs {
            query: &self.query,
            key_cache: &self.keys,
            value_cache: &self.values,
            block_table: &table,
            query_start_loc: &starts,
            seq_lens: &seq_lens,
            sinks: self.case.sinks.then_some(self.sinks.as_slice()),
            num_heads: self.case.num_heads,
            num_kv_heads: self.case.num_kv_heads,
            head_dim: self.case.head_dim,
            block_size: self.case.block_size,
            scale: self.scale(),
            sliding_window: self.case.sliding_window,
            soft_cap: self.case.soft_cap,
        })
    }

    fn scale(&self) -> f32 {
        // Larger than a model's, so that the softmax is far from uniform.
        3.0 / f32::from(u16::try_from(self.case.head_dim).expect("small")).sqrt()
    }

    /// Block table (padded with a block that does not exist), `query_start_loc`, `seq_lens`.
    fn metadata(&self, requests: &[(usize, usize, usize)]) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
        let max_blocks = self.block_table.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let (mut table, mut starts, mut seq_lens) = (Vec::new(), vec![0], Vec::new());
        for &(request, query_len, seq_len) in requests {
            let mut blocks = self.block_table[request].clone();
            blocks.resize(max_blocks, i32::MAX);
            table.extend(blocks);
            starts.push(starts[starts.len() - 1] + int(query_len));
            seq_lens.push(int(seq_len));
        }
        (table, starts, seq_lens)
    }
}
