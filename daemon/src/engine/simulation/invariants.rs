//! What must hold after each event, and faults that show whether it is noticed.

use std::collections::{BTreeMap, BTreeSet};

use super::tally::Tally;
use super::world::{TURN_TOKENS, World};
use crate::batch::turns::MIN_CHARGE_TOKENS;
use crate::engine::Engine;
use crate::kv_cache::SessionBlockId;
use crate::limits::{MAX_FORWARDS_IN_FLIGHT, MAX_STEPS_UNANSWERED, MAX_STEPS_WAITING};
use crate::session::{BegunStep, Session, SessionId};

/// Panics if something does not hold.
pub(super) fn check(world: &World<'_>) {
    let engine = &world.engine;
    check_blocks(engine);
    check_bounds(engine);
    let forwards = world.device.iter().filter(|work| work.is_forward).count();
    assert!(
        forwards <= MAX_FORWARDS_IN_FLIGHT,
        "{forwards} forwards in flight"
    );
}

/// No block has two owners, and the pool knows all that are owned.
fn check_blocks(engine: &Engine) {
    for (key, loaded) in &engine.models {
        let sessions = || {
            let is_meant = |id: &&SessionId| engine.sessions[id].model.as_ref() == Some(key);
            engine.sessions.keys().filter(is_meant)
        };
        assert_eq!(
            loaded.num_sessions as usize,
            sessions().count(),
            "sessions of a model"
        );
        let Some(cache) = &loaded.cache else {
            continue;
        };
        let caches = sessions().filter_map(|id| engine.sessions[id].cache.as_ref());
        let owned: Vec<_> = caches.flat_map(|cache| cache.block_map.owned()).collect();
        let distinct: BTreeSet<_> = owned.iter().collect();
        assert_eq!(distinct.len(), owned.len(), "a block has two owners");
        assert_eq!(
            owned.len(),
            cache.pool.num_granted(),
            "a block has no owner"
        );
    }
}

fn check_bounds(engine: &Engine) {
    let mut reserved_bytes = 0;
    for session in engine.sessions.values() {
        assert!(
            session.waiting.len() <= MAX_STEPS_WAITING,
            "steps that wait"
        );
        assert!(
            session.unanswered.len() <= MAX_STEPS_UNANSWERED,
            "steps without an answer"
        );
        reserved_bytes += session.reserved_bytes;
    }
    assert!(
        reserved_bytes <= engine.config.memory.limit_bytes,
        "more was promised than there is"
    );
    let is_open = |id: &SessionId| engine.sessions.contains_key(id);
    assert!(
        engine.held.keys().all(is_open),
        "a step of no session is held"
    );
}

/// Panics if a session has left something behind.
pub(super) fn check_empty(engine: &Engine) {
    assert!(engine.sessions.is_empty(), "sessions");
    assert!(engine.held.is_empty(), "held steps");
    assert!(engine.loading.is_empty(), "loads");
    assert_eq!(engine.num_in_flight, 0, "forwards in flight");
    for loaded in engine.models.values() {
        assert_eq!(loaded.num_sessions, 0, "sessions of a model");
        assert!(loaded.cache.is_none(), "a cache of no session");
    }
}

/// What was done until now.
#[derive(Debug)]
pub(super) struct Served {
    forwards: u64,
    tokens: BTreeMap<SessionId, u64>,
}

impl Served {
    pub(super) fn of(engine: &Engine) -> Self {
        let tokens = engine
            .sessions
            .iter()
            .map(|(id, session)| (*id, session.num_tokens));
        Self {
            forwards: engine.served.forwards,
            tokens: tokens.collect(),
        }
    }
}

/// For how many forwards each session has waited with a step that could run.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<SessionId, u64>);

