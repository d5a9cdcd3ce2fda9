//! A stored checkpoint, copied so that it can be changed or spoilt.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::folder;

/// The checkpoint that most tests copy.
pub(crate) const TIED: &str = "llama-tied";

/// A tensor of it.
pub(crate) const NORM: &str = "model.norm.weight";

/// A tensor: element format, shape, bytes.
pub(crate) type Tensor = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// A stored checkpoint, copied so that it can be spoilt.
pub(crate) struct Copy {
    pub(crate) folder: TempDir,
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Copy {
    pub(crate) fn of(name: &str) -> Self {
        let read = |file: &str| fs::read(folder(name).join(file)).expect("stored checkpoint");
        let bytes = read("model.safetensors");
        let stored = SafeTensors::deserialize(&bytes).expect("stored checkpoint");
        let owned = |view: TensorView<'_>| (view.dtype(), view.shape().into(), view.data().into());
        Self {
            folder: tempfile::tempdir().expect("folder"),
            config: serde_json::from_slice(&read("config.json")).expect("stored checkpoint"),
            tensors: stored
                .tensors()
                .into_iter()
                .map(|(name, view)| (name, owned(view)))
                .collect(),
        }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Writes the tensors whose names `chosen` accepts as a weights file.
    pub(crate) fn write_tensors(&self, file: &str, chosen: impl Fn(&str) -> bool) {
        let chosen = self.tensors.iter().filter(|(name, _)| chosen(name));
        let views = chosen.map(|(name, (dtype, shape, data))| {
            let view = TensorView::new(*dtype, shape.clone(), data).expect("tensor");
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views, None).expect("tensors");
        fs::write(self.path(file), bytes).expect("write");
    }

    pub(crate) fn write_config(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).expect("write");
    }

    /// Writes `config.json` and one weights file.
    pub(crate) fn write(&self) -> &Path {
        self.write_config();
        self.write_tensors("model.safetensors", |_| true);
        self.folder.path()
    }

    /// Writes `config.json`, two weights files and their index.
    pub(crate) fn write_shards(&self) -> &Path {
        self.write_config();
        let shard_of = |name: &str| match name.contains("layers.0") {
            true => "model-00001-of-00002.safetensors",
            false => "model-00002-of-00002.safetensors",
        };
        for shard in [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ] {
            self.write_tensors(shard, |name| shard_of(name) == shard);
        }
        let names = self.tensors.keys();
        let map: BTreeMap<&str, &str> = names.map(|name| (name.as_str(), shard_of(name))).collect();
        self.write_index(&json!({ "metadata": {}, "weight_map": map }));
        self.folder.path()
    }

    pub(crate) fn write_index(&self, index: &Value) {
        let path = self.path("model.safetensors.index.json");
        fs::write(path, index.to_string()).expect("write");
    }
}
