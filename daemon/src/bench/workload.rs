//! The steps that a scheduler sends for a batch of requests that arrive together.
//!
//! All prompts first, in steps of a bounded number of tokens, then one token of each request a
//! step. Blocks are taken one by one as they are needed, so those of different requests interleave
//! as they do under vLLM.

use metal_rpc_protocol::{Exec, NewBlocks, NewRequest, SamplingParams};

/// What is asked of the daemon.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Requests at the same time.
    pub(super) num_reqs: u32,
    /// Tokens of each prompt.
    pub(super) prompt_len: u32,
    /// Steps after the prompts.
    pub(super) decode_len: u32,
    /// Tokens in a block.
    pub(super) block_size: u32,
    /// Most tokens in one step.
    pub(super) max_num_batched_tokens: u32,
    /// Entries of the vocabulary.
    pub(super) vocab_size: u32,
    /// KV-cache groups of the model.
    pub(super) num_groups: u32,
    /// How tokens are sampled.
    pub(super) sampling_params: SamplingParams,
}

impl Shape {
    /// Blocks that the requests need, the null block included.
    pub(super) fn num_blocks(&self) -> u32 {
        let per_req = (self.prompt_len + self.decode_len).div_ceil(self.block_size);
        1 + self.num_groups * self.num_reqs * per_req
    }
}

/// One batch of requests.
#[derive(Debug)]
pub(super) struct Workload {
    shape: Shape,
    next_block: u32,
    /// Makes the prompts differ.
    seed: u32,
}

impl Workload {
    /// A batch whose prompts depend on `seed`.
    pub(super) fn new(shape: Shape, seed: u32) -> Self {
        // Block 0 is the null block.
        Self {
            shape,
            next_block: 1,
            seed,
        }
    }

    /// The steps that run all prompts. The last step of each samples its first token.
    pub(super) fn prefill(&mut self) -> Vec<Exec> {
        let mut steps = Vec::new();
        let mut step = Exec::default();
        let mut room = self.shape.max_num_batched_tokens;
        for handle in 0..self.shape.num_reqs {
            step.new_requests.push(self.new_request(handle));
            let mut computed = 0;
            while computed < self.shape.prompt_len {
                let scheduled = room.min(self.shape.prompt_len - computed);
                step.handles.push(handle);
                step.num_computed_tokens.push(computed);
                step.num_scheduled_tokens.push(scheduled);
                computed += scheduled;
                room -= scheduled;
                if room == 0 {
                    steps.push(std::mem::take(&mut step));
                    room = self.shape.max_num_batched_tokens;
                }
            }
        }
        if !step.handles.is_empty() {
            steps.push(step);
        }
        steps
    }

    /// The steps after [`Self::prefill`], each of one token of each request.
    pub(super) fn decode(&mut self) -> impl Iterator<Item = Exec> {
        (0..self.shape.decode_len).map(|index| self.decode_step(index))
    }

    /// Ends all requests.
    pub(super) fn finish(&self) -> Exec {
        Exec {
            finished: (0..self.shape.num_reqs).collect(),
            ..Exec::default()
        }
    }

    fn decode_step(&mut self, index: u32) -> Exec {
        let num_reqs = self.shape.num_reqs;
        let computed = self.shape.prompt_len + index;
        let mut step = Exec {
            handles: (0..num_reqs).collect(),
            num_computed_tokens: vec![computed; num_reqs as usize],
            ..Exec::default()
        };
        if computed.is_multiple_of(self.shape.block_size) {
            step.new_blocks = (0..num_reqs)
                .map(|row| NewBlocks {
                    row,
                    block_ids: self.take_blocks(1),
                })
                .collect();
        }
        step
    }

    fn new_request(&mut self, handle: u32) -> NewRequest {
        let Shape {
            prompt_len,
            block_size,
            vocab_size,
            ..
        } = self.shape;
        // A linear congruential generator (Knuth) is random enough for an embedding.
        let mut state = self.seed ^ handle.wrapping_mul(0x9e37_79b9);
        let token_ids: Vec<i32> = (0..prompt_len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) % vocab_size).cast_signed()
            })
            .collect();
        NewRequest {
            handle,
            req_id: format!("bench-{handle}"),
            token_ids: token_ids.into(),
            num_prompt_tokens: prompt_len,
            block_ids: self.take_blocks(prompt_len.div_ceil(block_size)),
            sampling_params: self.shape.sampling_params.clone(),
        }
    }

    fn take_blocks(&mut self, count: u32) -> Vec<Vec<u32>> {
        (0..self.shape.num_groups)
            .map(|_| {
                let first = self.next_block;
                self.next_block += count;
                (first..self.next_block).collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(num_reqs: u32, prompt_len: u32, max_num_batched_tokens: u32) -> Shape {
        Shape {
            num_reqs,
            prompt_len,
            decode_len: 33,
            block_size: 16,
            max_num_batched_tokens,
            vocab_size: 100,
            num_groups: 1,
            sampling_params: SamplingParams::default(),
        }
    }

    #[test]
    fn prompts_fill_steps_to_their_limit() {
        for (num_reqs, prompt_len, limit) in [(1, 5, 8), (3, 5, 8), (4, 16, 8), (2, 8, 8)] {
            let steps = Workload::new(shape(num_reqs, prompt_len, limit), 1).prefill();
            let sizes: Vec<u32> = steps
                .iter()
                .map(|step| step.num_scheduled_tokens.iter().sum())
                .collect();
            let total = num_reqs * prompt_len;
            assert_eq!(sizes.iter().sum::<u32>(), total);
            assert_eq!(sizes.len(), total.div_ceil(limit) as usize);
            assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == limit));
            let opened: usize = steps.iter().map(|step| step.new_requests.len()).sum();
            assert_eq!(opened, num_reqs as usize);
        }
    }

    #[test]
    fn blocks_are_taken_once_and_as_many_as_were_counted() {
        for prompt_len in [1, 15, 16, 17, 32] {
            let shape = shape(3, prompt_len, 8);
            let mut workload = Workload::new(shape.clone(), 1);
            let prefill = workload.prefill();
            let decode: Vec<Exec> = workload.decode().collect();
            let new = prefill.iter().flat_map(|step| &step.new_requests);
            let added = decode.iter().flat_map(|step| &step.new_blocks);
            let mut blocks: Vec<u32> = new
                .flat_map(|request| request.block_ids.concat())
                .chain(added.flat_map(|blocks| blocks.block_ids.concat()))
                .collect();
            blocks.sort_unstable();
            assert_eq!(blocks, (1..shape.num_blocks()).collect::<Vec<_>>());
        }
    }
}
