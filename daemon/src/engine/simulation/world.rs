//! The daemon and its frontends, one event after another.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use metal_rpc_protocol::decode_reply;
use tokio::runtime::Runtime;

use super::frontend::{Frontend, Stage};
use super::invariants::{self, Waits};
use super::oracle::{MAX_OUTPUTS, MODELS, Oracle, Question};
use super::tally::Tally;
use crate::device::{Device, MemoryBudget};
use crate::dispatch::{DaemonInfo, Dispatcher};
use crate::engine::{Engine, EngineChannels, EngineConfig, EngineHandle, EngineMessage};
use crate::limits::{ENGINE_QUEUE_DEPTH, LEASE_MS, SUBMITTED_DEPTH};
use crate::models::{Checkpoints, ModelRoots};
use crate::reply::{self, Submitted};
use crate::session::registry::Binding;
use crate::socket::{Peer, SendReply, Undelivered};
use crate::watchdog::Pulse;

/// Tokens of a turn: few, so that steps are cut.
pub(super) const TURN_TOKENS: u32 = 8;
/// Events with careless frontends among the others.
const EVENTS: usize = 1200;
/// Events in which the careful ones must finish then.
const MOST_EVENTS: usize = 60_000;
/// After so many sessions a careless frontend is not seen again.
const MAX_SOCKETS: u8 = 4;

/// A fault of ours, which the simulation has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// A block goes back to the pool while its session uses it.
    FreeABlockInUse,
    /// Two forwards are answered in the wrong order.
    SwapReplies,
    /// A row of a step gets a block of another session.
    ReadAnothersBlock,
}

/// Replies on their way, by peer.
#[derive(Clone, Debug, Default)]
struct Wire(Arc<Mutex<HashMap<Peer, VecDeque<Vec<u8>>>>>);

impl SendReply for Wire {
    fn send(&self, peer: Peer, payload: Vec<u8>) -> Result<(), Undelivered> {
        let mut inboxes = self.0.lock().expect("nobody panics while holding it");
        inboxes.entry(peer).or_default().push_back(payload);
        Ok(())
    }

    async fn flushed(&self) {}
}

/// A daemon and its frontends.
pub(super) struct World<'a> {
    rng: Rng,
    oracle: &'a mut Oracle,
    runtime: Runtime,
    dispatcher: Dispatcher<Wire>,
    pub(super) engine: Engine,
    messages: SyncSender<EngineMessage>,
    submitted: Receiver<Submitted>,
    /// What the device has to do.
    pub(super) device: VecDeque<Submitted>,
    wire: Wire,
    pub(super) frontends: Vec<Frontend>,
    /// Until when a frontend does nothing, in milliseconds.
    stopped_until: Vec<u64>,
    now_ms: u64,
    waits: Waits,
    pub(super) tally: Tally,
}

impl<'a> World<'a> {
    /// A daemon and 2 to 6 frontends that have not said hello.
    pub(super) fn new(seed: u64, oracle: &'a mut Oracle) -> Self {
        let mut rng = Rng::with_seed(seed);
        let count = rng.usize(2..=6);
        let frontends = (0..count).map(|index| {
            let model = rng.usize(..MODELS.len());
            Frontend::new(index, &mut rng, model)
        });
        let frontends = frontends.collect();
        Self::with_frontends(seed, rng, oracle, frontends)
    }

