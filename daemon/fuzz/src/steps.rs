//! Steps out of bytes: what a scheduler might send, and in between what none would.
//!
//! The scheduler keeps book of its requests, so that most steps are right and go deep; a byte in
//! twenty or so breaks something.

use metal_rpc_protocol::{
    Exec, GrammarBitmask, NewBlocks, NewRequest, PromptLogprobTokenIds, SamplingParams,
};

use crate::{BLOCK_SIZE, MAX_MODEL_LEN, MAX_NUM_SEQS, NUM_BLOCKS, VOCAB_SIZE, WINDOWS};

/// Numbers at the edges.
const EDGES: [u32; 8] = [0, 1, 3, 11, 12, 31, 0x7fff_ffff, u32::MAX];
/// A choice from here on breaks something.
const WILD: u8 = 242;

/// The bytes of an input, read one after the other.
#[derive(Debug)]
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::from(self.byte()) % end
    }

    fn edge(&mut self) -> u32 {
        EDGES[usize::from(self.byte()) % EDGES.len()]
    }
}

/// A request as its frontend knows it.
#[derive(Clone, Debug)]
struct Request {
    handle: u32,
    computed: u32,
    known: u32,
    num_blocks: u32,
}

/// The requests of one session.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    running: Vec<Request>,
}

impl Scheduler {
    pub(crate) fn next_step(&mut self, bytes: &mut Bytes<'_>) -> Exec {
        let mut exec = Exec::default();
        for _ in 0..=bytes.below(4) {
            match bytes.below(8) {
                0..=1 => self.open(bytes, &mut exec),
                2 => self.finish(bytes, &mut exec),
                _ => self.run(bytes, &mut exec),
            }
        }
        // Rows of requests that have ended since.
        let is_running = |handle: &u32| self.running.iter().any(|r| r.handle == *handle);
        if exec.handles.iter().all(is_running) && bytes.byte() < WILD {
            return exec;
        }
        break_something(bytes, &mut exec);
        exec
    }

    fn open(&mut self, bytes: &mut Bytes<'_>, exec: &mut Exec) {
        let handle = bytes.below(2 * MAX_NUM_SEQS);
        let len = 1 + bytes.below(MAX_MODEL_LEN);
        let num_prompt_tokens = 1 + bytes.below(len);
        let num_blocks = len.div_ceil(BLOCK_SIZE);
        let token_ids: Vec<i32> = (0..len)
            .map(|i| ((i * 7) % VOCAB_SIZE).cast_signed())
            .collect();
        self.running.retain(|request| request.handle != handle);
        self.running.push(Request {
            handle,
            computed: 0,
            known: len,
            num_blocks,
        });
        exec.new_requests.push(NewRequest {
            handle,
            req_id: format!("request {handle}"),
            token_ids: token_ids.into(),
            num_prompt_tokens,
            block_ids: blocks_of_groups(bytes, num_blocks),
            sampling_params: sampling_params(bytes, num_prompt_tokens),
        });
        let scheduled = 1 + bytes.below(len);
        self.schedule(handle, scheduled, exec);
    }

    fn finish(&mut self, bytes: &mut Bytes<'_>, exec: &mut Exec) {
        if self.running.is_empty() {
            return;
        }
        let index = usize::from(bytes.byte()) % self.running.len();
        exec.finished.push(self.running.remove(index).handle);
    }

    fn run(&mut self, bytes: &mut Bytes<'_>, exec: &mut Exec) {
        if self.running.is_empty() {
            return;
        }
        let index = usize::from(bytes.byte()) % self.running.len();
        let request = self.running[index].clone();
        if exec.handles.contains(&request.handle) || request.computed >= request.known {
            return;
        }
        let scheduled = 1 + bytes.below(request.known - request.computed);
        let needed = (request.computed + scheduled).div_ceil(BLOCK_SIZE);
        if needed > request.num_blocks {
            let added = needed - request.num_blocks;
            self.running[index].num_blocks = needed;
            exec.new_blocks.push(NewBlocks {
                row: u32::try_from(exec.handles.len()).expect("a few"),
                block_ids: blocks_of_groups(bytes, added),
            });
        }
        self.schedule(request.handle, scheduled, exec);
    }

    fn schedule(&mut self, handle: u32, scheduled: u32, exec: &mut Exec) {
        let request = self
            .running
            .iter_mut()
            .find(|request| request.handle == handle);
        let request = request.expect("it is running");
        exec.handles.push(handle);
        exec.num_computed_tokens.push(request.computed);
        exec.num_scheduled_tokens.push(scheduled);
        request.computed += scheduled;
        if request.computed == request.known {
            request.known += 1;
        }
    }
}

fn blocks_of_groups(bytes: &mut Bytes<'_>, count: u32) -> Vec<Vec<u32>> {
    WINDOWS.iter().map(|_| blocks(bytes, count)).collect()
}

/// Blocks of any number that the session may use, and rarely of others.
fn blocks(bytes: &mut Bytes<'_>, count: u32) -> Vec<u32> {
    let block = |_| match bytes.byte() {
        WILD.. => bytes.edge(),
        byte => 1 + u32::from(byte) % (NUM_BLOCKS - 1),
    };
    (0..count).map(block).collect()
}

fn sampling_params(bytes: &mut Bytes<'_>, num_prompt_tokens: u32) -> SamplingParams {
    let mut params = SamplingParams::default();
    match bytes.byte() {
        0 => params.prompt_logprobs = Some(2),
        1 => params.trace_decode_token_ids = Some(vec![bytes.below(VOCAB_SIZE + 2)]),
        2 => {
            let start = bytes.below(num_prompt_tokens + 1);
            let cells = bytes.below(8) as usize;
            params.prompt_logprob_token_ids = Some(PromptLogprobTokenIds {
                start,
                num_columns: bytes.below(3),
                token_ids: vec![1; cells].into(),
            });
        }
        _ => {}
    }
    params
}

fn break_something(bytes: &mut Bytes<'_>, exec: &mut Exec) {
    let edge = bytes.edge();
    let set = |list: &mut Vec<u32>, at: u8| {
        if let Some(last) = list.len().checked_sub(1) {
            list[usize::from(at).min(last)] = edge;
        }
    };
    let at = bytes.byte();
    match bytes.below(12) {
        0 => set(&mut exec.handles, at),
        1 => set(&mut exec.num_computed_tokens, at),
        2 => set(&mut exec.num_scheduled_tokens, at),
        3 => exec.num_scheduled_tokens.clear(),
        4 => exec.finished.push(edge),
        5 => exec.handles.push(edge),
        6 => exec.block_copies.push((edge, 1)),
        7 => {
            exec.grammar = Some(GrammarBitmask {
                rows: vec![edge],
                bitmask: vec![-1; bytes.below(3) as usize].into(),
            });
        }
        8 => exec.sample_follows = true,
        9 => exec.new_blocks.push(NewBlocks {
            row: edge,
            block_ids: vec![vec![1]; bytes.below(3) as usize],
        }),
        10 => exec
            .new_requests
            .iter_mut()
            .for_each(|new| new.handle = edge),
        _ => {
            for new in &mut exec.new_requests {
                new.num_prompt_tokens = edge;
                new.token_ids.0.push(edge.cast_signed());
            }
        }
    }
}
