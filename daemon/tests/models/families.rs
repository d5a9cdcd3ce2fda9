//! The table of families, and a tiny checkpoint of each, made by its reference implementation.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use metald::models::{self, Dtype, FAMILIES, LoadOptions, Model};
use mlx_rs::DeviceType;
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::made::{made, python};

const TABLE: &str = include_str!("../golden/families.json");
const SCRIPTS: [&str; 2] = [
    include_str!("../golden/make_families.py"),
    include_str!("../golden/qwen_reference.py"),
];

/// A row of `tests/golden/families.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    /// Name of the checkpoint, which starts with the family's.
    pub(crate) name: String,
    model_type: String,
    config: serde_json::Value,
    /// The longest request, where the rope depends on it.
    max_model_len: Option<u32>,
}

/// What the reference makes of a checkpoint.
pub(crate) struct Golden {
    /// A prompt of 64 tokens, and its greedy continuation.
    pub(crate) token_ids: Vec<i32>,
    /// Of every token.
    pub(crate) logits: Vec<Vec<f32>>,
}

impl Row {
    /// A router chooses among experts.
    pub(crate) fn has_experts(&self) -> bool {
        self.config.get("num_experts_per_tok").is_some()
    }

    /// The checkpoint as a model, loaded on another thread than that which runs it, as the engine
    /// does.
    pub(crate) fn load(&self, dtype: Dtype) -> Box<dyn Model> {
        self.load_from(&folder(&self.name), dtype)
    }

    /// The same checkpoint in another format.
    pub(crate) fn load_from(&self, folder: &Path, dtype: Dtype) -> Box<dyn Model> {
        let load = || {
            let options = LoadOptions {
                dtype,
                rope_len: self.max_model_len,
                device: DeviceType::Cpu,
                free_bytes: u64::MAX,
                progress: &mut |_, _| {},
            };
            models::load(folder, options)
        };
        let model = thread::scope(|scope| scope.spawn(load).join().expect("no panic"));
        model.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

pub(crate) fn rows() -> Vec<Row> {
    serde_json::from_str(TABLE).expect("a table")
}

/// The folder of a row's checkpoint. The first call after a change makes those of all rows.
pub(crate) fn folder(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(make).join(name)
}

fn make() -> PathBuf {
    let sources = [TABLE, SCRIPTS[0], SCRIPTS[1]];
    made("families", &sources, |folder| {
        python("make_families.py", &[], &[folder]);
    })
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let bytes = fs::read(folder(name).join("golden.safetensors")).expect("golden");
        let tensors = SafeTensors::deserialize(&bytes).expect("golden");
        let words = |name: &str| -> Vec<u32> {
            let tensor = tensors.tensor(name).expect("golden");
            let words = tensor.data().as_chunks::<4>().0.iter();
            words.copied().map(u32::from_le_bytes).collect()
        };
        let token_ids: Vec<i32> = words("token_ids")
            .into_iter()
            .map(u32::cast_signed)
            .collect();
        let logits = words("logits");
        let vocab_size = logits.len() / token_ids.len();
        Self {
            logits: logits
                .chunks(vocab_size)
                .map(|row| row.iter().copied().map(f32::from_bits).collect())
                .collect(),
            token_ids,
        }
    }
}

/// The names in the second column of the README's table of families.
fn readme() -> BTreeSet<&'static str> {
    let readme = include_str!("../../../README.md");
    let table = readme.split("| family | `model_type` |").nth(1);
    let rows = table.expect("a table of families").lines().skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(2))
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect()
}

#[test]
fn every_family_is_known_tested_and_documented() {
    let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    let rows = rows();
    let tested: BTreeSet<&str> = rows.iter().map(|row| row.model_type.as_str()).collect();
    assert_eq!(tested, known, "tests/golden/families.json");
    assert_eq!(readme(), known, "README.md");
    for row in &rows {
        assert!(row.name.starts_with(&row.model_type), "{row:?}");
    }
}
