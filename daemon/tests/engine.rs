//! The engine through its messages: real models, real kernels, no socket.
//!
//! Each test drives the engine as vLLM's scheduler would: it opens requests, gives them blocks, runs
//! their prompts whole or in chunks, and reads one token a step.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use metal_rpc_protocol::{
    CreateCache, ErrorCode, ErrorReply, Exec, GrammarBitmask, LoadModel, ModelLoaded, NewBlocks,
    NewRequest, Reply, ReserveMemory, Sample, SamplingParams, StepResult, decode_reply,
};
use metald::device::{Device, MemoryBudget};
use metald::engine::{EngineConfig, EngineHandle, EngineMessage, EngineRequest};
use metald::outbox::Outbox;
use metald::session::SessionId;
use tokio::sync::mpsc;

const BLOCK_SIZE: u32 = 4;
const NUM_BLOCKS: u32 = 40;
const MAX_NUM_SEQS: u32 = 4;
const VOCAB_SIZE: usize = 64;

fn engine() -> EngineHandle {
    let memory = MemoryBudget {
        total_bytes: 1 << 30,
        limit_bytes: 1 << 30,
    };
    let config = EngineConfig {
        device: Device::Cpu,
        memory,
        model_keep_alive: Duration::from_secs(60),
    };
    EngineHandle::start(config).expect("the CPU can be used")
}

/// One session of the engine.
struct Frontend<'a> {
    engine: &'a EngineHandle,
    id: SessionId,
    replies: mpsc::Receiver<Vec<u8>>,
    seq: u64,
    num_layers: u32,
}

impl<'a> Frontend<'a> {
    fn open(engine: &'a EngineHandle, id: u32) -> Self {
        let (outbox, replies) = Outbox::new();
        let id = SessionId(id);
        let frontend = format!("frontend {}", id.0);
        tell(
            engine,
            EngineMessage::Open {
                session: id,
                frontend,
                outbox,
            },
        );
        Self {
            engine,
            id,
            replies,
            seq: 0,
            num_layers: 0,
        }
    }

    /// A session with a model and a cache that takes `memory_fraction` of the memory at most.
    fn ready(engine: &'a EngineHandle, id: u32, memory_fraction: f64) -> Self {
        let mut frontend = Self::open(engine, id);
        frontend
            .load("llama-tied")
            .expect("the golden checkpoint loads");
        frontend
            .ask(reserve(memory_fraction))
            .expect("there is memory");
        frontend
            .ask(frontend.create_cache())
            .expect("it is less than was reserved");
        frontend
    }

    fn load(&mut self, name: &str) -> Result<ModelLoaded, ErrorReply> {
        match self.ask(load_model(name))? {
            Reply::ModelLoaded(loaded) => {
                assert_eq!(loaded.vocab_size as usize, VOCAB_SIZE);
                self.num_layers = u32::try_from(loaded.kv_cache_specs.len()).expect("a few");
                Ok(loaded)
            }
            other => panic!("{} is no answer to LoadModel", other.name()),
        }
    }

    fn create_cache(&self) -> EngineRequest {
        EngineRequest::CreateCache(CreateCache {
            num_blocks: NUM_BLOCKS,
            block_size: BLOCK_SIZE,
            groups: vec![(0..self.num_layers).collect()],
        })
    }

    fn send(&mut self, request: EngineRequest) -> u64 {
        self.seq += 1;
        let (session, seq, received) = (self.id, self.seq, Instant::now());
        tell(
            self.engine,
            EngineMessage::Request {
                session,
                seq,
                received,
                request,
            },
        );
        seq
    }

    fn receive(&mut self) -> (u64, Result<Reply, ErrorReply>) {
        loop {
            let bytes = self.replies.blocking_recv().expect("the engine answers");
            let envelope = decode_reply(&bytes).expect("the engine writes what can be read");
            match envelope.reply {
                Reply::LoadProgress(_) => {}
                Reply::Error(error) => return (envelope.seq, Err(error)),
                reply => return (envelope.seq, Ok(reply)),
            }
        }
    }

    fn ask(&mut self, request: EngineRequest) -> Result<Reply, ErrorReply> {
        let seq = self.send(request);
        let (answered, reply) = self.receive();
        assert_eq!(answered, seq, "an answer belongs to its request");
        reply
    }

    fn step(&mut self, exec: Exec) -> Result<StepResult, ErrorReply> {
        self.ask(EngineRequest::Exec(exec)).map(step_result)
    }

