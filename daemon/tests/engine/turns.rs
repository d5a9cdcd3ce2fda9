//! Turns of the device: a long step of one frontend lets others run in between. The device is done
//! when the test says so, so nothing here depends on time.

use super::machine::Machine;
use super::support::*;

const TURN_TOKENS: u32 = 8;

#[test]
fn a_long_prompt_of_one_frontend_does_not_hold_up_anothers_tokens() {
    let mut machine = Machine::new(config(TURN_TOKENS), &[1, 1]);
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
    let mut alone = Machine::new(config(TURN_TOKENS), &[1]);
    alone.step(0, open_and_run(30));
    assert!(alone.complete());
    assert_eq!(
        alone.result(0).map(|r| r.token_ids),
        heavy.map(|r| r.token_ids)
    );
}

#[test]
fn a_frontend_alone_runs_its_step_whole() {
    let mut machine = Machine::new(config(TURN_TOKENS), &[1]);
    machine.step(0, open_and_run(30));
    assert!(machine.complete());
    assert!(machine.result(0).is_some());
    assert!(!machine.complete());
}

#[test]
fn weights_divide_a_turn() {
    // Turns of 8 tokens: 6 for the one, 2 for the other. The first forward is the heavy one's.
    for (weights, first_done) in [([3, 1], 0), ([1, 3], 1)] {
        let mut machine = Machine::new(config(TURN_TOKENS), &weights);
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
