//! Which waiting steps run together, and when.
//!
//! Steps that wait at the same time on the same model and block size share one forward, at most
//! one of each session (its next one needs its tokens). The step that has waited longest leads.
//!
//! A forward is submitted while another runs only if every session of the running one already has
//! its next step here: then nobody is left out of the merge, and the device never waits for the
//! host. Otherwise the steps wait for each other.

use std::time::Instant;

use crate::limits::{MAX_FORWARDS_IN_FLIGHT, MAX_TOKENS_PER_FORWARD};
use crate::models::loaded::ModelKey;
use crate::session::SessionId;

/// One session that could run.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The session.
    pub session: SessionId,
    /// Its model.
    pub model: ModelKey,
    /// When its oldest waiting step arrived, if one waits.
    pub waiting_since: Option<Instant>,
    /// Tokens of that step.
    pub num_tokens: usize,
    /// Whether a step of it is in flight.
    pub is_in_flight: bool,
}

/// The sessions whose oldest waiting step makes up the next forward; none if it is better to wait.
#[must_use]
pub fn next_forward(candidates: &[Candidate], forwards_in_flight: usize) -> Vec<SessionId> {
    let others_are_coming = candidates
        .iter()
        .any(|candidate| candidate.is_in_flight && candidate.waiting_since.is_none());
    if forwards_in_flight >= MAX_FORWARDS_IN_FLIGHT || (forwards_in_flight > 0 && others_are_coming)
    {
        return Vec::new();
    }
    let mut waiting: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| candidate.waiting_since.is_some())
        .collect();
    waiting.sort_by_key(|candidate| candidate.waiting_since);
    let Some(leader) = waiting.first().copied() else {
        return Vec::new();
    };
    let mut room = MAX_TOKENS_PER_FORWARD;
    waiting
        .into_iter()
        .filter(|candidate| candidate.model == leader.model)
        .take_while(|candidate| {
            let fits = candidate.num_tokens <= room;
            room = room.saturating_sub(candidate.num_tokens);
            fits
        })
        .map(|candidate| candidate.session)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `(waiting since, tokens, in flight, model)` of sessions 0, 1, 2, ...
    fn check(sessions: &[(Option<u64>, usize, bool, &str)], in_flight: usize, expected: &[u32]) {
        let start = Instant::now();
        let candidates: Vec<Candidate> = (0..)
            .zip(sessions)
            .map(|(id, (since, num_tokens, is_in_flight, model))| Candidate {
                session: SessionId(id),
                model: ModelKey::for_tests(model),
                waiting_since: since.map(|ms| start + Duration::from_millis(ms)),
                num_tokens: *num_tokens,
                is_in_flight: *is_in_flight,
            })
            .collect();
        let chosen: Vec<u32> = next_forward(&candidates, in_flight)
            .into_iter()
            .map(|session| session.0)
            .collect();
        assert_eq!(chosen, expected, "{sessions:?} with {in_flight} in flight");
    }

    #[test]
    fn steps_that_wait_together_run_together_and_the_oldest_leads() {
        check(&[], 0, &[]);
        check(&[(None, 0, false, "a")], 0, &[]);
        check(&[(Some(0), 1, false, "a")], 0, &[0]);
        check(
            &[(Some(1), 1, false, "a"), (Some(0), 1, false, "a")],
            0,
            &[1, 0],
        );
        check(
            &[(Some(1), 1, false, "a"), (Some(0), 1, false, "b")],
            0,
            &[1],
        );
    }

    #[test]
    fn a_forward_is_built_on_a_running_one_only_if_nobody_is_left_out() {
        check(&[(Some(0), 1, true, "a")], 1, &[0]);
        check(&[(Some(0), 1, true, "a")], 2, &[]);
        check(&[(Some(0), 1, true, "a"), (None, 0, true, "a")], 1, &[]);
        check(&[(Some(0), 1, false, "a"), (None, 0, true, "a")], 0, &[0]);
    }

    #[test]
    fn a_forward_holds_no_more_tokens_than_it_may() {
        let half = MAX_TOKENS_PER_FORWARD / 2 + 1;
        check(
            &[(Some(0), half, false, "a"), (Some(1), half, false, "a")],
            0,
            &[0],
        );
        check(
            &[(Some(0), half, false, "a"), (Some(1), 1, false, "a")],
            0,
            &[0, 1],
        );
    }
}