    fn with_frontends(
        seed: u64,
        rng: Rng,
        oracle: &'a mut Oracle,
        frontends: Vec<Frontend>,
    ) -> Self {
        Device::Cpu.select().expect("there is a CPU");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without threads");
        let (messages, queue) = sync_channel(ENGINE_QUEUE_DEPTH);
        let (forwards, submitted) = sync_channel(SUBMITTED_DEPTH);
        let channels = EngineChannels {
            queue,
            messages: messages.clone(),
            submitted: forwards,
            pulse: Pulse::default(),
        };
        let memory = MemoryBudget {
            total_bytes: 1 << 30,
            limit_bytes: 1 << 30,
        };
        let config = EngineConfig {
            device: Device::Cpu,
            memory,
            model_keep_alive: Duration::from_secs(60),
            model_roots: ModelRoots::everything(),
            models: Arc::new(Checkpoints),
            turn_tokens: TURN_TOKENS,
        };
        let mut engine = Engine::new(config, channels);
        engine.models = std::mem::take(&mut oracle.models);
        let info = DaemonInfo {
            epoch: seed,
            started: Instant::now(),
            restarts: 0,
            previous_end: None,
            device: "cpu".to_owned(),
        };
        let wire = Wire::default();
        let handle = EngineHandle::without_threads(messages.clone());
        Self {
            rng,
            oracle,
            dispatcher: Dispatcher::new(info, handle, wire.clone(), Binding::Token),
            runtime,
            engine,
            messages,
            submitted,
            device: VecDeque::new(),
            wire,
            stopped_until: vec![0; frontends.len()],
            frontends,
            now_ms: 0,
            waits: Waits::default(),
            tally: Tally::default(),
        }
    }

    /// The tokens that a question gets when nobody else is there.
    pub(super) fn ask_alone(oracle: &'a mut Oracle, question: Question) -> Vec<i32> {
        let frontends = vec![Frontend::alone(question)];
        let mut world = Self::with_frontends(0, Rng::with_seed(0), oracle, frontends);
        while world.frontends[0].scheduler.outputs().len() < MAX_OUTPUTS {
            let frontend = &mut world.frontends[0];
            frontend.act(&mut world.rng, world.now_ms, true);
            while !world.frontends[0].in_transit.is_empty() {
                world.deliver(0);
            }
            world.pump();
            world.complete(None);
            world.pump();
            world.read(0);
        }
        let outputs = world.frontends[0].scheduler.outputs()[..MAX_OUTPUTS].to_vec();
        world.end();
        outputs
    }

    /// Lets everything happen, and checks what must hold after each event.
    pub(super) fn run(mut self, sabotage: Option<Sabotage>) -> Tally {
        for event in 0..MOST_EVENTS {
            if event == EVENTS {
                self.kill_careless();
            }
            if self.frontends.iter().all(Frontend::is_done) {
                return self.end();
            }
            self.event(sabotage);
            invariants::check(&self);
        }
        panic!("careful frontends do not finish: {:?}", self.frontends);
    }

    fn event(&mut self, sabotage: Option<Sabotage>) {
        let index = self.rng.usize(..self.frontends.len());
        match self.rng.u8(..100) {
            0..30 => self.act(index),
            30..55 => self.deliver_some(index),
            55..70 => self.pump(),
            70..85 => {
                self.complete(sabotage);
                self.pump();
            }
            85..95 => self.read(index),
            95..98 => self.advance(),
            _ if self.frontends[index].is_careless => self.harm(index),
            _ => {}
        }
        self.now_ms += self.rng.u64(..10);
        if let Some(sabotage) = sabotage {
            self.sabotage(sabotage);
        }
    }

    fn act(&mut self, index: usize) {
        if self.now_ms >= self.stopped_until[index] {
            self.frontends[index].act(&mut self.rng, self.now_ms, false);
        }
    }

    /// The next message of a frontend arrives; of a careless one, perhaps twice or too early.
    fn deliver_some(&mut self, index: usize) {
        let frontend = &mut self.frontends[index];
        if frontend.in_transit.is_empty() {
            return;
        }
        if frontend.is_careless && self.rng.u8(..12) == 0 {
            if self.rng.bool() {
                let again = frontend.in_transit[0].clone();
                frontend.in_transit.push_front(again);
                self.tally.duplicates += 1;
            } else if frontend.in_transit.len() > 1 {
                frontend.in_transit.swap(0, 1);
                // What comes of it depends on which step overtook which.
                frontend.lose_its_way();
                self.tally.reorders += 1;
            }
        }
        self.deliver(index);
    }

    fn deliver(&mut self, index: usize) {
        let peer = self.peer(index);
        let bytes = self.frontends[index]
            .in_transit
            .pop_front()
            .expect("the caller has looked");
        let _guard = self.runtime.enter();
        self.dispatcher.dispatch(peer, &bytes);
    }

