//! What a load accepts, and what each thing that can be wrong with a checkpoint is called.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::support::{Chunk, Golden, Runner, folder, load};
use metal_rpc_protocol::ErrorCode;
use metald::models::{self, Dtype, LoadOptions};
use mlx_rs::DeviceType;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

const TIED: &str = "llama-tied";
const NORM: &str = "model.norm.weight";

/// A tensor: element format, shape, bytes.
type Tensor = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// A stored checkpoint, copied so that it can be spoilt.
struct Copy {
    folder: TempDir,
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Copy {
    fn of(name: &str) -> Self {
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

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Writes the tensors whose names `chosen` accepts as a weights file.
    fn write_tensors(&self, file: &str, chosen: impl Fn(&str) -> bool) {
        let chosen = self.tensors.iter().filter(|(name, _)| chosen(name));
        let views = chosen.map(|(name, (dtype, shape, data))| {
            let view = TensorView::new(*dtype, shape.clone(), data).expect("tensor");
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views, None).expect("tensors");
        fs::write(self.path(file), bytes).expect("write");
    }

    fn write_config(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).expect("write");
    }

    /// Writes `config.json` and one weights file.
    fn write(&self) -> &Path {
        self.write_config();
        self.write_tensors("model.safetensors", |_| true);
        self.folder.path()
    }

    /// Writes `config.json`, two weights files and their index.
    fn write_shards(&self) -> &Path {
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

    fn write_index(&self, index: &Value) {
        let path = self.path("model.safetensors.index.json");
        fs::write(path, index.to_string()).expect("write");
    }
}

#[track_caller]
fn refused(folder: &Path, code: ErrorCode, parts: &[&str]) {
    let error = load(folder, Dtype::Float32).expect_err("must be refused");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert_eq!(error.code(), code, "{message}");
}

fn logits(folder: &Path, dtype: Dtype) -> Vec<Vec<f32>> {
    let token_ids = Golden::read(TIED).token_ids;
    let chunk = Chunk {
        token_ids: &token_ids[..8],
        num_computed: 0,
        blocks: &[1, 2],
    };
    Runner::new(load(folder, dtype).expect("load"), 3).run(&[chunk])
}

#[test]
fn shards_are_the_same_as_one_file() {
    let copy = Copy::of(TIED);
    let sharded = logits(copy.write_shards(), Dtype::Float32);
    assert!(sharded == logits(&folder(TIED), Dtype::Float32));
}

#[test]
fn the_stored_format_does_not_matter() {
    // Goal: a checkpoint in f32 is rounded as one that was stored in bf16 (its values are exact).
    let mut copy = Copy::of(TIED);
    for (dtype, _, data) in copy.tensors.values_mut() {
        let widen = |pair: &[u8]| [0, 0, pair[0], pair[1]];
        *data = data.chunks(2).flat_map(widen).collect();
        *dtype = safetensors::Dtype::F32;
    }
    let wide = copy.write();
    for dtype in Dtype::ALL {
        assert!(
            logits(wide, dtype) == logits(&folder(TIED), dtype),
            "{dtype}"
        );
    }
}

#[test]
fn a_tied_head_takes_no_memory_and_a_stored_one_is_ignored() {
    let mut copy = Copy::of(TIED);
    let num_elements: usize = copy
        .tensors
        .values()
        .map(|(_, _, data)| data.len() / 2)
        .sum();
    let head = copy.tensors["model.embed_tokens.weight"].clone();
    copy.tensors.insert("lm_head.weight".to_owned(), head);
    let model = load(copy.write(), Dtype::Float32).expect("load");
    assert_eq!(model.weights_bytes(), 4 * num_elements as u64);
}

#[test]
fn progress_rises_to_the_total() {
    let mut seen = Vec::new();
    let options = LoadOptions {
        dtype: Dtype::Float16,
        device: DeviceType::Cpu,
        free_bytes: u64::MAX,
        progress: &mut |loaded, total| seen.push((loaded, total)),
    };
    models::load(&folder(TIED), options).expect("load");
    let (_, total) = seen[0];
    assert!(seen.len() > 10);
    assert!(seen.is_sorted());
    assert!(seen.iter().all(|&(_, each)| each == total));
    assert_eq!(seen.last(), Some(&(total, total)));
}

#[test]
fn cache_format_follows_dtype_and_config() {
    let model = load(&folder("llama-biased"), Dtype::Float16).expect("load");
    let specs = model.kv_cache_specs();
    assert_eq!(specs.len(), 2);
    assert_eq!(specs[1].layer_name, "model.layers.1.self_attn.attn");
    assert_eq!((specs[1].num_kv_heads, specs[1].head_dim), (2, 24));
    assert_eq!(specs[1].dtype, "float16");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let options = LoadOptions {
        dtype: Dtype::Float32,
        device: DeviceType::Cpu,
        free_bytes: 40_000,
        progress: &mut |_, _| {},
    };
    let error = models::load(&folder(TIED), options).expect_err("must be refused");
    assert_eq!(error.code(), ErrorCode::OutOfMemory);
    assert!(error.to_string().contains("but 40000 are free"), "{error}");
}

#[test]
fn folders_without_a_model_are_refused() {
    let copy = Copy::of(TIED);
    refused(
        copy.folder.path(),
        ErrorCode::ModelNotFound,
        &["config.json"],
    );
    refused(
        Path::new("/nowhere"),
        ErrorCode::ModelNotFound,
        &["/nowhere/config.json"],
    );
    copy.write_config();
    let parts = ["neither model.safetensors nor model.safetensors.index.json"];
    refused(copy.folder.path(), ErrorCode::ModelNotFound, &parts);
    copy.write_shards();
    fs::remove_file(copy.path("model-00001-of-00002.safetensors")).expect("remove");
    let parts = ["cannot read", "model-00001-of-00002.safetensors"];
    refused(copy.folder.path(), ErrorCode::ModelNotFound, &parts);
}

#[test]
fn configs_that_cannot_be_run_are_refused() {
    use ErrorCode::{InvalidModel, UnsupportedModel};
    let llama = ["supported: llama"];
    let cases: [(&str, Value, ErrorCode, &[&str]); 7] = [
        (
            "model_type",
            json!("mamba"),
            UnsupportedModel,
            &["model_type mamba", llama[0]],
        ),
        (
            "model_type",
            Value::Null,
            InvalidModel,
            &["model_type must be a string"],
        ),
        (
            "architectures",
            json!(["LlamaForTokenClassification"]),
            UnsupportedModel,
            &["LlamaForTokenClassification", "LlamaForCausalLM"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "awq" }),
            UnsupportedModel,
            &["awq"],
        ),
        (
            "quantization",
            json!({ "bits": 4 }),
            UnsupportedModel,
            &["{\"bits\":4}"],
        ),
        (
            "vocab_size",
            json!("many"),
            InvalidModel,
            &["config.json", "many"],
        ),
        (
            "hidden_act",
            json!("gelu"),
            UnsupportedModel,
            &["gelu", "silu"],
        ),
    ];
    for (key, value, code, parts) in cases {
        let mut copy = Copy::of(TIED);
        copy.config[key] = value;
        refused(copy.write(), code, parts);
    }
    let copy = Copy::of(TIED);
    copy.write();
    fs::write(copy.path("config.json"), "[1]").expect("write");
    refused(
        copy.folder.path(),
        InvalidModel,
        &["config.json", "is not valid"],
    );
    fs::write(copy.path("config.json"), " ".repeat(2 << 20)).expect("write");
    refused(
        copy.folder.path(),
        InvalidModel,
        &["2097152 bytes, more than the 1048576"],
    );
}

#[test]
fn damaged_files_are_refused() {
    let copy = Copy::of(TIED);
    copy.write();
    let path = copy.path("model.safetensors");
    let good = fs::read(&path).expect("read");
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let cut = |len: usize| good[..len].to_vec();
    let size = good.len();
    let cases: [(Vec<u8>, &str); 8] = [
        (Vec::new(), "header too small"),
        (cut(100), "must have"),
        (cut(size - 1), "download it again"),
        ([&good, &b"x"[..]].concat(), "download it again"),
        (vec![0xff; 64], "header too large"),
        (header("{\"x\": "), "invalid JSON"),
        (
            header(r#"{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#),
            "invalid shape",
        ),
        (
            header(r#"{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#),
            "invalid offset",
        ),
    ];
    for (bytes, part) in cases {
        fs::write(&path, bytes).expect("write");
        let parts = ["model.safetensors", part];
        refused(copy.folder.path(), ErrorCode::InvalidModel, &parts);
    }
}

#[test]
fn tensors_that_contradict_the_config_are_refused() {
    let mut copy = Copy::of(TIED);
    copy.tensors.remove(NORM);
    let parts = [NORM, "is missing in"];
    refused(copy.write(), ErrorCode::InvalidModel, &parts);

    let mut copy = Copy::of(TIED);
    copy.config["num_key_value_heads"] = json!(4);
    let parts = [
        "model.layers.0.self_attn.k_proj.weight",
        "[32, 32]",
        "[16, 32]",
    ];
    refused(copy.write(), ErrorCode::InvalidModel, &parts);

    let mut copy = Copy::of(TIED);
    copy.tensors.get_mut(NORM).expect("norm").0 = safetensors::Dtype::I16;
    let parts = [NORM, "must be F32, F16 or BF16, but is I16"];
    refused(copy.write(), ErrorCode::UnsupportedModel, &parts);
}

#[test]
fn indices_that_contradict_their_files_are_refused() {
    let copy = Copy::of(TIED);
    copy.write_shards();
    for shard in ["../outside.safetensors", "/etc/passwd", "..", ""] {
        copy.write_index(&json!({ "weight_map": { NORM: shard } }));
        let parts = ["model.safetensors.index.json", "must be the name of a file"];
        refused(copy.folder.path(), ErrorCode::InvalidModel, &parts);
    }
    let first = "model-00001-of-00002.safetensors";
    copy.write_index(&json!({ "weight_map": { NORM: first } }));
    refused(
        copy.folder.path(),
        ErrorCode::InvalidModel,
        &[NORM, "is missing in"],
    );
    copy.write_index(&json!({ "weight_map": 1 }));
    refused(
        copy.folder.path(),
        ErrorCode::InvalidModel,
        &["is not valid"],
    );
    copy.write_shards();
    copy.write_tensors(first, |name| name == NORM);
    refused(
        copy.folder.path(),
        ErrorCode::InvalidModel,
        &[NORM, "must be in one file"],
    );
}

#[test]
fn tensors_that_nothing_uses_are_reported_once() {
    let mut copy = Copy::of(TIED);
    let spare = copy.tensors[NORM].clone();
    for name in [
        "vision.a",
        "vision.b",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ] {
        copy.tensors.insert(name.to_owned(), spare.clone());
    }
    let folder = copy.write();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || load(folder, Dtype::Float32)).expect("load");
    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("num_tensors=2"), "{text}");
    assert!(text.contains("vision.a, vision.b"), "{text}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("lock").clone()).expect("text")
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
