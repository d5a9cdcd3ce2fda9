//! Many scripted frontends against the real dispatcher, sessions, batches, engine and model; only
//! ZeroMQ, the clock and the moment at which the device is done are the simulation's.
//!
//! One seed decides everything: what frontends ask, which of them are careless, killed or silent,
//! in which order messages arrive, when a forward is done. Invariants are checked after each event.
//!
//! # Layout
//! - [`world`]: the daemon, and one event after another
//! - [`frontend`]: a frontend, from its hello to its goodbye; [`scheduler`]: the steps that it sends
//! - [`oracle`]: which tokens a prompt must get
//! - [`invariants`]: what must hold after each event; [`tally`]: what happened
//!
//! `METAL_RPC_SIM_SEEDS` says how many seeds, `METAL_RPC_SIM_SEED` the first of them.

mod frontend;
mod invariants;
mod oracle;
mod scheduler;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use oracle::Oracle;
use tally::Tally;
use world::{Sabotage, World};

/// Seeds of a normal test run.
const SEEDS: u64 = 60;
/// Seeds between two lines of progress.
const REPORT_EVERY: u64 = 250;

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

#[test]
#[expect(clippy::print_stderr, reason = "the progress of a long run")]
fn whatever_frontends_do_the_invariants_hold() {
    let first = from_environment("METAL_RPC_SIM_SEED", 1);
    let count = from_environment("METAL_RPC_SIM_SEEDS", SEEDS);
    let mut oracle = Oracle::learn();
    let mut total = Tally::default();
    for seed in first..first + count {
        let run = catch_unwind(AssertUnwindSafe(|| World::new(seed, &mut oracle).run(None)));
        match run {
            Ok(tally) => total.add(&tally),
            Err(_) => panic!("seed {seed} failed: METAL_RPC_SIM_SEED={seed} METAL_RPC_SIM_SEEDS=1"),
        }
        if (seed + 1 - first).is_multiple_of(REPORT_EVERY) {
            eprintln!("{}/{count} seeds, {total}", seed + 1 - first);
        }
    }
    eprintln!("{count} seeds from {first}: {total}");
    // The canary of the whole: a world in which nothing happens would hold anything.
    if count >= SEEDS {
        total.assert_that_everything_happened();
    }
}

/// Runs seeds with a fault of ours in them, until one of them finds it.
fn sabotaged(sabotage: Sabotage) {
    let mut oracle = Oracle::learn();
    for seed in 1..=SEEDS {
        World::new(seed, &mut oracle).run(Some(sabotage));
    }
}

#[test]
#[should_panic(expected = "a block has two owners")]
fn a_block_that_is_given_to_two_is_noticed() {
    sabotaged(Sabotage::FreeABlockInUse);
}

#[test]
#[should_panic(expected = "replies come in the order of the steps")]
fn replies_out_of_order_are_noticed() {
    sabotaged(Sabotage::SwapReplies);
}

#[test]
#[should_panic(expected = "of its prompt alone")]
fn a_block_of_somebody_else_is_noticed() {
    sabotaged(Sabotage::ReadAnothersBlock);
}
