//! Which steps run in the next forward, how much of each, and when.
//!
//! Steps that are ready on the same model share one forward; [`Turns`] says which model is next,
//! [`shares`] how many tokens of each session's step run now. What does not fit runs in a later
//! forward, so that a long prompt of one frontend holds up a decoding one by a bounded time.
//!
//! A forward is submitted while another runs only if every session that is at work already has its
//! next tokens here: then nobody is left out of the merge, and the device never waits for the host.
//! Otherwise the steps wait for each other, and nobody waits for more than the forward that runs.
//!
//! A forward that fails ends all sessions in it, also those that had no part in the failure. They
//! come back and run the same again: so for a while each runs alone, and whoever is the cause fails
//! alone.

use std::collections::BTreeMap;

use super::shares::{Want, shares};
use super::turns::Turns;
use crate::limits::MAX_FORWARDS_IN_FLIGHT;
use crate::models::loaded::ModelKey;
use crate::session::SessionId;

/// One session that could run.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The session.
    pub session: SessionId,
    /// Its model.
    pub model: ModelKey,
    /// Its share of the device, relative to the others'.
    pub weight: u32,
    /// Tokens of its step that have not run; none if it has no step, or none that may run.
    pub ready_tokens: u32,
    /// Whether it will have tokens soon: a step of it is in flight, or a request of it runs.
    pub is_busy: bool,
}

/// What a forward may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most tokens; not less than the number of sessions.
    pub max_tokens: u32,
    /// If given, one session: this one of those that are ready, counted round and round.
    pub alone: Option<u32>,
}

/// What the next forward runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextForward {
    /// The model.
    pub model: ModelKey,
    /// How many tokens of whose step, at least one each.
    pub shares: Vec<(SessionId, u32)>,
}

/// The next forward; none if it is better to wait.
#[must_use]
pub fn next_forward(
    candidates: &[Candidate],
    turns: &mut Turns,
    forwards_in_flight: usize,
    bounds: Bounds,
) -> Option<NextForward> {
    let others_are_coming = candidates
        .iter()
        .any(|candidate| candidate.is_busy && candidate.ready_tokens == 0);
    if forwards_in_flight >= MAX_FORWARDS_IN_FLIGHT || (forwards_in_flight > 0 && others_are_coming)
    {
        return None;
    }
    let mut weights: BTreeMap<&ModelKey, u32> = BTreeMap::new();
    for candidate in candidates {
        let ready = if candidate.ready_tokens > 0 {
            candidate.weight
        } else {
            0
        };
        *weights.entry(&candidate.model).or_default() += ready;
    }
    let model = turns.next(&weights)?;
    let mut riders: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| candidate.model == model && candidate.ready_tokens > 0)
        .collect();
    if let Some(turn) = bounds.alone {
        riders = vec![riders[turn as usize % riders.len()]];
    }
    let wants: Vec<Want> = riders
        .iter()
        .map(|rider| Want {
            tokens: rider.ready_tokens,
            weight: rider.weight,
        })
        .collect();
    let tokens = shares(bounds.max_tokens, &wants);
    turns.charge(&model, tokens.iter().sum());
    let sessions = riders.into_iter().map(|rider| rider.session);
    Some(NextForward {
        model,
        shares: sessions.zip(tokens).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: u32 = 64;

    const TOGETHER: Bounds = Bounds {
        max_tokens: TURN,
        alone: None,
    };

    /// `(ready tokens, busy, model)` of sessions 0, 1, 2, ...
    fn check(sessions: &[(u32, bool, &str)], in_flight: usize, expected: &[(u32, u32)]) {
        check_within(sessions, (in_flight, TOGETHER), expected);
    }

    fn check_within(
        sessions: &[(u32, bool, &str)],
        (in_flight, bounds): (usize, Bounds),
        expected: &[(u32, u32)],
    ) {
        let candidates: Vec<Candidate> = (0..)
            .zip(sessions)
            .map(|(id, (ready_tokens, is_busy, model))| Candidate {
                session: SessionId(id),
                model: ModelKey::for_tests(model),
                weight: 1,
                ready_tokens: *ready_tokens,
                is_busy: *is_busy,
            })
            .collect();
        let next = next_forward(&candidates, &mut Turns::new(TURN), in_flight, bounds);
        let chosen: Vec<(u32, u32)> = next
            .map(|next| next.shares)
            .unwrap_or_default()
            .into_iter()
            .map(|(session, tokens)| (session.0, tokens))
            .collect();
        assert_eq!(chosen, expected, "{sessions:?} with {in_flight} in flight");
    }

    #[test]
    fn steps_that_are_ready_together_on_a_model_run_together() {
        check(&[], 0, &[]);
        check(&[(0, false, "a")], 0, &[]);
        check(&[(1, false, "a")], 0, &[(0, 1)]);
        check(&[(1, false, "a"), (2, false, "a")], 0, &[(0, 1), (1, 2)]);
        check(&[(1, false, "a"), (2, false, "b")], 0, &[(0, 1)]);
    }

    #[test]
    fn a_forward_is_built_on_a_running_one_only_if_nobody_is_left_out() {
        check(&[(1, true, "a")], 1, &[(0, 1)]);
        check(&[(1, true, "a")], 2, &[]);
        check(&[(1, true, "a"), (0, true, "a")], 1, &[]);
        check(&[(1, false, "a"), (0, true, "a")], 0, &[(0, 1)]);
    }

    #[test]
    fn after_a_failure_each_session_has_its_turn_alone() {
        let sessions = [(1, false, "a"), (0, false, "a"), (2, false, "a")];
        for (turn, expected) in [(0, (0, 1)), (1, (2, 2)), (2, (0, 1))] {
            let bounds = Bounds {
                alone: Some(turn),
                ..TOGETHER
            };
            check_within(&sessions, (0, bounds), &[expected]);
        }
        let alone = Bounds {
            alone: Some(7),
            ..TOGETHER
        };
        check_within(&[(0, false, "a")], (0, alone), &[]);
    }

    #[test]
    fn a_long_step_leaves_room_for_a_short_one() {
        check(
            &[(5000, false, "a"), (1, false, "a")],
            0,
            &[(0, TURN - 1), (1, 1)],
        );
    }
}
