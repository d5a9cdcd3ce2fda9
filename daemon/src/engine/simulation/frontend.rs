//! One frontend: careful ones do everything right, careless ones do not.

use std::collections::VecDeque;

use fastrand::Rng;
use metal_rpc_protocol::{
    CreateCache, ErrorCode, ErrorReply, Exec, Hello, LoadModel, Reply, ReplyEnvelope, Request,
    RequestEnvelope, ReserveMemory, Sample, Scope, SessionToken, encode_request,
};

use super::oracle::{Oracle, Question};
use super::scheduler::{BLOCK_SIZE, MAX_BATCHED_TOKENS, MAX_NUM_SEQS, NUM_BLOCKS, Scheduler};
use crate::limits::HEARTBEAT_MS;

/// How far a frontend has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not connected.
    Outside,
    /// Waits for the answer to a message of its set-up.
    SettingUp,
    /// Sends steps.
    Running,
    /// Has broken a rule, and waits for what comes of it.
    Astray,
    /// All is done.
    Gone,
}

/// One frontend.
#[derive(Debug)]
pub(super) struct Frontend {
    name: String,
    pub(super) model: usize,
    weight: u32,
    /// Whether it breaks rules, loses messages and dies.
    pub(super) is_careless: bool,
    num_requests: usize,
    pub(super) stage: Stage,
    session: Option<SessionToken>,
    seq: u64,
    pub(super) scheduler: Scheduler,
    /// A grammar that is promised.
    owed: Option<Sample>,
    /// Messages that have left and not arrived.
    pub(super) in_transit: VecDeque<Vec<u8>>,
    num_layers: u32,
    /// Whether all memory was promised to others when it asked.
    wants_memory: bool,
    /// Sockets that it has had.
    pub(super) num_sockets: u8,
    /// When it last sent something.
    last_sent_ms: u64,
}

impl Frontend {
    pub(super) fn new(index: usize, rng: &mut Rng, model: usize) -> Self {
        let num_requests = rng.usize(1..5);
        Self {
            name: format!("frontend {index}"),
            model,
            weight: [1, 1, 1, 4][rng.usize(..4)],
            is_careless: rng.bool(),
            num_requests,
            stage: Stage::Outside,
            session: None,
            seq: 0,
            scheduler: Scheduler::new(model, num_requests),
            owed: None,
            in_transit: VecDeque::new(),
            num_layers: 0,
            wants_memory: false,
            num_sockets: 1,
            last_sent_ms: 0,
        }
    }

    /// A frontend that asks one question alone.
    pub(super) fn alone(question: Question) -> Self {
        let mut frontend = Self::new(0, &mut Rng::with_seed(0), question.model);
        frontend.is_careless = false;
        frontend.scheduler.open_question(question);
        frontend
    }

