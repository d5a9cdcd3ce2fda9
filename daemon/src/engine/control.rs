//! What the engine does beside steps: open, close, load, grant, status.

use std::thread;
use std::time::Instant;

use metal_rpc_protocol::limits::{
    MAX_STEPS_IN_FLIGHT, MAX_TOKENS_PER_REQUEST, MAX_TOKENS_PER_STEP,
};
use metal_rpc_protocol::{
    CacheCreated, CreateCache, ErrorCode, ErrorReply, KvStatus, LoadModel, LoadProgress,
    MemoryReserved, ModelLoaded, ModelStatus, Reply, ReserveMemory, Scope,
};
use mlx_rs::Dtype as MlxDtype;
use tracing::{info, warn};

use super::{Engine, EngineMessage, EngineRequest};
use crate::kv_cache::{BlockMap, BlockPool, KvCache, LayerCache};
use crate::models::loaded::{LoadedModel, ModelCache, ModelKey};
use crate::models::{self, Dtype, LoadOptions, Model, ModelError};
use crate::outbox::Outbox;
use crate::sampler::LogprobsMode;
use crate::session::state::{SeedSource, SessionLimits, WaitingStep};
use crate::session::{Session, SessionCache, SessionId, TokenTable};

/// What the engine tells about itself.
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    /// By session.
    pub sessions: Vec<(SessionId, SessionUse)>,
    /// Models in memory.
    pub models: Vec<ModelStatus>,
    /// The caches of all models.
    pub kv: KvStatus,
}

/// What one session uses.
#[derive(Clone, Debug, Default)]
pub struct SessionUse {
    /// Folder of its model.
    pub model: Option<String>,
    /// Requests that it runs.
    pub running_requests: u32,
    /// Blocks that it may use.
    pub granted_blocks: u32,
    /// Blocks that hold something.
    pub used_blocks: u32,
    /// Steps answered.
    pub steps: u64,
    /// Tokens run.
    pub tokens: u64,
}

/// Sessions that wait for the same load.
#[derive(Debug, Default)]
pub(super) struct Loading {
    waiting: Vec<(SessionId, u64, Instant)>,
}

impl Engine {
    pub(super) fn handle(&mut self, message: EngineMessage) {
        match message {
            EngineMessage::Open {
                session,
                frontend,
                outbox,
            } => {
                self.sessions
                    .insert(session, Session::new(frontend, outbox));
            }
            EngineMessage::Close { session } => self.close(session),
            EngineMessage::Request {
                session,
                seq,
                received,
                request,
            } => {
                if self.sessions.contains_key(&session) {
                    self.serve(session, (seq, received), request);
                }
            }
            EngineMessage::Loaded { key, result } => self.loaded(key, result),
            EngineMessage::Completed { sessions } => self.completed(&sessions),
            EngineMessage::Stop => unreachable!("`run` stops before it hands this on"),
        }
    }

    fn serve(&mut self, id: SessionId, (seq, received): (u64, Instant), request: EngineRequest) {
        let answer = match request {
            EngineRequest::LoadModel(load) => {
                self.load_model(id, (seq, received), load).map(|()| None)
            }
            EngineRequest::ReserveMemory(reserve) => self.reserve_memory(id, &reserve).map(Some),
            EngineRequest::CreateCache(create) => self.create_cache(id, &create).map(Some),
            EngineRequest::Exec(exec) => self
                .enqueue(
                    id,
                    WaitingStep {
                        seq,
                        received,
                        exec,
                    },
                )
                .map(|()| None),
            EngineRequest::Sample(sample) => {
                self.resume(id, seq, sample);
                return;
            }
        };
        match answer {
            Ok(None) => {}
            Ok(Some(reply)) => self.sessions[&id].outbox.send(seq, reply),
            Err(error) => {
                warn!(session = id.0, error = error.message, "refused");
                self.sessions[&id].outbox.send_error(seq, error);
            }
        }
    }

    /// Queues a step. Its rules are checked when its turn has come.
    fn enqueue(&mut self, id: SessionId, step: WaitingStep) -> Result<(), ErrorReply> {
        let session = self.session(id);
        if session.cache.is_none() {
            return Err(out_of_order("Exec", "CreateCache"));
        }
        let num_steps = session
            .waiting
            .iter()
            .filter(|step| !step.exec.handles.is_empty())
            .count()
            + session.num_in_flight;
        if num_steps >= MAX_STEPS_IN_FLIGHT && !step.exec.handles.is_empty() {
            let message = format!(
                "{num_steps} steps of this session are in flight, the most is {MAX_STEPS_IN_FLIGHT}"
            );
            return Err(refusal(ErrorCode::TooManySteps, message));
        }
        session.waiting.push_back(step);
        Ok(())
    }

