//! The corpus, and seeded messages beside it: no panic, no growth.
//!
//! `METAL_RPC_FUZZ_MESSAGES` says how many messages, `METAL_RPC_FUZZ_SEED` which.

use std::path::{Path, PathBuf};

use metal_rpc_protocol::decode_request;
use metal_rpc_protocol_fuzz::{Mutator, check_decoder, corpus, resident_bytes};

const MESSAGES: u64 = 200_000;
const SEED: u64 = 0x5eed;
/// Messages between two lines of progress.
const REPORT_EVERY: u64 = 100_000;
/// Memory that an allocator may keep once it has seen the largest messages.
const MOST_GROWTH_BYTES: u64 = 16 << 20;

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The goldens of both directions, and as many of what libFuzzer has found.
fn examples() -> Vec<Vec<u8>> {
    let goldens = corpus(&folder("../golden"));
    let mut examples = corpus(&folder("corpus/decode"));
    let goldens = goldens.iter().cycle().take(examples.len()).cloned();
    examples.extend(goldens.collect::<Vec<_>>());
    examples
}

#[test]
fn the_corpus_is_refused_or_read() {
    for bytes in examples() {
        check_decoder(&bytes);
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "the progress of a long run")]
fn seeded_messages_are_refused_or_read_and_take_no_memory() {
    let count = from_environment("METAL_RPC_FUZZ_MESSAGES", MESSAGES);
    let seed = from_environment("METAL_RPC_FUZZ_SEED", SEED);
    let mut mutator = Mutator::new(seed, examples());
    let (mut num_read, mut settled_bytes) = (0, 0);
    for number in 1..=count {
        let bytes = mutator.next_message();
        let checked = std::panic::catch_unwind(|| check_decoder(&bytes));
        assert!(
            checked.is_ok(),
            "message {number} of seed {seed:#x}: {bytes:02x?}"
        );
        num_read += u64::from(decode_request(&bytes).is_ok());
        if number == count / 10 {
            settled_bytes = resident_bytes();
        }
        if number % REPORT_EVERY == 0 {
            let resident_mib = resident_bytes() >> 20;
            eprintln!("{number}/{count} messages, {num_read} of them legal, {resident_mib} MiB");
        }
    }
    let grown = resident_bytes().saturating_sub(settled_bytes);
    assert!(
        grown < MOST_GROWTH_BYTES,
        "grew by {grown} bytes, seed {seed:#x}"
    );
    // The canary: a mutator that only makes garbage, or none, would test nothing.
    assert!(
        num_read > count / 100,
        "only {num_read} of {count} were legal"
    );
    assert!(num_read < count, "nothing was refused");
}