    /// Whether it has nothing more to do.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Gone
    }

    /// Sends what it would send next. `is_alone`: one request, its prompt whole.
    pub(super) fn act(&mut self, rng: &mut Rng, now_ms: u64, is_alone: bool) {
        match self.stage {
            Stage::Gone => {}
            Stage::Outside => {
                let hello = Hello {
                    min_protocol_version: 1,
                    max_protocol_version: 1,
                    vllm_version: "0.33.0".to_owned(),
                    frontend: self.name.clone(),
                    pid: 1,
                    weight: self.weight,
                };
                self.send(Request::Hello(hello), now_ms);
                self.stage = Stage::SettingUp;
            }
            Stage::Running => self.run(rng, now_ms, is_alone),
            Stage::SettingUp if std::mem::take(&mut self.wants_memory) => self.reserve(now_ms),
            Stage::SettingUp | Stage::Astray => self.beat(now_ms),
        }
    }

    fn run(&mut self, rng: &mut Rng, now_ms: u64, is_alone: bool) {
        if let Some(sample) = self.owed.take_if(|_| rng.bool()) {
            self.send(Request::Sample(sample), now_ms);
        } else if self.owed.is_none() && self.scheduler.num_in_flight() < 2 {
            if self.is_careless && rng.u8(..30) == 0 {
                let request = careless_request(rng);
                self.send(request, now_ms);
                self.lose_its_way();
            } else if let Some((exec, rows)) = self.scheduler.next_step(rng, is_alone) {
                let follows = exec.sample_follows;
                let seq = self.send(Request::Exec(exec), now_ms);
                self.scheduler.sent(seq, rows);
                self.owed = follows.then_some(Sample {
                    exec_seq: seq,
                    grammar: None,
                });
            } else if self.scheduler.num_left() == 0 && self.scheduler.num_in_flight() == 0 {
                self.send(Request::Goodbye, now_ms);
                self.stage = Stage::SettingUp;
            }
        }
        self.beat(now_ms);
    }

    fn beat(&mut self, now_ms: u64) {
        if self.session.is_some() && now_ms - self.last_sent_ms >= u64::from(HEARTBEAT_MS) {
            self.send(Request::Ping, now_ms);
        }
    }

    /// Reads one reply.
    pub(super) fn receive(&mut self, envelope: ReplyEnvelope, oracle: &Oracle, now_ms: u64) {
        match envelope.reply {
            Reply::Welcome(welcome) => {
                let token = welcome.session.as_array().copied().expect("16 bytes");
                self.session = Some(SessionToken(token));
                let request = self.load_model();
                self.send(request, now_ms);
            }
            Reply::ModelLoaded(loaded) => {
                self.num_layers = u32::try_from(loaded.kv_cache_specs.len()).expect("a few");
                self.reserve(now_ms);
            }
            Reply::MemoryReserved(_) => {
                let create = CreateCache {
                    num_blocks: NUM_BLOCKS,
                    block_size: BLOCK_SIZE,
                    groups: vec![(0..self.num_layers).collect()],
                };
                self.send(Request::CreateCache(create), now_ms);
            }
            Reply::CacheCreated(_) => self.stage = Stage::Running,
            Reply::StepResult(_) if self.stage == Stage::Astray => {}
            Reply::StepResult(result) => self.scheduler.receive(envelope.seq, &result, oracle),
            Reply::Farewell => self.stage = Stage::Gone,
            Reply::Error(error) => self.refused(&error),
            Reply::LoadProgress(_) | Reply::Pong | Reply::StatusReport(_) => {}
        }
    }

    /// A careful frontend is refused only memory that another one is about to give back, or if its
    /// session is over; a careless one begins anew.
    fn refused(&mut self, error: &ErrorReply) {
        if error.code == ErrorCode::OutOfMemory {
            self.wants_memory = true;
            return;
        }
        assert!(
            self.is_careless || error.scope != Scope::Request,
            "{} was refused: {error:?}",
            self.name
        );
        self.begin_anew();
    }

    /// It has broken a rule: answers to its steps are not what it expects any more.
    pub(super) fn lose_its_way(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Astray;
        }
    }

    /// Forgets its session: what it was running has to be asked again.
    pub(super) fn begin_anew(&mut self) {
        let num_left = self.scheduler.num_left().min(self.num_requests);
        self.scheduler = Scheduler::new(self.model, num_left);
        self.stage = Stage::Outside;
        self.session = None;
        self.owed = None;
        self.seq = 0;
        self.num_sockets += 1;
        self.in_transit.clear();
    }

    fn reserve(&mut self, now_ms: u64) {
        let reserve = ReserveMemory {
            memory_fraction: 1.0,
        };
        self.send(Request::ReserveMemory(reserve), now_ms);
    }

    fn load_model(&self) -> Request {
        Request::LoadModel(LoadModel {
            path: Question::folder(self.model).display().to_string(),
            dtype: "float32".to_owned(),
            max_model_len: 64,
            max_num_seqs: MAX_NUM_SEQS,
            max_num_batched_tokens: MAX_BATCHED_TOKENS,
            logprobs_mode: "raw_logprobs".to_owned(),
        })
    }

    fn send(&mut self, request: Request, now_ms: u64) -> u64 {
        self.seq += 1;
        self.last_sent_ms = now_ms;
        let envelope = RequestEnvelope {
            session: self.session,
            seq: self.seq,
            request,
        };
        self.in_transit.push_back(encode_request(&envelope));
        self.seq
    }
}

/// Something that no careful frontend would send.
fn careless_request(rng: &mut Rng) -> Request {
    let exec = |handle, computed, scheduled| Exec {
        handles: vec![handle],
        num_computed_tokens: vec![computed],
        num_scheduled_tokens: vec![scheduled],
        ..Exec::default()
    };
    match rng.u8(..6) {
        0 => Request::Exec(exec(rng.u32(..10), rng.u32(..30), rng.u32(..4))),
        1 => Request::Exec(exec(rng.u32(..), rng.u32(..), rng.u32(..))),
        2 => Request::Exec(Exec {
            finished: vec![rng.u32(..10)],
            ..Exec::default()
        }),
        3 => Request::Sample(Sample {
            exec_seq: rng.u64(..30),
            grammar: None,
        }),
        4 => Request::ReserveMemory(ReserveMemory {
            memory_fraction: rng.f64(),
        }),
        _ => Request::Exec(Exec::default()),
    }
}
