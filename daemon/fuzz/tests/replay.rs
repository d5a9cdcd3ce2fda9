//! The corpus, and seeded inputs beside it.
//!
//! `METAL_RPC_FUZZ_MESSAGES` says how many steps at least, `METAL_RPC_FUZZ_SEED` which.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::path::Path;

use fastrand::Rng;
use metal_rpc_protocol_fuzz::{corpus, resident_bytes};
use metald_fuzz::check_validator;

const STEPS: u64 = 20_000;
const SEED: u64 = 0x5eed;
/// Steps between two lines of progress.
const REPORT_EVERY: u64 = 100_000;
/// Memory that an allocator may keep.
const MOST_GROWTH_BYTES: u64 = 16 << 20;
/// Longest input.
const MAX_BYTES: usize = 400;

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn the_corpus_is_accepted_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/validate");
    let mut reasons = BTreeMap::new();
    for bytes in corpus(&folder) {
        for error in check_validator(&bytes).refused {
            reasons.insert(format!("{:?}", discriminant(&error)), ());
        }
    }
    assert!(
        reasons.len() >= 10,
        "the corpus shows {} kinds of refusals",
        reasons.len()
    );
}

#[test]
#[expect(clippy::print_stderr, reason = "the progress of a long run")]
fn seeded_steps_never_break_the_wall() {
    let count = from_environment("METAL_RPC_FUZZ_MESSAGES", STEPS);
    let seed = from_environment("METAL_RPC_FUZZ_SEED", SEED);
    let mut rng = Rng::with_seed(seed);
    let (mut accepted, mut refused, mut rows) = (0_u64, 0_u64, 0_usize);
    let (mut settled_bytes, mut reported) = (0, 0);
    for number in 0_u64.. {
        let mut bytes = vec![0; rng.usize(..MAX_BYTES)];
        rng.fill(&mut bytes);
        let checked = std::panic::catch_unwind(|| check_validator(&bytes));
        let Ok(outcome) = checked else {
            panic!("input {number} of seed {seed:#x}: {bytes:02x?}");
        };
        accepted += outcome.accepted.len() as u64;
        rows += outcome.accepted.iter().sum::<usize>();
        refused += outcome.refused.len() as u64;
        let steps = accepted + refused;
        if settled_bytes == 0 && steps > count / 10 {
            settled_bytes = resident_bytes();
        }
        if steps / REPORT_EVERY > reported {
            reported = steps / REPORT_EVERY;
            let resident_mib = resident_bytes() >> 20;
            eprintln!("{steps}/{count} steps, {accepted} accepted, {resident_mib} MiB");
        }
        if steps >= count {
            break;
        }
    }
    let grown = resident_bytes().saturating_sub(settled_bytes);
    assert!(
        grown < MOST_GROWTH_BYTES,
        "grew by {grown} bytes, seed {seed:#x}"
    );
    // The canary: steps that are all refused, or all empty, would test nothing.
    assert!(
        accepted > count / 10,
        "only {accepted} of {count} were accepted"
    );
    assert!(
        refused > count / 100,
        "only {refused} of {count} were refused"
    );
    assert!(
        rows as u64 > accepted / 2,
        "{rows} rows in {accepted} steps"
    );
}
