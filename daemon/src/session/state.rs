//! Model, blocks and requests of a session: the engine's side of it.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metal_rpc_protocol::{Exec, LoadModel};

use super::begun_step::BegunStep;
use super::block_tables::TableRules;
use super::request_state::CachedRequestState;
use super::token_table::TokenTable;
use crate::kv_cache::BlockMap;
use crate::limits::MAX_STEPS_UNANSWERED;
use crate::models::loaded::ModelKey;
use crate::outbox::Outbox;
use crate::sampler::LogprobsMode;

/// One frontend, as the engine knows it.
#[derive(Debug)]
pub struct Session {
    /// What people call it.
    pub frontend: String,
    /// Where its replies go.
    pub outbox: Outbox,
    /// What it asked for, once it asked.
    pub load: Option<LoadModel>,
    /// Its model, once loaded.
    pub model: Option<ModelKey>,
    /// What its log probabilities are.
    pub logprobs_mode: LogprobsMode,
    /// Bytes of KV cache that it was promised or granted.
    pub reserved_bytes: u64,
    /// Its cache, once created.
    pub cache: Option<SessionCache>,
    /// Its share of the device, relative to other sessions'.
    pub weight: u32,
    /// Steps that have arrived and not been applied, oldest first.
    pub waiting: VecDeque<WaitingStep>,
    /// The step that was applied and has tokens left to run.
    pub begun: Option<BegunStep>,
    /// Steps that were applied and not answered, oldest first.
    pub unanswered: VecDeque<Unanswered>,
    /// Steps answered since it was opened.
    pub num_steps: u64,
    /// Tokens run since it was opened.
    pub num_tokens: u64,
}

impl Session {
    /// A session that has only said hello.
    #[must_use]
    pub fn new(frontend: String, weight: u32, outbox: Outbox) -> Self {
        Self {
            frontend,
            outbox,
            load: None,
            model: None,
            logprobs_mode: LogprobsMode::RawLogprobs,
            reserved_bytes: 0,
            cache: None,
            weight,
            waiting: VecDeque::new(),
            begun: None,
            unanswered: VecDeque::new(),
            num_steps: 0,
            num_tokens: 0,
        }
    }

    /// Steps on their way through the device.
    #[must_use]
    pub fn num_in_flight(&self) -> usize {
        self.unanswered
            .iter()
            .filter(|step| step.runs_tokens)
            .count()
    }

    /// Whether a step of it is in flight, or a request of it runs.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let runs = |cache: &SessionCache| cache.requests.iter().any(Option::is_some);
        self.num_in_flight() > 0 || self.cache.as_ref().is_some_and(runs)
    }

    /// Whether a step waits and the one before it has run so far that it may be applied.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        self.begun.is_none()
            && !self.waiting.is_empty()
            && self.unanswered.len() < MAX_STEPS_UNANSWERED
    }
}

/// A step that was applied and not answered.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    /// Whether the device has something to do for it.
    pub runs_tokens: bool,
}

/// A step as it arrived.
#[derive(Debug)]
pub struct WaitingStep {
    /// `seq` of its message.
    pub seq: u64,
    /// When it arrived.
    pub received: Instant,
    /// The message.
    pub exec: Exec,
}

/// The cache of a session, and the requests that live in it.
#[derive(Debug)]
pub struct SessionCache {
    /// What this session agreed to.
    pub limits: SessionLimits,
    /// What block tables have in common.
    pub table_rules: TableRules,
    /// Which pool blocks its block numbers mean.
    pub block_map: BlockMap,
    /// By handle.
    pub requests: Vec<Option<CachedRequestState>>,
    /// Token ids of `requests`.
    pub token_table: TokenTable,
    /// Seeds of requests that bring none.
    pub seeds: SeedSource,
}

/// What steps of a session may ask for.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Longest request, in tokens.
    pub max_model_len: u32,
    /// Most requests in one step.
    pub max_num_seqs: u32,
    /// Most tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Entries of the model's vocabulary.
    pub vocab_size: u32,
}

/// Draws seeds for requests that bring none.
#[derive(Debug)]
pub struct SeedSource(u64);

impl SeedSource {
    /// Starts from the clock.
    #[must_use]
    pub fn from_clock() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(now.as_secs() << 32 | u64::from(now.subsec_nanos()))
    }

    /// The next seed: SplitMix64 (Steele, Lea, Flood 2014).
    pub fn next_seed(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
