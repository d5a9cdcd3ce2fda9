//! A tiny model in every format of quantised weights, against the same weights in float32.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use metald::models::Dtype;

use crate::support::{Chunk, Runner, load};

const SCRIPT: &str = include_str!("../golden/make_formats.py");

/// The checkpoints of `make_formats.py`, made by the first call after it was changed.
fn folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let entries = fs::read_dir(make()).expect("folder");
        let mut folders: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
        folders.sort();
        folders
    })
}

fn make() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    SCRIPT.hash(&mut hasher);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(format!("formats-{:016x}", hasher.finish()));
    if folder.is_dir() {
        return folder;
    }
    // Whole or absent, whoever else makes it meanwhile.
    let unfinished = tempfile::tempdir_in(cache).expect("folder").keep();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("daemon/tests/golden/make_formats.py"))
        .arg(&unfinished)
        .output()
        .expect("scripts/setup has made .venv");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "make_formats.py failed: {log}");
    if fs::rename(&unfinished, &folder).is_err() {
        fs::remove_dir_all(&unfinished).expect("another process has made them");
    }
    folder
}

/// Logits of 24 tokens.
fn logits(folder: &Path) -> Vec<Vec<f32>> {
    let token_ids: Vec<i32> = (0..24).map(|index| index * 29 % 64).collect();
    let chunk = Chunk {
        token_ids: &token_ids,
        num_computed: 0,
        blocks: &[3, 1, 6, 2, 5, 4],
    };
    let model = load(folder, Dtype::Float32)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    Runner::new(model, 7).run(&[chunk])
}

/// The largest difference, in units of the largest expected value.
fn relative_error(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = std::iter::zip(actual.iter().flatten(), expected.iter().flatten());
    let error = pairs.map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
    let largest = expected.iter().flatten().map(|value| value.abs());
    error / largest.fold(0.0, f32::max)
}

/// What holding a format costs: nothing but the order of f32 roundings, except where scales are
/// rounded to 11 bits or weights to 8.
fn tolerance(name: &str) -> f32 {
    if name.starts_with("awq") || name.starts_with("gptq") {
        return 2e-3;
    }
    1e-5
}

#[test]
fn every_format_gives_the_logits_of_its_weights() {
    let folders = folders();
    assert!(folders.len() > 10);
    for folder in folders {
        let name = folder.file_name().expect("name").to_str().expect("text");
        let error = relative_error(&logits(folder), &logits(&folder.join("plain")));
        assert!(error < tolerance(name), "{name}: error {error}");
    }
}

#[test]
fn quantised_weights_take_less_memory() {
    let folder = |name: &str| {
        let mut folders = folders().iter();
        folders.find(|folder| folder.ends_with(name)).expect("made")
    };
    let plain = load(&folder("mlx-4bit").join("plain"), Dtype::Bfloat16).expect("load");
    let quantised = load(folder("mlx-4bit"), Dtype::Bfloat16).expect("load");
    // 4.5 bits instead of 16.
    assert!(quantised.weights_bytes() * 10 < plain.weights_bytes() * 3);
}
