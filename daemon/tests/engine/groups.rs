//! Layers with a sliding window in KV-cache groups of their own, as vLLM's scheduler runs them: it
//! gives blocks that no query sees any more to whoever comes next, and does not tell.

use std::collections::VecDeque;

use metal_rpc_protocol::{CreateCache, ErrorCode, Exec, NewBlocks};
use metald::engine::EngineRequest;

use super::support::*;

const MODEL: &str = "ministral-windows";
/// Layers of the model, as vLLM groups them: the one that sees everything, then the two others.
const GROUPS: [&[u32]; 3] = [&[1], &[0], &[2]];
const WINDOWS: [Option<u32>; 3] = [None, Some(6), Some(6)];
const CHUNK: u32 = 8;
const NUM_TOKENS: usize = 16;

/// What vLLM's block pool does: all groups take their blocks from it.
struct Scheduler {
    free: VecDeque<u32>,
}

struct Request {
    handle: u32,
    tables: Vec<Vec<u32>>,
    prompt: Vec<i32>,
    num_computed: u32,
    output: Vec<i32>,
}

impl Request {
    fn new(handle: u32, prompt: Vec<i32>) -> Self {
        Self {
            handle,
            tables: vec![Vec::new(); GROUPS.len()],
            prompt,
            num_computed: 0,
            output: Vec::new(),
        }
    }

    fn num_scheduled(&self) -> u32 {
        let num_prompt = u32::try_from(self.prompt.len()).expect("a few");
        num_prompt.saturating_sub(self.num_computed).clamp(1, CHUNK)
    }
}

impl Scheduler {
    /// Takes back what no query sees any more, and gives what the next tokens need.
    fn grow(&mut self, request: &mut Request) -> Vec<Vec<u32>> {
        for (table, window) in request.tables.iter_mut().zip(WINDOWS) {
            let Some(window) = window else { continue };
            let first_seen = (request.num_computed + 1).saturating_sub(window) / BLOCK_SIZE;
            for block in &mut table[..first_seen as usize] {
                if *block != 0 {
                    self.free.push_back(std::mem::take(block));
                }
            }
        }
        let seq_len = request.num_computed + request.num_scheduled();
        let needed = seq_len.div_ceil(BLOCK_SIZE) as usize;
        let grow = |table: &mut Vec<u32>| {
            let missing = needed - table.len();
            let blocks: Vec<u32> = self.free.drain(..missing).collect();
            table.extend_from_slice(&blocks);
            blocks
        };
        request.tables.iter_mut().map(grow).collect()
    }

    /// One step of all requests.
    fn step(&mut self, frontend: &mut Frontend<'_>, requests: &mut [Request]) {
        let rows: Vec<_> = requests
            .iter()
            .map(|request| {
                (
                    request.handle,
                    request.num_computed,
                    request.num_scheduled(),
                )
            })
            .collect();
        let mut step = exec(&rows);
        for (row, request) in (0..).zip(requests.iter_mut()) {
            let block_ids = self.grow(request);
            if request.num_computed == 0 {
                let mut new = open_request(request.handle, &request.prompt, 1, greedy());
                new.block_ids = block_ids;
                step.new_requests.push(new);
            } else {
                step.new_blocks.push(NewBlocks { row, block_ids });
            }
        }
        let result = frontend.step(step).expect("the step is valid");
        for (request, token) in requests.iter_mut().zip(result.token_ids.0) {
            request.num_computed += request.num_scheduled();
            request
                .output
                .extend(Some(token).filter(|token| *token >= 0));
        }
    }
}

/// Two prompts: a long one, and another that starts when most blocks of the first are free again.
fn prompts() -> [Vec<i32>; 2] {
    [prompt(8, 40), prompt(9, 20)]
}

