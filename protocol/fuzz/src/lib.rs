//! What the decoder must stand.
//!
//! # Layout
//! - [`check_decoder`]: what holds for any bytes; run by libFuzzer (`fuzz_targets/`) and by tests
//! - [`Mutator`]: seeded changes of messages, for toolchains without coverage
//! - [`corpus`]: the inputs that libFuzzer has found to reach something new
//! - [`resident_bytes`]: whether memory grows

mod mutator;

use std::fs;
use std::path::Path;
use std::process::Command;

use metal_rpc_protocol::{decode_reply, decode_request, encode_reply, encode_request};

pub use mutator::Mutator;

/// The longest text of an error: it must not repeat what was sent.
const MAX_ERROR_BYTES: usize = 300;

/// Decodes bytes both ways. What is read must survive being written and read again.
///
/// # Panics
/// If the decoder breaks a promise.
pub fn check_decoder(bytes: &[u8]) {
    match decode_request(bytes) {
        Ok(envelope) => {
            // Compared as bytes: NaN differs from itself.
            let written = encode_request(&envelope);
            let again = decode_request(&written).expect("what was written can be read");
            assert_eq!(encode_request(&again), written, "read and written again");
        }
        Err(error) => check_error(&error.to_string()),
    }
    match decode_reply(bytes) {
        Ok(envelope) => {
            let written = encode_reply(&envelope);
            let again = decode_reply(&written).expect("what was written can be read");
            assert_eq!(encode_reply(&again), written, "read and written again");
        }
        Err(error) => check_error(&error.to_string()),
    }
}

fn check_error(error: &str) {
    assert!(
        error.len() <= MAX_ERROR_BYTES,
        "an error of {} bytes",
        error.len()
    );
}

/// The files of a folder, in the order of their names.
///
/// # Panics
/// If the folder cannot be read, or is empty.
#[must_use]
pub fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).expect("the corpus is there");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "json"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let read = |path| fs::read(path).expect("a file of the corpus can be read");
    paths.iter().map(read).collect()
}

/// Resident memory of this process.
///
/// # Panics
/// If `ps` does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    let pid = std::process::id().to_string();
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid]).output();
    let shown = String::from_utf8(output.expect("ps runs").stdout).expect("digits");
    shown.trim().parse::<u64>().expect("kilobytes") << 10
}
