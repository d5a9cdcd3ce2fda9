//! The engine: the one thread that builds and submits MLX graphs.
//!
//! READ THIS FIRST. [`Engine::step`] is the way of a step: collect, build, forward, sample, hand
//! over. It owns weights, caches and requests, so nothing on this way takes a lock.
//!
//! # Pipelining
//! `step` never waits for the device. It submits a graph and hands the arrays that will hold the
//! tokens to the reply thread. The next step is built on tokens that do not exist yet: they are
//! read from the token table, which the sampler writes on the device.
//!
//! # Invariants
//! - The engine never waits for a frontend, and never for the device.
//! - At most [`MAX_FORWARDS_IN_FLIGHT`](crate::limits::MAX_FORWARDS_IN_FLIGHT) forwards are
//!   submitted and not completed.
//! - What a session does wrong ends that session and nothing else.

mod control;
mod grant;
mod handle;
mod loading;
mod message;
mod prompt_scores;
mod sampling;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metal_rpc_kernels::KernelError;
use metal_rpc_protocol::{ErrorCode, ErrorReply, Reply, Scope, StepResult};
use mlx_rs::Array;
use mlx_rs::transforms::async_eval;
use tracing::{debug, warn};

use crate::batch::admission::{Candidate, next_forward};
use crate::batch::{BatchedStep, InputBatch};
use crate::device::{Device, MemoryBudget};
use crate::models::loaded::{LoadedModel, ModelKey};
use crate::models::{Loader, ModelError, ModelRoots};
use crate::reply::Submitted;
use crate::session::state::WaitingStep;
use crate::session::{Session, SessionId, ValidStep};

pub use handle::EngineHandle;
use loading::Loading;
pub use message::{EngineMessage, EngineRequest};
use sampling::HeldStep;
pub use status::{EngineStatus, SessionUse};

/// How often an idle engine looks for models that nobody uses any more.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// Why a step failed. Scope: the sessions whose steps ran together.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// MLX refused an operation.
    #[error("MLX: {}", .0.what())]
    Mlx(#[from] mlx_rs::error::Exception),
}

/// What the engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// What models run on.
    pub device: Device,
    /// Memory for weights and caches.
    pub memory: MemoryBudget,
    /// How long a model stays in memory after its last session.
    pub model_keep_alive: Duration,
    /// Which folders frontends may load models from.
    pub model_roots: ModelRoots,
    /// What makes models of folders.
    pub models: Arc<dyn Loader>,
}

/// State of the engine thread.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    queue: Receiver<EngineMessage>,
    /// For the threads that load models.
    messages: SyncSender<EngineMessage>,
    submitted: SyncSender<Submitted>,
    status: Arc<Mutex<EngineStatus>>,
    /// In the order of opening, so that nothing depends on a hash.
    sessions: BTreeMap<SessionId, Session>,
    models: HashMap<ModelKey, LoadedModel>,
    loading: HashMap<ModelKey, Loading>,
    /// Steps whose logits wait for their grammar.
    held: HashMap<SessionId, HeldStep>,
    num_in_flight: usize,
}

/// The ends of the engine's channels.
#[derive(Debug)]
pub struct EngineChannels {
    /// Everything that happens.
    pub queue: Receiver<EngineMessage>,
    /// The other end of `queue`.
    pub messages: SyncSender<EngineMessage>,
    /// Work for the reply thread.
    pub submitted: SyncSender<Submitted>,
    /// What `metald status` shows.
    pub status: Arc<Mutex<EngineStatus>>,
}

impl Engine {
    /// An engine without models. Runs on the thread that calls [`run`](Self::run).
    #[must_use]
    pub fn new(config: EngineConfig, channels: EngineChannels) -> Self {
        let EngineChannels {
            queue,
            messages,
            submitted,
            status,
        } = channels;
        Self {
            config,
            queue,
            messages,
            submitted,
            status,
            sessions: BTreeMap::new(),
            models: HashMap::new(),
            loading: HashMap::new(),
            held: HashMap::new(),
            num_in_flight: 0,
        }
    }