/// Their tokens where no layer shares memory with another and no block is used twice.
fn expected() -> Vec<Vec<i32>> {
    let engine = engine();
    let mut frontend = Frontend::ready_with(&engine, 0, MODEL, &[&[0, 1, 2]]);
    let run = |tokens: Vec<i32>| {
        let mut new = open_request(0, &tokens, 1, greedy());
        new.block_ids = vec![(1..17).collect()];
        let mut computed = u32::try_from(tokens.len()).expect("a few");
        let first = Exec {
            new_requests: vec![new],
            ..exec(&[(0, 0, computed)])
        };
        let mut output = frontend.step(first).expect("it is valid").token_ids.0;
        while output.len() < NUM_TOKENS {
            let next = frontend.step(exec(&[(0, computed, 1)]));
            output.extend(next.expect("it is valid").token_ids.0);
            computed += 1;
        }
        let finished = Exec {
            finished: vec![0],
            ..Exec::default()
        };
        frontend.step(finished).expect("it is known");
        output
    };
    let outputs = prompts().map(run).to_vec();
    engine.stop();
    outputs
}

#[test]
fn blocks_that_no_query_sees_are_used_again() {
    let engine = engine();
    let mut frontend = Frontend::ready_with(&engine, 0, MODEL, &GROUPS);
    // If all were kept, the two would need 14 and 9 blocks in each of 3 groups.
    let mut scheduler = Scheduler {
        free: (1..NUM_BLOCKS).collect(),
    };
    let [first, second] = prompts();
    let mut requests = vec![Request::new(0, first)];
    while requests[0].output.is_empty() {
        scheduler.step(&mut frontend, &mut requests);
    }
    requests.push(Request::new(1, second));
    while requests[0].output.len() < NUM_TOKENS {
        scheduler.step(&mut frontend, &mut requests);
    }
    let mut second = requests.split_off(1);
    while second[0].output.len() < NUM_TOKENS {
        scheduler.step(&mut frontend, &mut second);
    }
    requests.append(&mut second);
    let outputs: Vec<_> = requests.into_iter().map(|request| request.output).collect();
    assert_eq!(outputs, expected());
    let status = status(&engine);
    let (_, session) = &status.sessions[0];
    assert!(session.used_blocks < NUM_BLOCKS, "{session:?}");
    // A block is a page of one layer: each of the three groups has one.
    let page_bytes = u64::from(2 * 2 * 8 * 4 * BLOCK_SIZE);
    assert_eq!(
        status.kv.used_bytes,
        u64::from(session.used_blocks) * page_bytes
    );
    engine.stop();
}

#[test]
fn frontends_of_a_model_group_its_layers_alike() {
    let engine = engine();
    let mut first = Frontend::ready_with(&engine, 0, MODEL, &GROUPS);
    let mut other = Frontend::open(&engine, 1);
    other.load(MODEL).expect("it is loaded already");
    other.ask(reserve(0.9)).expect("there is memory");
    for (groups, message) in [
        (vec![vec![0, 1, 2]], "grouped as the other frontends"),
        (vec![vec![0, 1]], "layer 2 must stand in one KV-cache group"),
        (vec![vec![1], vec![0], vec![2, 7]], "has layer 7"),
    ] {
        let error = other
            .ask(EngineRequest::CreateCache(CreateCache {
                num_blocks: NUM_BLOCKS,
                block_size: BLOCK_SIZE,
                groups,
            }))
            .map(|reply| reply.name())
            .expect_err(message);
        assert_eq!(error.code, ErrorCode::Unsupported, "{message}");
        assert!(error.message.contains(message), "{}", error.message);
    }
    let tokens = prompt(1, 5);
    let mut step = Exec {
        new_requests: vec![open_request(0, &tokens, 1, greedy())],
        ..exec(&[(0, 0, 5)])
    };
    step.new_requests[0].block_ids = vec![vec![1, 2], vec![3, 4]];
    let error = first.step(step).expect_err("a table is missing");
    let message = "2 KV-cache groups, the session has 3";
    assert!(error.message.contains(message), "{}", error.message);
    engine.stop();
}