    fn close(self) {
        tell(self.engine, EngineMessage::Close { session: self.id });
    }
}

fn tell(engine: &EngineHandle, message: EngineMessage) {
    engine.messages.send(message).expect("the engine runs");
}

fn load_model(name: &str) -> EngineRequest {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    EngineRequest::LoadModel(LoadModel {
        path: folder.display().to_string(),
        dtype: "float32".to_owned(),
        max_model_len: 64,
        max_num_seqs: MAX_NUM_SEQS,
        max_num_batched_tokens: 64,
        logprobs_mode: "raw_logprobs".to_owned(),
    })
}

fn reserve(memory_fraction: f64) -> EngineRequest {
    EngineRequest::ReserveMemory(ReserveMemory { memory_fraction })
}

fn step_result(reply: Reply) -> StepResult {
    match reply {
        Reply::StepResult(result) => result,
        other => panic!("{} is no answer to Exec", other.name()),
    }
}

fn prompt(seed: i32, len: usize) -> Vec<i32> {
    (0..)
        .map(|i: i32| (seed * 31 + i * i * 7 + i * 3) % 64)
        .take(len)
        .collect()
}

fn open_request(
    handle: u32,
    tokens: &[i32],
    first_block: u32,
    params: SamplingParams,
) -> NewRequest {
    NewRequest {
        handle,
        req_id: format!("request {handle}"),
        token_ids: tokens.to_vec().into(),
        num_prompt_tokens: u32::try_from(tokens.len()).expect("a few"),
        // Room for the longest request of these tests, so that no step has to bring blocks.
        block_ids: vec![(first_block..first_block + 8).collect()],
        sampling_params: params,
    }
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

fn seeded() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_p: 0.95,
        seed: Some(11),
        ..SamplingParams::default()
    }
}

fn exec(rows: &[(u32, u32, u32)]) -> Exec {
    Exec {
        handles: rows.iter().map(|row| row.0).collect(),
        num_computed_tokens: rows.iter().map(|row| row.1).collect(),
        num_scheduled_tokens: rows.iter().map(|row| row.2).collect(),
        ..Exec::default()
    }
}

/// `num_tokens` tokens of one request, its prompt run in chunks of `chunk`, one step at a time.
fn generate_alone(
    frontend: &mut Frontend<'_>,
    (handle, first_block): (u32, u32),
    tokens: &[i32],
    params: &SamplingParams,
    (chunk, num_tokens): (usize, usize),
) -> Vec<i32> {
    let mut computed = 0;
    let mut sampled = Vec::new();
    let mut new = vec![open_request(handle, tokens, first_block, params.clone())];
    for part in tokens.chunks(chunk) {
        let len = u32::try_from(part.len()).expect("a few");
        let step = Exec {
            new_requests: std::mem::take(&mut new),
            ..exec(&[(handle, computed, len)])
        };
        sampled.extend(frontend.step(step).expect("the step is valid").token_ids.0);
        computed += len;
    }
    while sampled.iter().filter(|token| **token >= 0).count() < num_tokens {
        let result = frontend
            .step(exec(&[(handle, computed, 1)]))
            .expect("the step is valid");
        sampled.extend(result.token_ids.0);
        computed += 1;
    }
    sampled.retain(|token| *token >= 0);
    let finished = Exec {
        finished: vec![handle],
        ..Exec::default()
    };
    assert!(
        frontend
            .step(finished)
            .expect("it is known")
            .token_ids
            .0
            .is_empty()
    );
    sampled
}

