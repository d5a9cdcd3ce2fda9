//! The engine: the one thread that builds and submits MLX graphs.
//!
//! READ THIS FIRST. [`Engine::step`] is the way of a step: apply, choose, take a chunk, forward,
//! sample, hand over. It owns weights, caches and requests, so nothing on this way takes a lock.
//!
//! # Sharing
//! A frontend's step is applied at once and answered at once. In between it runs in one forward,
//! merged with what others have ready, or in several of them if it is long and others wait.
//!
//! # Pipelining
//! `step` never waits for the device. It submits a graph and hands the arrays that will hold the
//! tokens to the reply thread. The next step is built on tokens that do not exist yet: they are
//! read from the token table, which the sampler writes on the device.
//!
//! # Invariants
//! - The engine never waits for a frontend, and never for a GPU. On the CPU, MLX lets it be a hundred
//!   nodes of a built step ahead of what was computed; a recorded step is one.
//! - At most [`MAX_FORWARDS_IN_FLIGHT`](crate::limits::MAX_FORWARDS_IN_FLIGHT) forwards are
//!   submitted and not completed.
//! - What a session does wrong ends that session and nothing else.

mod control;
mod forward;
mod grant;
mod handle;
mod loading;
mod message;
mod progress;
mod prompt_scores;
mod recorded;
mod sampling;
#[cfg(test)]
mod simulation;
mod status;
mod thread_time;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use metal_rpc_kernels::{KernelError, is_out_of_memory};
use metal_rpc_protocol::{ErrorCode, ErrorReply, Scope, ServedStatus};
use tracing::warn;

use crate::batch::admission::{Bounds, Candidate, NextForward, next_forward};
use crate::batch::turns::Turns;
use crate::device::{Device, MemoryBudget};
use crate::limits::{FORWARDS_ALONE, IDLE_BEAT_MS, MAX_TOKENS_PER_FORWARD};
use crate::models::loaded::{LoadedModel, ModelKey};
use crate::models::{Loader, ModelError, ModelRoots};
use crate::reply::Submitted;
use crate::session::state::{Unanswered, WaitingStep};
use crate::session::{BegunStep, Session, SessionId};
use crate::watchdog::Pulse;

use forward::Chunk;
pub use handle::EngineHandle;
use loading::Loading;
pub use message::{EngineMessage, EngineRequest};
use recorded::Recordings;
use sampling::HeldStep;
pub use status::{EngineStatus, SessionUse};
use thread_time::thread_time;

/// How often an idle engine shows that it lives, and any engine looks for models that nobody uses.
const IDLE_CHECK: Duration = Duration::from_millis(IDLE_BEAT_MS);

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

impl EngineError {
    /// The code that travels to the frontend.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Model(error) => error.code(),
            Self::Kernel(error) if error.is_out_of_memory() => ErrorCode::OutOfMemory,
            Self::Mlx(error) if is_out_of_memory(error) => ErrorCode::OutOfMemory,
            Self::Kernel(_) | Self::Mlx(_) => ErrorCode::StepFailed,
        }
    }
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
    /// Most tokens of a forward while several frontends share the device.
    pub turn_tokens: u32,
}

/// State of the engine thread.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    queue: Receiver<EngineMessage>,
    /// For the threads that load models.
    messages: SyncSender<EngineMessage>,
    submitted: SyncSender<Submitted>,
    pulse: Pulse,
    /// In the order of opening, so that nothing depends on a hash.
    sessions: BTreeMap<SessionId, Session>,
    models: HashMap<ModelKey, LoadedModel>,
    loading: HashMap<ModelKey, Loading>,
    /// Steps whose logits wait for their grammar.
    held: HashMap<SessionId, HeldStep>,
    /// Decodes that a GPU runs again.
    recordings: Recordings,
    turns: Turns,
    num_in_flight: usize,
    /// Forwards to come that have one session each, because one of several has failed.
    num_alone: u32,
    /// What was done since the start.
    served: ServedStatus,
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
    /// Beats as long as the engine is not stuck.
    pub pulse: Pulse,
}

impl Engine {
    /// An engine without models. Runs on the thread that calls [`run`](Self::run).
    #[must_use]
    pub fn new(config: EngineConfig, channels: EngineChannels) -> Self {
        let EngineChannels {
            queue,
            messages,
            submitted,
            pulse,
        } = channels;
        Self {
            turns: Turns::new(config.turn_tokens),
            config,
            queue,
            messages,
            submitted,
            pulse,
            sessions: BTreeMap::new(),
            models: HashMap::new(),
            loading: HashMap::new(),
            held: HashMap::new(),
            recordings: Recordings::default(),
            num_in_flight: 0,
            num_alone: 0,
            served: ServedStatus::default(),
        }
    }

    /// Serves until [`EngineMessage::Stop`], and submits what was ready before it.
    pub fn run(mut self) {
        let mut looked = Instant::now();
        loop {
            self.pulse.beat();
            let first = self.queue.recv_timeout(IDLE_CHECK);
            // Also while others keep the engine busy.
            if looked.elapsed() >= IDLE_CHECK {
                self.unload_idle_models();
                looked = Instant::now();
            }
            let flow = match first {
                Ok(message) => self.turn(message),
                Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            };
            if flow.is_break() {
                return;
            }
        }
    }

