//! GGUF files: every architecture of llama.cpp that we read, and what a header may not say.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use metal_rpc_protocol::ErrorCode;
use metald::models::Dtype;

use crate::{
    checkpoint::{Copy, TIED},
    families,
    header::Header,
    made::{made, python},
    support::{Chunk, Runner, load},
};

/// The checkpoints of the families that llama.cpp knows, as GGUF.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = families::folder("");
        let name = source.to_str().expect("text");
        let sources = [name, include_str!("../golden/make_gguf.py")];
        made("gguf-families", &sources, |folder| {
            python("make_gguf.py", &["families"], &[&source, folder]);
        })
    })
}

#[test]
fn files_of_every_architecture_are_the_checkpoint_that_they_were_made_of() {
    let mut num_rows = 0;
    for row in families::rows() {
        let folder = folder().join(&row.name);
        if !folder.is_dir() {
            continue;
        }
        num_rows += 1;
        let token_ids = families::Golden::read(&row.name).token_ids;
        let blocks: Vec<i32> = (1..=24).collect();
        let run = |model| {
            let chunk = Chunk {
                token_ids: &token_ids,
                num_computed: 0,
                blocks: &blocks,
            };
            Runner::new(model, 25).run(&[chunk])
        };
        let expected = run(row.load(Dtype::Float32));
        let actual = run(row.load_from(&folder, Dtype::Float32));
        // Equal, but for Gemma's norms: one was added and taken away again.
        let tolerance = match row.name.starts_with("gemma") {
            true => 1e-4,
            false => 0.0,
        };
        let pairs = std::iter::zip(actual.iter().flatten(), expected.iter().flatten());
        let error = pairs.map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
        assert!(error <= tolerance, "{}: error {error}", row.name);
    }
    assert!(num_rows > 20, "{num_rows} rows");
}

/// Writes a file into a folder and says why it cannot be loaded.
#[track_caller]
fn refused(copy: &Copy, bytes: &[u8], code: ErrorCode, parts: &[&str]) {
    fs::write(copy.path("model.gguf"), bytes).expect("write");
    let error = load(copy.folder.path(), Dtype::Float32).expect_err("must be refused");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert_eq!(error.code(), code, "{message}");
}

/// A case: what is wrong with a header.
type Case = (fn(&mut Header), ErrorCode, &'static [&'static str]);

#[test]
fn headers_that_make_no_sense_are_refused() {
    use ErrorCode::{InvalidModel, UnsupportedModel};
    const Q4_0: u32 = 2;
    const NAME: &str = "blk.0.attn_q.weight";
    let cases: [Case; 11] = [
        (
            |header| header.tensor(NAME, 16, &[256, 2], 0),
            UnsupportedModel,
            &[
                "model.gguf",
                NAME,
                "IQ2_XXS",
                "supported: F32, F16, BF16, Q4_0",
                "Q6_K",
            ],
        ),
        (
            |header| header.tensor(NAME, 999, &[256, 2], 0),
            UnsupportedModel,
            &[NAME, "999", "supported: F32"],
        ),
        (
            |header| header.tensor(NAME, Q4_0, &[33, 2], 0),
            InvalidModel,
            &[NAME, "rows of whole blocks", "[2, 33]"],
        ),
        (
            |header| header.tensor(NAME, 0, &[1 << 30, 1 << 30], 0),
            InvalidModel,
            &[NAME, "fewer than 2^40 weights"],
        ),
        (
            |header| header.tensor(NAME, 0, &[u64::MAX, 2], 0),
            InvalidModel,
            &[NAME, "fewer than 2^40 weights"],
        ),
        (
            |header| header.tensor(NAME, 0, &[1, 1, 1, 1, 1], 0),
            InvalidModel,
            &[NAME, "1 to 4 dimensions"],
        ),
        (
            |header| header.tensor(NAME, 0, &[8, 8], 0),
            InvalidModel,
            &[NAME, "must lie in the file", "download it again"],
        ),
        (
            |header| header.tensor(NAME, 0, &[8, 8], u64::MAX - 40),
            InvalidModel,
            &[NAME, "must lie in the file"],
        ),
        (
            |header| header.tensor(NAME, 0, &[0, 12], 0),
            InvalidModel,
            &["rows for 4 heads of even size, but has 12"],
        ),
        (
            |header| header.number("general.alignment", 48),
            InvalidModel,
            &["general.alignment must be a power of two", "48"],
        ),
        (
            |header| header.values[0][28 + 4 + 8] = b'x',
            UnsupportedModel,
            &["general.architecture", "xlama", "supported: llama, qwen2"],
        ),
    ];
    let copy = Copy::of(TIED);
    copy.write_config();
    for (change, code, parts) in cases {
        let mut header = Header::llama(4);
        change(&mut header);
        // Room for padding, and for nothing else.
        let bytes = [header.bytes(), vec![0; 64]].concat();
        refused(&copy, &bytes, code, parts);
    }
}

#[test]
fn damaged_files_are_refused() {
    use ErrorCode::InvalidModel;
    let copy = Copy::of(TIED);
    copy.write_config();
    let good = Header::llama(4).bytes();
    for len in 0..good.len() {
        refused(&copy, &good[..len], InvalidModel, &["model.gguf"]);
    }
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        (changed(0, b'X'), "it must begin with \"GGUF\""),
        (
            changed(4, 1),
            "its version must be 2 or 3, little-endian, but is 1",
        ),
        (changed(15, 1), "entries in its list of tensors, more than"),
        (changed(23, 1), "entries in its metadata, more than"),
        // The type of the first value.
        (changed(24 + 28, 13), "one is of type 13"),
        (changed(24 + 28, 9), "more than it has bytes for"),
        (changed(24 + 8, 0xff), "a name must be UTF-8"),
        (
            changed(24 + 8, b'G'),
            "it must have the key general.architecture",
        ),
    ];
    for (bytes, part) in cases {
        refused(&copy, &bytes, InvalidModel, &[part]);
    }
    let mut header = Header::llama(4);
    header.values.pop();
    let key = "it must have the key llama.attention.head_count";
    refused(&copy, &header.bytes(), InvalidModel, &[key]);
}

#[test]
fn a_folder_with_several_files_is_refused_unless_they_are_parts() {
    let copy = Copy::of(TIED);
    copy.write_config();
    fs::write(copy.path("other.gguf"), "").expect("write");
    let parts = ["must have one GGUF file", "model.gguf, other.gguf"];
    refused(&copy, b"", ErrorCode::InvalidModel, &parts);
}

#[test]
fn a_file_in_parts_is_the_same_as_a_whole_one() {
    // Method: the tensors of a file, split into two, of which the second says nothing of the model.
    let whole = folder().join("llama");
    let copy = Copy::of(TIED);
    fs::copy(whole.join("config.json"), copy.path("config.json")).expect("copy");
    python(
        "split_gguf.py",
        &[],
        &[&whole.join("model.gguf"), copy.folder.path()],
    );
    let chunk = Chunk {
        token_ids: &[25, 40, 2, 6, 61, 28, 47, 19],
        num_computed: 0,
        blocks: &[1, 2],
    };
    let run = |folder: &Path| {
        let model = load(folder, Dtype::Float32).expect("load");
        Runner::new(model, 3).run(std::slice::from_ref(&chunk))
    };
    assert!(run(copy.folder.path()) == run(&whole));
    fs::remove_file(copy.path("model-00002-of-00002.gguf")).expect("remove");
    let error = load(copy.folder.path(), Dtype::Float32).expect_err("half of it");
    assert!(error.to_string().contains("is missing"), "{error}");
}