#[test]
fn a_request_gets_the_same_tokens_alone_in_chunks_in_a_batch_and_pipelined() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let prompts: Vec<Vec<i32>> = [5, 9, 1, 16]
        .iter()
        .zip(1..)
        .map(|(len, seed)| prompt(seed, *len))
        .collect();
    let params = [greedy(), seeded(), greedy(), seeded()];
    let alone: Vec<Vec<i32>> = prompts
        .iter()
        .zip(&params)
        .map(|(tokens, params)| generate_alone(&mut frontend, (0, 1), tokens, params, (64, 8)))
        .collect();
    for chunk in [1, 3, 4] {
        for ((tokens, params), expected) in prompts.iter().zip(&params).zip(&alone) {
            let chunked = generate_alone(&mut frontend, (1, 9), tokens, params, (chunk, 8));
            assert_eq!(&chunked, expected, "in chunks of {chunk}");
        }
    }

    // All four together, and each step sent before the result of the one before is read.
    let mut first = exec(&[]);
    for (handle, (tokens, params)) in (0..).zip(prompts.iter().zip(&params)) {
        first
            .new_requests
            .push(open_request(handle, tokens, 1 + 8 * handle, params.clone()));
        first.handles.push(handle);
        first.num_computed_tokens.push(0);
        first
            .num_scheduled_tokens
            .push(u32::try_from(tokens.len()).expect("a few"));
    }
    let lens = first.num_scheduled_tokens.clone();
    let mut batched = vec![Vec::new(); 4];
    let mut in_flight = VecDeque::from([frontend.send(EngineRequest::Exec(first))]);
    for step in 0..8 {
        if step < 7 {
            let rows: Vec<_> = (0..)
                .zip(&lens)
                .map(|(handle, len)| (handle, len + step, 1))
                .collect();
            in_flight.push_back(frontend.send(EngineRequest::Exec(exec(&rows))));
        }
        let (seq, reply) = frontend.receive();
        assert_eq!(
            Some(seq),
            in_flight.pop_front(),
            "replies come in the order of the steps"
        );
        for (tokens, token) in batched
            .iter_mut()
            .zip(step_result(reply.expect("it is valid")).token_ids.0)
        {
            tokens.push(token);
        }
    }
    assert_eq!(batched, alone);
    engine.stop();
}

#[test]
fn two_frontends_with_the_same_block_numbers_do_not_see_each_other() {
    let engine = engine();
    let mut a = Frontend::ready(&engine, 0, 0.3);
    let mut b = Frontend::ready(&engine, 1, 0.6);
    let (prompt_a, prompt_b) = (prompt(3, 10), prompt(4, 7));
    let alone_a = generate_alone(&mut a, (0, 1), &prompt_a, &greedy(), (64, 6));
    let alone_b = generate_alone(&mut b, (0, 1), &prompt_b, &greedy(), (64, 6));
    assert_ne!(alone_a, alone_b);

    // In turns, with the same handles and blocks.
    let mut step_a = Exec {
        new_requests: vec![open_request(0, &prompt_a, 1, greedy())],
        ..exec(&[(0, 0, 10)])
    };
    let mut step_b = Exec {
        new_requests: vec![open_request(0, &prompt_b, 1, greedy())],
        ..exec(&[(0, 0, 7)])
    };
    let (mut tokens_a, mut tokens_b) = (Vec::new(), Vec::new());
    for step in 0..6 {
        a.send(EngineRequest::Exec(step_a));
        b.send(EngineRequest::Exec(step_b));
        tokens_a.extend(step_result(a.receive().1.expect("it is valid")).token_ids.0);
        tokens_b.extend(step_result(b.receive().1.expect("it is valid")).token_ids.0);
        step_a = exec(&[(0, 10 + step, 1)]);
        step_b = exec(&[(0, 7 + step, 1)]);
    }
    assert_eq!((tokens_a, tokens_b), (alone_a, alone_b));

    // When one leaves, its blocks go back and the other goes on.
    b.close();
    let again = generate_alone(&mut a, (1, 20), &prompt_a, &greedy(), (64, 6));
    assert_eq!(again.len(), 6);
    let status = engine.status.lock().expect("nobody panics").clone();
    assert_eq!(status.sessions.len(), 1);
    assert_eq!(status.models[0].sessions, 1);
    engine.stop();
}

#[test]
fn a_grammar_binds_the_token_whether_it_comes_with_the_step_or_after_it() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let only = |token: usize| {
        let mut bitmask = vec![0_i32; VOCAB_SIZE.div_ceil(32)];
        bitmask[token / 32] |= 1 << (token % 32);
        GrammarBitmask {
            rows: vec![0],
            bitmask: bitmask.into(),
        }
    };
    let tokens = prompt(5, 6);
    let first = Exec {
        new_requests: vec![open_request(0, &tokens, 1, seeded())],
        grammar: Some(only(37)),
        ..exec(&[(0, 0, 6)])
    };
    assert_eq!(frontend.step(first).expect("it is valid").token_ids.0, [37]);
    let exec_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 6, 1)])
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq,
        grammar: Some(only(13)),
    }));
    let (seq, reply) = frontend.receive();
    assert_eq!(seq, exec_seq);
    assert_eq!(step_result(reply.expect("it is valid")).token_ids.0, [13]);

    // Sent at once: the grammar may arrive while its step still waits for its turn.
    let exec_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 7, 1)])
    }));
    let next_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 8, 1)])
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq,
        grammar: Some(only(3)),
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq: next_seq,
        grammar: Some(only(4)),
    }));
    for expected in [3, 4] {
        assert_eq!(
            step_result(frontend.receive().1.expect("it is valid"))
                .token_ids
                .0,
            [expected]
        );
    }
    engine.stop();
}

