//! Checkpoints that Python scripts write once, and again when a script changes.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

/// The folder that `make` fills, whole or absent, by what it is made of.
pub(crate) fn made(name: &str, sources: &[&str], make: impl FnOnce(&Path)) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    sources.hash(&mut hasher);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(format!("{name}-{:016x}", hasher.finish()));
    if folder.is_dir() {
        return folder;
    }
    let unfinished = tempfile::tempdir_in(cache).expect("folder").keep();
    make(&unfinished);
    if fs::rename(&unfinished, &folder).is_err() {
        fs::remove_dir_all(&unfinished).expect("another process has made them");
    }
    folder
}

/// Runs a script of `tests/golden`.
pub(crate) fn python(script: &str, arguments: &[&str], folders: &[&Path]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join(".venv/bin/python");
    let output = Command::new(&python)
        .arg(root.join("daemon/tests/golden").join(script))
        .args(arguments)
        .args(folders)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup", python.display()));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed: {log}");
}
