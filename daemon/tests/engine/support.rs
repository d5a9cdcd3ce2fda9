//! A frontend of the engine in this process, and what it asks.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metal_rpc_protocol::{
    CreateCache, ErrorReply, Exec, LoadModel, ModelLoaded, NewRequest, Reply, ReserveMemory,
    SamplingParams, StepResult, decode_reply,
};
use metald::device::{Device, MemoryBudget};
use metald::engine::{EngineConfig, EngineHandle, EngineMessage, EngineRequest, EngineStatus};
use metald::models::{Checkpoints, ModelRoots};
use metald::outbox::Outbox;
use metald::session::{SessionId, Ticket};
use tokio::sync::{mpsc, oneshot};

pub(super) const BLOCK_SIZE: u32 = 4;
pub(super) const NUM_BLOCKS: u32 = 40;
pub(super) const MAX_NUM_SEQS: u32 = 4;
pub(super) const VOCAB_SIZE: usize = 64;

pub(super) fn engine() -> EngineHandle {
    EngineHandle::start(config(Device::Cpu.turn_tokens())).expect("the CPU can be used")
}

/// Of an engine that runs at most `turn_tokens` tokens at a time while sessions share it.
pub(super) fn config(turn_tokens: u32) -> EngineConfig {
    let memory = MemoryBudget {
        total_bytes: 1 << 30,
        limit_bytes: 1 << 30,
    };
    EngineConfig {
        device: Device::Cpu,
        memory,
        model_keep_alive: Duration::from_secs(60),
        model_roots: ModelRoots::everything(),
        models: Arc::new(Checkpoints),
        turn_tokens,
    }
}

/// One session of the engine.
pub(super) struct Frontend<'a> {
    engine: &'a EngineHandle,
    id: SessionId,
    replies: mpsc::Receiver<Vec<u8>>,
    seq: u64,
    num_layers: u32,
}

impl<'a> Frontend<'a> {
    pub(super) fn open(engine: &'a EngineHandle, id: u32) -> Self {
        let (outbox, replies) = Outbox::new();
        let id = SessionId(id);
        let frontend = format!("frontend {}", id.0);
        tell(
            engine,
            EngineMessage::Open {
                session: id,
                frontend,
                weight: 1,
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
    pub(super) fn ready(engine: &'a EngineHandle, id: u32, memory_fraction: f64) -> Self {
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

    /// A session with the model `name`, whose layers are in `groups`.
    pub(super) fn ready_with(
        engine: &'a EngineHandle,
        id: u32,
        name: &str,
        groups: &[&[u32]],
    ) -> Self {
        let mut frontend = Self::open(engine, id);
        frontend.load(name).expect("the golden checkpoint loads");
        frontend.ask(reserve(0.5)).expect("there is memory");
        let create = CreateCache {
            num_blocks: NUM_BLOCKS,
            block_size: BLOCK_SIZE,
            groups: groups.iter().map(|layers| layers.to_vec()).collect(),
        };
        frontend
            .ask(EngineRequest::CreateCache(create))
            .expect("it is less than was reserved");
        frontend
    }

    pub(super) fn load(&mut self, name: &str) -> Result<ModelLoaded, ErrorReply> {
        match self.ask(load_model(name))? {
            Reply::ModelLoaded(loaded) => {
                assert_eq!(loaded.vocab_size as usize, VOCAB_SIZE);
                self.num_layers = u32::try_from(loaded.kv_cache_specs.len()).expect("a few");
                Ok(loaded)
            }
            other => panic!("{} is no answer to LoadModel", other.name()),
        }
    }

    pub(super) fn create_cache(&self) -> EngineRequest {
        create_cache(self.num_layers)
    }

    pub(super) fn send(&mut self, request: EngineRequest) -> u64 {
        self.seq += 1;
        let (session, seq, received) = (self.id, self.seq, Instant::now());
        tell(
            self.engine,
            EngineMessage::Request {
                session,
                seq,
                received,
                request,
                ticket: Ticket::default(),
            },
        );
        seq
    }

    pub(super) fn receive(&mut self) -> (u64, Result<Reply, ErrorReply>) {
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

    pub(super) fn ask(&mut self, request: EngineRequest) -> Result<Reply, ErrorReply> {
        let seq = self.send(request);
        let (answered, reply) = self.receive();
        assert_eq!(answered, seq, "an answer belongs to its request");
        reply
    }

    pub(super) fn step(&mut self, exec: Exec) -> Result<StepResult, ErrorReply> {
        self.ask(EngineRequest::Exec(exec)).map(step_result)
    }

    pub(super) fn close(self) {
        tell(self.engine, EngineMessage::Close { session: self.id });
    }
}

pub(super) fn tell(engine: &EngineHandle, message: EngineMessage) {
    engine.messages.send(message).expect("the engine runs");
}

pub(super) fn status(engine: &EngineHandle) -> EngineStatus {
    let (answer, answered) = oneshot::channel();
    tell(engine, EngineMessage::Status { answer });
    answered.blocking_recv().expect("the engine answers")
}

pub(super) fn load_model(name: &str) -> EngineRequest {
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

pub(super) fn reserve(memory_fraction: f64) -> EngineRequest {
    EngineRequest::ReserveMemory(ReserveMemory { memory_fraction })
}

pub(super) fn create_cache(num_layers: u32) -> EngineRequest {
    EngineRequest::CreateCache(CreateCache {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
        groups: vec![(0..num_layers).collect()],
    })
}

pub(super) fn step_result(reply: Reply) -> StepResult {
    match reply {
        Reply::StepResult(result) => result,
        other => panic!("{} is no answer to Exec", other.name()),
    }
}

pub(super) fn prompt(seed: i32, len: usize) -> Vec<i32> {
    (0..)
        .map(|i: i32| (seed * 31 + i * i * 7 + i * 3) % 64)
        .take(len)
        .collect()
}

pub(super) fn open_request(
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

pub(super) fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

pub(super) fn seeded() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_p: 0.95,
        seed: Some(11),
        ..SamplingParams::default()
    }
}

pub(super) fn exec(rows: &[(u32, u32, u32)]) -> Exec {
    Exec {
        handles: rows.iter().map(|row| row.0).collect(),
        num_computed_tokens: rows.iter().map(|row| row.1).collect(),
        num_scheduled_tokens: rows.iter().map(|row| row.2).collect(),
        ..Exec::default()
    }
}

/// The first step of a request on handle 0: all of a prompt.
pub(super) fn open_and_run(len: usize) -> Exec {
    let tokens = prompt(3, len);
    Exec {
        new_requests: vec![open_request(0, &tokens, 1, greedy())],
        ..exec(&[(0, 0, u32::try_from(len).expect("short"))])
    }
}

/// `num_tokens` tokens of one request, its prompt run in chunks of `chunk`, one step at a time.
pub(super) fn generate_alone(
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