    fn load_model(
        &mut self,
        id: SessionId,
        (seq, received): (u64, Instant),
        load: LoadModel,
    ) -> Result<(), ErrorReply> {
        if self.session(id).load.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "LoadModel is legal once".to_owned(),
            ));
        }
        let (dtype, mode) = check_load(&load)?;
        let key =
            ModelKey::of_folder(load.path.as_ref(), dtype).map_err(|error| model_error(&error))?;
        let session = self.session(id);
        session.load = Some(load);
        session.logprobs_mode = mode;
        let outbox = session.outbox.clone();
        if self.models.contains_key(&key) {
            self.join_model(id, &key, (seq, received));
            return Ok(());
        }
        let is_new = !self.loading.contains_key(&key);
        self.loading
            .entry(key.clone())
            .or_default()
            .waiting
            .push((id, seq, received));
        if is_new {
            self.start_loading(key, (seq, outbox));
        }
        Ok(())
    }

    /// Loads on a thread of its own: others are served meanwhile. Evaluated arrays may change
    /// threads, and loading evaluates nothing.
    fn start_loading(&self, key: ModelKey, (seq, outbox): (u64, Outbox)) {
        info!(path = %key.path.display(), dtype = %key.dtype, "loading");
        let messages = self.messages.clone();
        let weights_bytes = self
            .models
            .values()
            .map(|loaded| loaded.model.weights_bytes())
            .sum();
        let free_bytes = self.config.memory.limit_bytes.saturating_sub(weights_bytes);
        let device = self.config.device.mlx();
        let load = move || {
            let mut last = Instant::now();
            let mut progress = |loaded_bytes, total_bytes| {
                if last.elapsed().as_millis() >= 500 {
                    last = Instant::now();
                    outbox.send(
                        seq,
                        Reply::LoadProgress(LoadProgress {
                            loaded_bytes,
                            total_bytes,
                        }),
                    );
                }
            };
            let options = LoadOptions {
                dtype: key.dtype,
                device,
                free_bytes,
                progress: &mut progress,
            };
            let result = models::load(&key.path, options);
            // The engine is gone only when the daemon stops.
            let _ = messages.send(EngineMessage::Loaded { key, result });
        };
        thread::Builder::new()
            .name("load".to_owned())
            .spawn(load)
            .expect("the system has a thread left");
    }

    fn loaded(&mut self, key: ModelKey, result: Result<Box<dyn Model>, ModelError>) {
        let loading = self.loading.remove(&key).unwrap_or_default();
        match result {
            Ok(model) => {
                info!(path = %key.path.display(), weights_bytes = model.weights_bytes(), "loaded");
                let idle_since = Some(Instant::now());
                let loaded = LoadedModel {
                    model,
                    cache: None,
                    num_sessions: 0,
                    idle_since,
                };
                self.models.insert(key.clone(), loaded);
                for (id, seq, received) in loading.waiting {
                    self.join_model(id, &key, (seq, received));
                }
            }
            Err(error) => {
                warn!(path = %key.path.display(), %error, "not loaded");
                for (id, seq, _) in loading.waiting {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.load = None;
                        session.outbox.send_error(seq, model_error(&error));
                    }
                }
            }
        }
    }

    fn join_model(&mut self, id: SessionId, key: &ModelKey, (seq, received): (u64, Instant)) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let loaded = self.models.get_mut(key).expect("the caller has looked");
        loaded.num_sessions += 1;
        loaded.idle_since = None;
        session.model = Some(key.clone());
        let model = &loaded.model;
        session.outbox.send(
            seq,
            Reply::ModelLoaded(ModelLoaded {
                model_type: model.args().model_type.to_owned(),
                vocab_size: model.vocab_size(),
                weights_bytes: model.weights_bytes(),
                load_ms: u64::try_from(received.elapsed().as_millis()).unwrap_or(u64::MAX),
                kv_cache_specs: model.kv_cache_specs(),
            }),
        );
    }

    fn reserve_memory(
        &mut self,
        id: SessionId,
        reserve: &ReserveMemory,
    ) -> Result<Reply, ErrorReply> {
        if self.session(id).model.is_none() {
            return Err(out_of_order("ReserveMemory", "LoadModel"));
        }
        if self.session(id).cache.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "the cache exists already".to_owned(),
            ));
        }
        let weights_bytes = self
            .models
            .values()
            .map(|loaded| loaded.model.weights_bytes())
            .sum();
        let others: Vec<(&str, u64)> = self
            .sessions
            .iter()
            .filter(|(other, session)| **other != id && session.reserved_bytes > 0)
            .map(|(_, session)| (session.frontend.as_str(), session.reserved_bytes))
            .collect();
        let available_bytes = self
            .config
            .memory
            .available(reserve.memory_fraction, weights_bytes, &others)
            .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
        self.session(id).reserved_bytes = available_bytes;
        Ok(Reply::MemoryReserved(MemoryReserved { available_bytes }))
    }

    fn create_cache(&mut self, id: SessionId, create: &CreateCache) -> Result<Reply, ErrorReply> {
        let limit_bytes = self.config.memory.limit_bytes;
        let session = self.sessions.get_mut(&id).expect("`handle` has looked");
        let (Some(key), Some(load)) = (&session.model, &session.load) else {
            return Err(out_of_order("CreateCache", "LoadModel"));
        };
        if session.cache.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "CreateCache is legal once".to_owned(),
            ));
        }
        let loaded = self.models.get_mut(key).expect("a session keeps its model");
        check_groups(create, loaded.model.kv_cache_specs().len())?;
        let cache = match &mut loaded.cache {
            Some(cache) => cache,
            none => none.insert(new_cache(&*loaded.model, create.block_size, limit_bytes)?),
        };
        if cache.block_size != create.block_size {
            let message = format!(
                "block size must be {}, as the other frontends of this model have it, but is {}",
                cache.block_size, create.block_size
            );
            return Err(refusal(ErrorCode::Unsupported, message));
        }
        let granted_bytes = cache.block_bytes * u64::from(create.num_blocks);
        if granted_bytes > session.reserved_bytes {
            let message = format!(
                "{} blocks of {} bytes are more than the {} bytes reserved for this session",
                create.num_blocks, cache.block_bytes, session.reserved_bytes
            );
            return Err(refusal(ErrorCode::OutOfMemory, message));
        }
        session.reserved_bytes = granted_bytes;
        session.cache = Some(session_cache(load, loaded.model.vocab_size(), create)?);
        let (num_blocks, block_bytes) = (create.num_blocks, cache.block_bytes);
        info!(
            frontend = session.frontend,
            num_blocks, block_bytes, "cache created"
        );
        Ok(Reply::CacheCreated(CacheCreated {
            num_blocks,
            block_bytes,
        }))
    }

    /// Forgets a session and takes back what it had.
    pub(super) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        self.held.remove(&id);
        let Some(loaded) = session.model.and_then(|key| self.models.get_mut(&key)) else {
            return;
        };
        if let (Some(own), Some(shared)) = (session.cache, &mut loaded.cache) {
            own.block_map.release(&mut shared.pool);
        }
        loaded.num_sessions -= 1;
        if loaded.num_sessions == 0 {
            loaded.cache = None;
            loaded.idle_since = Some(Instant::now());
        }
    }

    pub(super) fn unload_idle_models(&mut self) {
        let keep_alive = self.config.model_keep_alive;
        let is_over = |since: &Instant| since.elapsed() >= keep_alive;
        let before = self.models.len();
        self.models.retain(|key, loaded| {
            let unload = loaded.idle_since.as_ref().is_some_and(is_over);
            if unload {
                info!(path = %key.path.display(), "unloading");
            }
            !unload
        });
        if self.models.len() != before {
            self.publish_status();
        }
    }

    pub(super) fn publish_status(&self) {
        let mut status = EngineStatus::default();
        for (id, session) in &self.sessions {
            status.sessions.push((*id, session_use(session)));
            status.kv.granted_bytes += session.reserved_bytes;
        }
        status.kv.budget_bytes = self.config.memory.limit_bytes;
        for (key, loaded) in &self.models {
            status.models.push(ModelStatus {
                path: key.path.display().to_string(),
                model_type: loaded.model.args().model_type.to_owned(),
                dtype: key.dtype.name().to_owned(),
                weights_bytes: loaded.model.weights_bytes(),
                sessions: loaded.num_sessions,
            });
            if let Some(cache) = &loaded.cache {
                status.kv.used_bytes += cache.pool.num_granted() as u64 * cache.block_bytes;
            }
        }
        *self.status.lock().expect("nobody panics while holding it") = status;
    }

    fn session(&mut self, id: SessionId) -> &mut Session {
        self.sessions.get_mut(&id).expect("`handle` has looked")
    }
}