#[test]
fn prompt_logprobs_come_once_and_are_the_same_in_chunks() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let tokens = prompt(6, 11);
    let params = SamplingParams {
        prompt_logprobs: Some(2),
        ..greedy()
    };
    let mut reports = Vec::new();
    for chunk in [11, 4] {
        let mut computed = 0;
        let mut new = vec![open_request(0, &tokens, 1, params.clone())];
        let mut results = Vec::new();
        for part in tokens.chunks(chunk) {
            let len = u32::try_from(part.len()).expect("a few");
            let step = Exec {
                new_requests: std::mem::take(&mut new),
                ..exec(&[(0, computed, len)])
            };
            results.push(frontend.step(step).expect("it is valid"));
            computed += len;
        }
        let last = results.pop().expect("there is a chunk");
        assert!(
            results
                .iter()
                .all(|result| result.prompt_logprobs.is_empty())
        );
        let logprobs = last.prompt_logprobs[0].logprobs.clone();
        assert_eq!(logprobs.num_columns, 3);
        let own: Vec<i32> = logprobs.token_ids.0.chunks(3).map(|row| row[0]).collect();
        assert_eq!(own, tokens[1..], "column 0 is the prompt's own token");
        reports.push(logprobs);
        frontend
            .step(Exec {
                finished: vec![0],
                ..Exec::default()
            })
            .expect("it is known");
    }
    assert_eq!(reports[0], reports[1]);
    engine.stop();
}

/// Why a step is refused that follows a valid one; the session ends, another one does not notice.
#[test]
fn a_step_that_breaks_a_rule_ends_its_session_alone() {
    let tokens = prompt(7, 6);
    let new = |handle, tokens: &[i32]| Exec {
        new_requests: vec![open_request(handle, tokens, 1, greedy())],
        ..Exec::default()
    };
    let with_row = |exec: Exec, row: (u32, u32, u32)| Exec {
        handles: vec![row.0],
        num_computed_tokens: vec![row.1],
        num_scheduled_tokens: vec![row.2],
        ..exec
    };
    let bad_blocks = |block_ids: Vec<Vec<u32>>| {
        let mut step = with_row(new(1, &tokens), (1, 0, 6));
        step.new_requests[0].block_ids = block_ids;
        step
    };
    let mut no_prompt = with_row(new(1, &tokens), (1, 0, 6));
    no_prompt.new_requests[0].num_prompt_tokens = 7;
    let short_mask = GrammarBitmask {
        rows: vec![0],
        bitmask: vec![0].into(),
    };
    let cases: Vec<(Exec, &str)> = vec![
        (exec(&[(3, 0, 1)]), "handle 3 is not known"),
        (exec(&[(900, 0, 1)]), "handle 900 is not known"),
        (exec(&[(0, 6, 1), (0, 7, 1)]), "handle 0 stands twice"),
        (exec(&[(0, 6, 0)]), "runs no token"),
        (exec(&[(0, 6, 2)]), "runs tokens 6..8, but only 7 are known"),
        (exec(&[(0, u32::MAX, 2)]), "but only 7 are known"),
        (
            Exec {
                finished: vec![2],
                ..Exec::default()
            },
            "handle 2 is not known",
        ),
        (
            Exec {
                num_computed_tokens: vec![],
                ..exec(&[(0, 6, 1)])
            },
            "num_computed_tokens has 0",
        ),
        (
            Exec {
                num_scheduled_tokens: vec![1, 1],
                ..exec(&[(0, 6, 1)])
            },
            "num_scheduled_tokens has 2",
        ),
        (
            exec(&[(0, 6, 1); 5]),
            "5 requests, max_num_seqs of this session is 4",
        ),
        (
            Exec {
                block_copies: vec![(1, 2)],
                ..exec(&[(0, 6, 1)])
            },
            "copying",
        ),
        (
            Exec {
                new_blocks: vec![NewBlocks {
                    row: 1,
                    block_ids: vec![vec![3]],
                }],
                ..exec(&[(0, 6, 1)])
            },
            "row 1 is named by new_blocks",
        ),
        (
            Exec {
                new_blocks: vec![NewBlocks {
                    row: 0,
                    block_ids: vec![],
                }],
                ..exec(&[(0, 6, 1)])
            },
            "0 KV-cache groups",
        ),
        (
            with_row(new(9, &tokens), (9, 0, 6)),
            "handle 9 is not below 8",
        ),
        (
            with_row(new(1, &[0; 65]), (1, 0, 64)),
            "65 tokens, max_model_len of this session is 64",
        ),
        (with_row(new(1, &[5, 64]), (1, 0, 2)), "token id 64"),
        (with_row(new(1, &[-1]), (1, 0, 1)), "token id -1"),
        (no_prompt, "7 prompt tokens of 6"),
        (
            bad_blocks(vec![vec![1, 40]]),
            "block 40 is not below the 40 blocks",
        ),
        (bad_blocks(vec![vec![1, 0]]), "block 0 is the null block"),
        (bad_blocks(vec![vec![1]]), "needs 2 blocks, its table has 1"),
        (
            with_row(bad_blocks(vec![vec![30, 31]]), (1, 4, 2)),
            "block 30 was never written",
        ),
        (
            Exec {
                grammar: Some(short_mask.clone()),
                ..exec(&[(0, 6, 1)])
            },
            "1 words, 1 rows of this vocabulary have 2",
        ),
        (
            Exec {
                grammar: Some(short_mask),
                sample_follows: true,
                ..exec(&[(0, 6, 1)])
            },
            "follows in a message of its own",
        ),
    ];
    let engine = engine();
    let mut bystander = Frontend::ready(&engine, 0, 0.5);
    let expected = generate_alone(&mut bystander, (0, 1), &tokens, &greedy(), (64, 4));
    for (id, (bad, message)) in (1..).zip(cases) {
        let mut frontend = Frontend::ready(&engine, id, 0.9);
        let first = with_row(new(0, &tokens), (0, 0, 6));
        frontend.step(first).expect("the first step is valid");
        let error = frontend.step(bad).expect_err(message);
        assert_eq!(
            error.code,
            ErrorCode::InvalidStep,
            "{message}: {}",
            error.message
        );
        assert!(
            error.message.contains(message),
            "{message:?} is not in {:?}",
            error.message
        );
        frontend.close();
        assert_eq!(
            generate_alone(&mut bystander, (0, 1), &tokens, &greedy(), (64, 4)),
            expected
        );
    }
    engine.stop();
}