    fn peer(&self, index: usize) -> Peer {
        let num_sockets = self.frontends[index].num_sockets;
        Peer::from(((index as u64) << 8) | u64::from(num_sockets))
    }

    /// The engine works off its queue.
    pub(super) fn pump(&mut self) {
        while let Ok(message) = self.engine.queue.try_recv() {
            self.turn(message);
            while !self.engine.loading.is_empty() {
                let loaded = self.engine.queue.recv();
                self.turn(loaded.expect("the loading thread answers"));
            }
        }
    }

    fn turn(&mut self, message: EngineMessage) {
        let before = invariants::Served::of(&self.engine);
        assert!(self.engine.turn(message).is_continue(), "nobody stops it");
        self.device.extend(self.submitted.try_iter());
        self.waits
            .after_turn(&before, &self.engine, &mut self.tally);
    }

    /// The device has done the oldest forward.
    fn complete(&mut self, sabotage: Option<Sabotage>) {
        if sabotage == Some(Sabotage::SwapReplies) && self.device.len() > 1 {
            self.device.swap(0, 1);
        }
        if let Some(forward) = self.device.pop_front() {
            reply::answer_all(forward, &self.messages);
        }
    }

    /// A frontend reads what has come.
    fn read(&mut self, index: usize) {
        if self.now_ms < self.stopped_until[index] {
            return;
        }
        let peer = self.peer(index);
        loop {
            let mut inboxes = self.wire.0.lock().expect("nobody panics while holding it");
            // A frontend that begins anew in between has another peer.
            let Some(bytes) = inboxes.get_mut(&peer).and_then(VecDeque::pop_front) else {
                return;
            };
            drop(inboxes);
            let envelope = decode_reply(&bytes).expect("the daemon writes what can be read");
            let frontend = &mut self.frontends[index];
            frontend.receive(envelope, self.oracle, self.now_ms);
            if self.peer(index) != peer {
                return;
            }
        }
    }

    /// Time passes, and leases are looked at.
    fn advance(&mut self) {
        let passed = Duration::from_millis(self.rng.u64(..400));
        self.now_ms += self.rng.u64(..400);
        self.runtime.block_on(tokio::time::advance(passed));
        self.expire();
    }

    fn expire(&mut self) {
        let before = self.engine.sessions.len();
        {
            let _guard = self.runtime.enter();
            self.dispatcher.expire();
        }
        self.pump();
        self.tally.expired += before.saturating_sub(self.engine.sessions.len()) as u64;
    }

    /// A careless frontend is killed, or stops for a while and may find its lease run out.
    fn harm(&mut self, index: usize) {
        if self.rng.bool() {
            self.stopped_until[index] = self.now_ms + self.rng.u64(..3000);
            return;
        }
        self.tally.kills += 1;
        self.frontends[index].begin_anew();
        if self.frontends[index].num_sockets > MAX_SOCKETS {
            self.frontends[index].stage = Stage::Gone;
        }
    }

    fn kill_careless(&mut self) {
        for frontend in self.frontends.iter_mut().filter(|f| f.is_careless) {
            frontend.begin_anew();
            frontend.stage = Stage::Gone;
        }
        self.stopped_until.fill(0);
    }

    fn sabotage(&mut self, sabotage: Sabotage) {
        match sabotage {
            Sabotage::SwapReplies => {}
            Sabotage::FreeABlockInUse => invariants::free_a_block_in_use(&mut self.engine),
            Sabotage::ReadAnothersBlock => invariants::read_anothers_block(&mut self.engine),
        }
    }

    /// Everybody has left or is dead: nothing may be left of them.
    fn end(mut self) -> Tally {
        self.runtime
            .block_on(tokio::time::advance(Duration::from_millis(
                u64::from(LEASE_MS) + 1000,
            )));
        self.expire();
        while !self.device.is_empty() {
            self.complete(None);
            self.pump();
        }
        self.read(0);
        invariants::check_empty(&self.engine);
        self.tally.forwards = self.engine.served.forwards;
        self.tally.tokens = self.engine.served.tokens;
        self.oracle.models = std::mem::take(&mut self.engine.models);
        self.tally
    }
}