fn session_use(session: &Session) -> SessionUse {
    let cache = session.cache.as_ref();
    let running = cache.map_or(0, |cache| cache.requests.iter().flatten().count());
    SessionUse {
        model: session
            .model
            .as_ref()
            .map(|key| key.path.display().to_string()),
        running_requests: u32::try_from(running).unwrap_or(u32::MAX),
        granted_blocks: cache.map_or(0, |cache| cache.block_map.num_granted()),
        used_blocks: cache.map_or(0, |cache| cache.block_map.num_used()),
        steps: session.num_steps,
        tokens: session.num_tokens,
    }
}

fn check_load(load: &LoadModel) -> Result<(Dtype, LogprobsMode), ErrorReply> {
    let bad = |message: String| refusal(ErrorCode::BadMessage, message);
    let dtype = Dtype::from_name(&load.dtype).ok_or_else(|| {
        bad(format!(
            "dtype must be float32, float16 or bfloat16, but is {:?}",
            load.dtype
        ))
    })?;
    let mode = LogprobsMode::from_name(&load.logprobs_mode).ok_or_else(|| {
        bad(format!(
            "logprobs_mode {:?} is not known",
            load.logprobs_mode
        ))
    })?;
    let limits = [
        ("max_model_len", load.max_model_len, MAX_TOKENS_PER_REQUEST),
        (
            "max_num_seqs",
            load.max_num_seqs,
            metal_rpc_protocol::limits::MAX_REQUESTS_PER_STEP,
        ),
        (
            "max_num_batched_tokens",
            load.max_num_batched_tokens,
            MAX_TOKENS_PER_STEP,
        ),
    ];
    for (name, value, limit) in limits {
        if value == 0 || value as usize > limit {
            return Err(bad(format!("{name} must be 1 to {limit}, but is {value}")));
        }
    }
    Ok((dtype, mode))
}