    /// Serves until [`EngineMessage::Stop`].
    pub fn run(mut self) {
        loop {
            let first = match self.queue.recv_timeout(IDLE_CHECK) {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.unload_idle_models();
                    continue;
                }
                Ok(message) => message,
            };
            if self.turn(first).is_break() {
                return;
            }
        }
    }

    /// Serves a message and whatever else has arrived, then submits what is ready. Never waits.
    pub fn turn(&mut self, first: EngineMessage) -> ControlFlow<()> {
        let mut next = Some(first);
        while let Some(message) = next {
            if matches!(message, EngineMessage::Stop) {
                return ControlFlow::Break(());
            }
            self.handle(message);
            // What has arrived meanwhile may join the next forward.
            next = self.queue.try_recv().ok();
        }
        while self.step() {}
        self.publish_status();
        ControlFlow::Continue(())
    }

    /// Submits one forward over the steps that are ready together. False if there is none.
    fn step(&mut self) -> bool {
        let Some((key, steps)) = self.collect() else {
            return false;
        };
        let sessions: Vec<_> = steps
            .iter()
            .map(|(session, step)| (*session, step.seq))
            .collect();
        if let Err(error) = self.forward(&key, steps) {
            for (session, seq) in sessions {
                let message = format!("the step failed: {error}");
                self.end_session(session, seq, ErrorCode::StepFailed, message);
            }
        }
        true
    }

    /// Takes the steps that run together from their sessions, applied and checked.
    fn collect(&mut self) -> Option<(ModelKey, Vec<(SessionId, ValidStep)>)> {
        loop {
            let candidates = self.candidates();
            let chosen = next_forward(&candidates, self.num_in_flight);
            let key = self.sessions[chosen.first()?].model.clone()?;
            let steps: Vec<_> = chosen
                .into_iter()
                .filter_map(|session| self.take_step(session))
                .collect();
            if !steps.is_empty() {
                return Some((key, steps));
            }
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.sessions
            .iter()
            .filter_map(|(id, session)| {
                // A step needs the tokens of the one before, so it waits for that one's grammar.
                let waiting = session
                    .waiting
                    .front()
                    .filter(|_| !self.held.contains_key(id));
                Some(Candidate {
                    session: *id,
                    model: session.model.clone()?,
                    waiting_since: waiting.map(|step| step.received),
                    num_tokens: waiting.map_or(0, |step| step.exec.handles.len()),
                    is_in_flight: session.num_in_flight > 0,
                })
            })
            .collect()
    }

    /// Applies the oldest waiting step of a session. None if it needs no forward or was refused.
    fn take_step(&mut self, id: SessionId) -> Option<(SessionId, ValidStep)> {
        let session = self.sessions.get_mut(&id)?;
        let WaitingStep {
            seq,
            received,
            exec,
        } = session.waiting.pop_front()?;
        let model = session
            .model
            .as_ref()
            .and_then(|key| self.models.get_mut(key))?;
        let (cache, pool) = (session.cache.as_mut()?, &mut model.cache.as_mut()?.pool);
        match cache.apply((seq, received), exec, pool) {
            Ok(step) if step.rows.is_empty() => {
                session
                    .outbox
                    .send(seq, Reply::StepResult(StepResult::default()));
                None
            }
            Ok(step) => {
                session.num_in_flight += 1;
                session.num_tokens += u64::from(step.num_tokens);
                Some((id, step))
            }
            Err(error) => {
                self.end_session(id, seq, ErrorCode::InvalidStep, error.to_string());
                None
            }
        }
    }

    /// Builds and submits one forward.
    fn forward(
        &mut self,
        key: &ModelKey,
        steps: Vec<(SessionId, ValidStep)>,
    ) -> Result<(), EngineError> {
        let submitted = Instant::now();
        for (session, step) in &steps {
            self.write_new_tokens(*session, step)?;
        }
        let model = self.models.get_mut(key).expect("a session keeps its model");
        let cache = model
            .cache
            .as_mut()
            .expect("steps come after the cache was created");
        let batched: Vec<BatchedStep<'_>> = steps
            .iter()
            .map(|(id, step)| {
                let cache = self.sessions[id]
                    .cache
                    .as_ref()
                    .expect("the step was applied to it");
                BatchedStep {
                    step,
                    token_table: &cache.token_table,
                }
            })
            .collect();
        let batch = InputBatch::build(&batched, cache.block_size)?;
        debug!(
            num_sessions = steps.len(),
            num_tokens = batch.num_tokens,
            "forward"
        );

        let hidden = model.model.forward(&batch.input, &mut cache.kv)?;
        let logits = match &batch.logits_indices {
            Some(indices) => Some(model.model.logits(&hidden.take_axis(indices, 0)?)?),
            None => None,
        };
        self.sample(key, steps, (hidden, logits), submitted)
    }

    /// Puts the tokens of new requests into the session's token table.
    fn write_new_tokens(&mut self, id: SessionId, step: &ValidStep) -> Result<(), EngineError> {
        if step.new_tokens.is_empty() {
            return Ok(());
        }
        let cache = self
            .sessions
            .get_mut(&id)
            .and_then(|session| session.cache.as_mut());
        let table = &mut cache.expect("the step was applied to it").token_table;
        let mut token_ids = Vec::new();
        let mut slots = Vec::new();
        for (handle, tokens) in &step.new_tokens {
            token_ids.extend_from_slice(tokens);
            slots.extend(
                (0_u32..)
                    .zip(tokens)
                    .map(|(position, _)| table.slot(*handle, position)),
            );
        }
        let len = i32::try_from(slots.len()).expect("a message's size is limited");
        table.write(
            &Array::from_slice(&token_ids, &[len]),
            &Array::from_slice(&slots, &[len]),
        )?;
        Ok(())
    }

    /// Starts the work on the device and has the reply thread wait for it.
    ///
    /// From then on `submitted` belongs to that thread: no handle of its arrays stays here.
    fn submit(&mut self, outputs: Vec<Array>, submitted: Submitted) -> Result<(), EngineError> {
        async_eval(&outputs)?;
        drop(outputs);
        self.num_in_flight += 1;
        if self.submitted.send(submitted).is_err() {
            warn!("the reply thread is gone");
        }
        Ok(())
    }

    fn completed(&mut self, sessions: &[SessionId]) {
        self.num_in_flight -= 1;
        for id in sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.num_in_flight -= 1;
                session.num_steps += 1;
            }
        }
    }

    /// Ends a session that cannot go on, in answer to its message `seq`.
    fn end_session(&mut self, id: SessionId, seq: u64, code: ErrorCode, message: String) {
        if let Some(session) = self.sessions.get(&id) {
            warn!(session = id.0, error = message, "closing the session");
            session.outbox.send_error(
                seq,
                ErrorReply {
                    code,
                    scope: Scope::Session,
                    message,
                },
            );
            session.outbox.close();
        }
        self.close(id);
    }
}
