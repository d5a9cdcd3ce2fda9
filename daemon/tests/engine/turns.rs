//! Turns of the device: a long step of one frontend lets others run in between. The device is done
//! when the test says so, so nothing here depends on time.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use metal_rpc_protocol::{Exec, Reply, StepResult, decode_reply};
use metald::engine::{Engine, EngineChannels, EngineMessage, EngineRequest};
use metald::limits::{ENGINE_QUEUE_DEPTH, SUBMITTED_DEPTH};
use metald::outbox::Outbox;
use metald::reply::{self, Submitted};
use metald::session::{SessionId, Ticket};
use metald::watchdog::Pulse;
use tokio::sync::mpsc;

use super::support::*;

const TURN_TOKENS: u32 = 8;
const NUM_LAYERS: u32 = 2;

/// An engine whose turns the test takes.
struct Machine {
    engine: Engine,
    messages: SyncSender<EngineMessage>,
    submitted: Receiver<Submitted>,
    replies: Vec<mpsc::Receiver<Vec<u8>>>,
    seq: u64,
}

impl Machine {
    /// With a session for each weight, ready to run steps.
    fn new(weights: &[u32]) -> Self {
        let (messages, queue) = sync_channel(ENGINE_QUEUE_DEPTH);
        let (forwards, submitted) = sync_channel(SUBMITTED_DEPTH);
        let channels = EngineChannels {
            queue,
            messages: messages.clone(),
            submitted: forwards,
            pulse: Pulse::default(),
        };
        let mut machine = Self {
            engine: Engine::new(config(TURN_TOKENS), channels),
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

    fn open(&mut self, id: u32, weight: u32) {
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

    fn ask(&mut self, id: u32, request: EngineRequest) {
        self.seq += 1;
        let _ = self.engine.turn(EngineMessage::Request {
            session: SessionId(id),
            seq: self.seq,
            received: Instant::now(),
            request,
            ticket: Ticket::default(),
        });
    }

    fn step(&mut self, id: u32, exec: Exec) {
        self.ask(id, EngineRequest::Exec(exec));
    }

    /// The device has done the oldest forward; false if it has nothing to do.
    fn complete(&mut self) -> bool {
        let Ok(forward) = self.submitted.try_recv() else {
            return false;
        };
        reply::answer_all(forward, &self.messages);
        let _ = self.engine.turn(idle());
        true
    }

    fn answer(&mut self, id: u32) -> Option<Reply> {
        let bytes = self.replies[id as usize].try_recv().ok()?;
        match decode_reply(&bytes).expect("it can be read").reply {
            Reply::Error(error) => panic!("refused: {error:?}"),
            Reply::LoadProgress(_) => self.answer(id),
            reply => Some(reply),
        }
    }

    fn result(&mut self, id: u32) -> Option<StepResult> {
        self.answer(id).map(step_result)
    }
}

/// A message that changes nothing, so that the engine looks at what else has arrived.
fn idle() -> EngineMessage {
    EngineMessage::Completed {
        sessions: Vec::new(),
        was_forward: false,
    }
}

fn open_and_run(len: usize) -> Exec {
    let tokens = prompt(3, len);
    Exec {
        new_requests: vec![open_request(0, &tokens, 1, greedy())],
        ..exec(&[(0, 0, u32::try_from(len).expect("short"))])
    }
}

#[test]
fn a_long_prompt_of_one_frontend_does_not_hold_up_anothers_tokens() {
    let mut machine = Machine::new(&[1, 1]);
    machine.step(1, open_and_run(5));
    while machine.result(1).is_none() {
        assert!(machine.complete());
    }
    // 30 tokens are four turns.
    machine.step(0, open_and_run(30));
    let mut num_light = 0;
    let mut computed = 5;
    let mut heavy = None;
    machine.step(1, exec(&[(0, computed, 1)]));
    while heavy.is_none() {
        assert!(machine.complete(), "there is something to do");
        if machine.result(1).is_some() {
            num_light += 1;
            computed += 1;
            machine.step(1, exec(&[(0, computed, 1)]));
        }
        heavy = machine.result(0);
    }
    assert!(num_light >= 2, "{num_light} tokens while the prompt ran");

    // The prompt's token is the one that it gets alone.
    let mut alone = Machine::new(&[1]);
    alone.step(0, open_and_run(30));
    assert!(alone.complete());
    assert_eq!(
        alone.result(0).map(|r| r.token_ids),
        heavy.map(|r| r.token_ids)
    );
}

#[test]
fn a_frontend_alone_runs_its_step_whole() {
    let mut machine = Machine::new(&[1]);
    machine.step(0, open_and_run(30));
    assert!(machine.complete());
    assert!(machine.result(0).is_some());
    assert!(!machine.complete());
}

#[test]
fn weights_divide_a_turn() {
    // Turns of 8 tokens: 6 for the one, 2 for the other. The first forward is the heavy one's.
    for (weights, first_done) in [([3, 1], 0), ([1, 3], 1)] {
        let mut machine = Machine::new(&weights);
        machine.step(0, open_and_run(30));
        machine.step(1, open_and_run(30));
        let done = loop {
            assert!(machine.complete(), "there is something to do");
            if let Some(id) = (0..2).find(|id| machine.result(*id).is_some()) {
                break id;
            }
        };
        assert_eq!(done, first_done, "{weights:?}");
    }
}