impl Waits {
    /// Checks that a turn was no longer than it may be, and that nobody waits for ever.
    pub(super) fn after_turn(&mut self, before: &Served, engine: &Engine, tally: &mut Tally) {
        let forwards = engine.served.forwards - before.forwards;
        if forwards == 0 {
            return;
        }
        let mut num_served = 0;
        let mut tokens = 0;
        self.0.retain(|id, _| engine.sessions.contains_key(id));
        for (id, session) in &engine.sessions {
            let served = session.num_tokens - before.tokens.get(id).copied().unwrap_or(0);
            tokens += served;
            num_served += u64::from(served > 0);
            let wait = self.0.entry(*id).or_default();
            *wait = match &session.begun {
                Some(_) if served == 0 => *wait + forwards,
                _ => 0,
            };
            let is_cut = |begun: &BegunStep| begun.submitted.is_some();
            tally.cut += u64::from(session.begun.as_ref().is_some_and(is_cut));
            let most = most_forwards_of_others(engine, session.weight);
            assert!(
                *wait <= most,
                "session {} waits for {wait} forwards, at most {most}",
                id.0
            );
        }
        tally.merged += u64::from(num_served > forwards);
        let num_sharing = engine
            .sessions
            .values()
            .filter(|s| s.cache.is_some())
            .count();
        // Sessions that were closed in this turn may have shared it.
        if num_sharing > 1 {
            let most = forwards * u64::from(TURN_TOKENS);
            assert!(tokens <= most, "{tokens} tokens in {forwards} turns");
        }
    }
}

/// How many forwards may run before a session with this weight has its turn: its model first pays
/// back what it has overdrawn, and each round lets the others run what they are given.
fn most_forwards_of_others(engine: &Engine, weight: u32) -> u64 {
    let charge = u64::from(MIN_CHARGE_TOKENS.max(TURN_TOKENS));
    let round = u64::from(TURN_TOKENS);
    let all_weights: u64 = engine
        .sessions
        .values()
        .map(|session| u64::from(session.weight))
        .sum();
    let rounds = charge.div_ceil(round * u64::from(weight)) + 1;
    let num_models = engine.models.len() as u64;
    rounds * (round * all_weights).div_ceil(charge) + rounds * num_models + 2
}

/// A fault: the pool gets a block back that its session goes on using, and another one takes it.
pub(super) fn free_a_block_in_use(engine: &mut Engine) {
    for (id, session) in &engine.sessions {
        let (Some(key), Some(cache)) = (&session.model, &session.cache) else {
            continue;
        };
        let is_other = |(other, session): &(&SessionId, &Session)| {
            *other != id && session.model.as_ref() == Some(key) && session.cache.is_some()
        };
        let Some((other, _)) = engine.sessions.iter().find(is_other) else {
            continue;
        };
        let (Some(block), other) = (cache.block_map.owned().next(), *other) else {
            continue;
        };
        let model = engine
            .models
            .get_mut(key)
            .expect("a session keeps its model");
        let pool = &mut model.cache.as_mut().expect("it was created").pool;
        pool.free(block);
        let other = engine
            .sessions
            .get_mut(&other)
            .and_then(|session| session.cache.as_mut());
        let map = &mut other.expect("it has a cache").block_map;
        let is_unused = |block: &SessionBlockId| map.translate(*block).is_err();
        let unused = (1..map.num_granted()).map(SessionBlockId).find(is_unused);
        let unused = unused.expect("frontends use a part of theirs");
        map.translate_for_write(unused, pool)
            .expect("one was freed");
        return;
    }
}

/// A fault: a step of one session reads and writes a block of another one.
pub(super) fn read_anothers_block(engine: &mut Engine) {
    let ids: Vec<SessionId> = engine.sessions.keys().copied().collect();
    for id in &ids {
        let other = ids.iter().find_map(|other| {
            let (session, other) = (&engine.sessions[id], &engine.sessions[other]);
            let is_another = session.model == other.model && !std::ptr::eq(session, other);
            let block = other.cache.as_ref()?.block_map.owned().next()?;
            is_another.then_some(block)
        });
        let session = engine.sessions.get_mut(id).expect("it is one of them");
        if let (Some(block), Some(begun)) = (other, &mut session.begun) {
            begun.step.block_tables[0][0] = block.index().cast_signed();
        }
    }
}
