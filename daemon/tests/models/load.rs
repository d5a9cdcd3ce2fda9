//! What a load accepts, and what it makes of it.

use std::path::Path;

use metald::models::{self, Dtype, LoadOptions};
use mlx_rs::DeviceType;

use crate::{
    checkpoint::{Copy, NORM, TIED},
    support::{Chunk, Runner, folder, load},
};

fn logits(folder: &Path, dtype: Dtype) -> Vec<Vec<f32>> {
    let chunk = Chunk {
        token_ids: &[25, 40, 2, 6, 61, 28, 47, 19],
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
        rope_len: None,
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