    /// Serves a message and whatever else has arrived, then submits what is ready. Never waits.
    pub fn turn(&mut self, first: EngineMessage) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        let mut next = Some(first);
        while let Some(message) = next {
            if matches!(message, EngineMessage::Stop) {
                flow = ControlFlow::Break(());
                break;
            }
            self.handle(message);
            // What has arrived meanwhile may join the next forward.
            next = self.queue.try_recv().ok();
        }
        while self.step() {
            self.pulse.beat();
        }
        flow
    }

    /// Submits one forward over what is ready together. False if there is nothing to submit.
    fn step(&mut self) -> bool {
        self.begin_steps();
        let Some(forward) = self.next_forward() else {
            return false;
        };
        let begun = thread_time();
        let chunks = self.take_chunks(&forward.shares);
        self.served.forwards += 1;
        let steps: Vec<_> = chunks
            .iter()
            .map(|c| (c.session, c.begun.step.seq))
            .collect();
        if let Err(error) = self.forward(&forward.model, chunks) {
            self.forward_failed(steps.len());
            for (session, seq) in steps {
                let message = format!("the step failed: {error}");
                self.end_session(session, seq, error.code(), message);
            }
        }
        let took = thread_time().saturating_sub(begun);
        self.served.submit_us += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        true
    }

    /// Applies the oldest waiting step of each session that has none begun.
    fn begin_steps(&mut self) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in sessions {
            while self.may_begin(id) {
                self.begin_step(id);
            }
        }
    }

    fn may_begin(&self, id: SessionId) -> bool {
        // A step needs the tokens of the one before, so it waits for that one's grammar.
        let is_held = self.held.contains_key(&id);
        let session = self.sessions.get(&id);
        !is_held && session.is_some_and(Session::may_begin)
    }

    /// Applies and checks a step.
    fn begin_step(&mut self, id: SessionId) {
        let session = self.sessions.get_mut(&id).expect("`may_begin` has looked");
        let WaitingStep {
            seq,
            received,
            exec,
        } = session.waiting.pop_front().expect("`may_begin` has looked");
        let key = session.model.as_ref().expect("a cache has a model");
        let model = self.models.get_mut(key).expect("a session keeps its model");
        let cache = session.cache.as_mut().expect("steps come after the cache");
        let pool = &mut model.cache.as_mut().expect("and that after this").pool;
        match cache.apply((seq, received), exec, pool) {
            Ok(step) if step.rows.is_empty() => {
                session
                    .unanswered
                    .push_back(Unanswered { runs_tokens: false });
                self.answer_empty(id, seq, received);
            }
            Ok(step) => {
                session
                    .unanswered
                    .push_back(Unanswered { runs_tokens: true });
                session.begun = Some(BegunStep::new(step));
            }
            Err(error) => self.end_session(id, seq, ErrorCode::InvalidStep, error.to_string()),
        }
    }

    fn next_forward(&mut self) -> Option<NextForward> {
        let candidates: Vec<Candidate> = self
            .sessions
            .iter()
            .filter_map(|(id, session)| {
                Some(Candidate {
                    session: *id,
                    model: session.model.clone()?,
                    weight: session.weight,
                    ready_tokens: session.begun.as_ref().map_or(0, BegunStep::num_left),
                    is_busy: session.is_busy(),
                })
            })
            .collect();
        let num_sharing = self.sessions.values().filter(|s| s.cache.is_some()).count();
        let max_tokens = match num_sharing {
            0 | 1 => MAX_TOKENS_PER_FORWARD,
            _ => self.config.turn_tokens,
        };
        let bounds = Bounds {
            max_tokens,
            alone: (self.num_alone > 0).then_some(self.num_alone),
        };
        let next = next_forward(&candidates, &mut self.turns, self.num_in_flight, bounds)?;
        self.num_alone = self.num_alone.saturating_sub(1);
        Some(next)
    }

    /// Whose doing it was, only forwards of one session each can tell.
    fn forward_failed(&mut self, num_sessions: usize) {
        if num_sessions > 1 {
            self.num_alone = FORWARDS_ALONE;
        }
    }

    /// The device has failed in a forward whose steps `answered` are told so. Steps that would have
    /// ended in a later one, or that wait for their grammar, have lost what it should have written.
    fn device_failed(&mut self, answered: usize) {
        let begun = self.sessions.iter().filter_map(|(id, session)| {
            let begun = session.begun.as_ref()?;
            begun.submitted.map(|_| (*id, begun.step.seq))
        });
        let held = self.held.iter().map(|(id, held)| (*id, held.seq()));
        let broken: Vec<(SessionId, u64)> = begun.chain(held).collect();
        self.forward_failed(answered + broken.len());
        for (id, seq) in broken {
            let message = "the device could not run a part of the step".to_owned();
            self.end_session(id, seq, ErrorCode::StepFailed, message);
        }
    }

    /// Takes the begun steps of these sessions, and of each the tokens that run now.
    fn take_chunks(&mut self, shares: &[(SessionId, u32)]) -> Vec<Chunk> {
        let take = |(id, num_tokens): &(SessionId, u32)| {
            let session = self.sessions.get_mut(id).expect("it was a candidate");
            session.num_tokens += u64::from(*num_tokens);
            self.served.tokens += u64::from(*num_tokens);
            let mut begun = session.begun.take().expect("it has ready tokens");
            let parts = begun.take_chunk(*num_tokens);
            Chunk {
                session: *id,
                begun,
                parts,
            }
        };
        shares.iter().map(take).collect()
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
