//! What the engine does with a message: sessions open and close, requests go where they are served.

use std::time::Instant;

use metal_rpc_protocol::limits::MAX_STEPS_IN_FLIGHT;
use metal_rpc_protocol::{ErrorCode, ErrorReply, Scope};
use tracing::warn;

use super::{Engine, EngineMessage, EngineRequest};
use crate::limits::MAX_STEPS_WAITING;
use crate::session::state::WaitingStep;
use crate::session::{Session, SessionId};

impl Engine {
    pub(super) fn handle(&mut self, message: EngineMessage) {
        match message {
            EngineMessage::Open {
                session,
                frontend,
                weight,
                outbox,
            } => {
                self.sessions
                    .insert(session, Session::new(frontend, weight, outbox));
            }
            EngineMessage::Close { session } => self.close(session),
            EngineMessage::Request {
                session,
                seq,
                received,
                request,
                ticket,
            } => {
                drop(ticket);
                if self.sessions.contains_key(&session) {
                    self.serve(session, (seq, received), request);
                }
            }
            EngineMessage::Loaded { key, result } => self.loaded(key, result),
            EngineMessage::Completed {
                sessions,
                was_forward,
                has_failed,
            } => {
                if has_failed {
                    self.device_failed(sessions.len());
                }
                self.completed(&sessions, was_forward);
            }
            EngineMessage::Status { answer } => {
                // Who asked may have stopped waiting.
                let _ = answer.send(self.status());
            }
            EngineMessage::Stop => unreachable!("`turn` ends before it hands this on"),
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
            + session.num_in_flight();
        if num_steps >= MAX_STEPS_IN_FLIGHT && !step.exec.handles.is_empty() {
            let message = format!(
                "{num_steps} steps of this session are in flight, the most is {MAX_STEPS_IN_FLIGHT}"
            );
            return Err(refusal(ErrorCode::TooManySteps, message));
        }
        if session.waiting.len() >= MAX_STEPS_WAITING {
            let message =
                format!("{MAX_STEPS_WAITING} steps of this session wait, which is the most");
            return Err(refusal(ErrorCode::TooManySteps, message));
        }
        session.waiting.push_back(step);
        Ok(())
    }

    /// Forgets a session and takes back what it had.
    pub(super) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        self.held.remove(&id);
        self.recordings.forget(id);
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

    pub(super) fn session(&mut self, id: SessionId) -> &mut Session {
        self.sessions.get_mut(&id).expect("`handle` has looked")
    }
}

pub(super) fn refusal(code: ErrorCode, message: String) -> ErrorReply {
    ErrorReply {
        code,
        scope: Scope::Request,
        message,
    }
}

pub(super) fn out_of_order(message: &str, first: &str) -> ErrorReply {
    refusal(
        ErrorCode::OutOfOrder,
        format!("{message} is legal after {first}"),
    )
}
