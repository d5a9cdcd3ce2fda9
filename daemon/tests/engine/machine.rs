//! An engine on the test's own thread: it takes a turn when the test says so, and so does the device.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use metal_rpc_protocol::{ErrorReply, Exec, Reply, StepResult, decode_reply};
use metald::engine::{Engine, EngineChannels, EngineConfig, EngineMessage, EngineRequest};
use metald::limits::{ENGINE_QUEUE_DEPTH, SUBMITTED_DEPTH};
use metald::outbox::Outbox;
use metald::reply::{self, Submitted};
use metald::session::{SessionId, Ticket};
use metald::watchdog::Pulse;
use tokio::sync::mpsc;

use super::support::*;

const NUM_LAYERS: u32 = 2;

/// An engine whose turns the test takes.
pub(super) struct Machine {
    engine: Engine,
    messages: SyncSender<EngineMessage>,
    submitted: Receiver<Submitted>,
    replies: Vec<mpsc::Receiver<Vec<u8>>>,
    seq: u64,
}

impl Machine {
    /// With a session for each weight, ready to run steps.
    pub(super) fn new(config: EngineConfig, weights: &[u32]) -> Self {
        let (messages, queue) = sync_channel(ENGINE_QUEUE_DEPTH);
        let (forwards, submitted) = sync_channel(SUBMITTED_DEPTH);
        let channels = EngineChannels {
            queue,
            messages: messages.clone(),
            submitted: forwards,
            pulse: Pulse::default(),
        };
        let mut machine = Self {
            engine: Engine::new(config, channels),
            messages,
            submitted,
            replies: Vec::new(),
            seq: 0,
        };
        for (id, weight) in (0..).zip(weights) {
            machine.open(id, *weight);
        }
        machine
    }

    pub(super) fn open(&mut self, id: u32, weight: u32) {
        let (outbox, replies) = Outbox::new();
        self.replies.push(replies);
        let _ = self.engine.turn(EngineMessage::Open {
            session: SessionId(id),
            frontend: format!("frontend {id}"),
            weight,
            outbox,
        });
        for request in [
            load_model("llama-tied"),
            reserve(0.9),
            create_cache(NUM_LAYERS),
        ] {
            self.ask(id, request);
            while self.answer(id).is_none() {
                // The model loads on a thread of its own, and tells the engine.
                let _ = self.engine.turn(idle());
            }
        }
    }

    fn request(&mut self, id: u32, request: EngineRequest) -> EngineMessage {
        self.seq += 1;
        EngineMessage::Request {
            session: SessionId(id),
            seq: self.seq,
            received: Instant::now(),
            request,
            ticket: Ticket::default(),
        }
    }

    pub(super) fn ask(&mut self, id: u32, request: EngineRequest) {
        let message = self.request(id, request);
        let _ = self.engine.turn(message);
    }

    pub(super) fn step(&mut self, id: u32, exec: Exec) {
        self.ask(id, EngineRequest::Exec(exec));
    }

    /// Steps that arrive at the same time.
    pub(super) fn steps(&mut self, steps: Vec<(u32, Exec)>) {
        for (id, exec) in steps {
            let message = self.request(id, EngineRequest::Exec(exec));
            self.messages.send(message).expect("there is room");
        }
        let _ = self.engine.turn(idle());
    }

    /// The device has done the oldest forward; false if it has nothing to do.
    pub(super) fn complete(&mut self) -> bool {
        let Ok(forward) = self.submitted.try_recv() else {
            return false;
        };
        reply::answer_all(forward, &self.messages);
        let _ = self.engine.turn(idle());
        true
    }

    /// What a session is answered, or refused; `None` if there is nothing yet.
    pub(super) fn reply(&mut self, id: u32) -> Option<Result<Reply, ErrorReply>> {
        let bytes = self.replies[id as usize].try_recv().ok()?;
        match decode_reply(&bytes).expect("it can be read").reply {
            Reply::Error(error) => Some(Err(error)),
            Reply::LoadProgress(_) => self.reply(id),
            reply => Some(Ok(reply)),
        }
    }

    fn answer(&mut self, id: u32) -> Option<Reply> {
        self.reply(id).map(|reply| reply.expect("it is right"))
    }

    pub(super) fn result(&mut self, id: u32) -> Option<StepResult> {
        self.answer(id).map(step_result)
    }
}

/// A message that changes nothing, so that the engine looks at what else has arrived.
fn idle() -> EngineMessage {
    EngineMessage::Completed {
        sessions: Vec::new(),
        was_forward: false,
        has_failed: false,
    }
}