#[test]
fn what_comes_out_of_order_or_does_not_fit_is_refused_and_the_session_goes_on() {
    let engine = engine();
    let mut frontend = Frontend::open(&engine, 0);
    let code = |result: Result<Reply, ErrorReply>| result.expect_err("it is refused").code;
    assert_eq!(
        code(frontend.ask(EngineRequest::Exec(exec(&[])))),
        ErrorCode::OutOfOrder
    );
    assert_eq!(code(frontend.ask(reserve(0.5))), ErrorCode::OutOfOrder);
    assert_eq!(
        code(frontend.ask(frontend.create_cache())),
        ErrorCode::OutOfOrder
    );
    assert_eq!(
        code(frontend.ask(load_model("no-such-model"))),
        ErrorCode::ModelNotFound
    );
    frontend
        .load("llama-tied")
        .expect("a failed load may be tried again");
    assert_eq!(
        code(frontend.ask(load_model("llama-tied"))),
        ErrorCode::OutOfOrder
    );
    assert_eq!(
        code(frontend.ask(frontend.create_cache())),
        ErrorCode::OutOfMemory
    );
    assert_eq!(code(frontend.ask(reserve(0.0))), ErrorCode::OutOfMemory);
    frontend.ask(reserve(0.5)).expect("there is memory");
    let groups = EngineRequest::CreateCache(CreateCache {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
        groups: vec![vec![0], vec![1]],
    });
    assert_eq!(code(frontend.ask(groups)), ErrorCode::Unsupported);
    frontend
        .ask(frontend.create_cache())
        .expect("it is less than was reserved");
    assert_eq!(
        generate_alone(&mut frontend, (0, 1), &prompt(1, 5), &greedy(), (64, 2)).len(),
        2
    );

    // What one holds, another cannot have.
    let mut other = Frontend::open(&engine, 1);
    other.load("llama-tied").expect("it is loaded already");
    let error = other
        .ask(reserve(1e-6))
        .expect_err("that is less than the other one holds");
    assert_eq!(error.code, ErrorCode::OutOfMemory);
    assert!(error.message.contains("frontend 0"), "{}", error.message);
    engine.stop();
}