fn check_groups(create: &CreateCache, num_layers: usize) -> Result<(), ErrorReply> {
    let all_layers = (0..).take(num_layers);
    match create.groups.as_slice() {
        [group] if group.iter().copied().eq(all_layers) => {}
        groups => {
            let message = format!(
                "one KV-cache group of all {num_layers} layers is supported, not {} groups",
                groups.len()
            );
            return Err(refusal(ErrorCode::Unsupported, message));
        }
    }
    if create.num_blocks < 2 || create.block_size == 0 || create.block_size > 1024 {
        let message = format!(
            "a cache needs 2 or more blocks of 1 to 1024 tokens, not {} of {}",
            create.num_blocks, create.block_size
        );
        return Err(refusal(ErrorCode::BadMessage, message));
    }
    Ok(())
}

/// Reserves address space for as many blocks as the daemon may ever use for this model.
fn new_cache(
    model: &dyn Model,
    block_size: u32,
    limit_bytes: u64,
) -> Result<ModelCache, ErrorReply> {
    let specs = model.kv_cache_specs();
    let token_bytes: u64 = specs
        .iter()
        .map(|spec| {
            let dtype = Dtype::from_name(&spec.dtype).expect("a model names known dtypes");
            2 * u64::from(spec.num_kv_heads) * u64::from(spec.head_dim) * dtype.size_bytes()
        })
        .sum();
    let block_bytes = token_bytes * u64::from(block_size);
    // Slots are i32 on the device.
    let most_blocks = u64::from(i32::MAX.unsigned_abs() / block_size);
    let num_blocks = (limit_bytes / block_bytes).clamp(2, most_blocks);
    let num_blocks = u32::try_from(num_blocks).expect("clamped");
    let layers = specs
        .iter()
        .map(|spec| {
            let shape = [num_blocks, block_size, spec.num_kv_heads, spec.head_dim];
            let dtype: MlxDtype = Dtype::from_name(&spec.dtype)
                .expect("a model names known dtypes")
                .mlx();
            LayerCache::reserve(shape.map(u32::cast_signed), dtype)
        })
        .collect::<Result<_, _>>()
        .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
    let pool = BlockPool::new(num_blocks);
    Ok(ModelCache {
        kv: KvCache { layers },
        pool,
        block_size,
        block_bytes,
    })
}

fn session_cache(
    load: &LoadModel,
    vocab_size: u32,
    create: &CreateCache,
) -> Result<SessionCache, ErrorReply> {
    // A finished request may keep its handle until the step that opens its successor was built.
    let num_handles = 2 * load.max_num_seqs;
    // The token that a step samples comes after the known ones, also when vLLM throws it away.
    let row_len = load.max_model_len + 2;
    let token_table = TokenTable::reserve(num_handles, row_len)
        .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
    Ok(SessionCache {
        limits: SessionLimits {
            max_model_len: load.max_model_len,
            max_num_seqs: load.max_num_seqs,
            max_num_batched_tokens: load.max_num_batched_tokens,
            vocab_size,
        },
        block_size: create.block_size,
        block_map: BlockMap::new(create.num_blocks),
        requests: (0..num_handles).map(|_| None).collect(),
        token_table,
        seeds: SeedSource::from_clock(),
    })
}

fn refusal(code: ErrorCode, message: String) -> ErrorReply {
    ErrorReply {
        code,
        scope: Scope::Request,
        message,
    }
}

fn out_of_order(message: &str, first: &str) -> ErrorReply {
    refusal(
        ErrorCode::OutOfOrder,
        format!("{message} is legal after {first}"),
    )
}

fn model_error(error: &ModelError) -> ErrorReply {
    refusal(error.code(), error.to_string())
}
