//! What each thing that can be wrong with a checkpoint is called.

use std::{fs, path::Path};

use metal_rpc_protocol::ErrorCode;
use metald::models::{self, Dtype, LoadOptions};
use mlx_rs::DeviceType;
use serde_json::{Value, json};

use crate::{
    checkpoint::{Copy, NORM, TIED},
    support::{folder, load},
};

#[track_caller]
fn refused(folder: &Path, code: ErrorCode, parts: &[&str]) {
    let error = load(folder, Dtype::Float32).expect_err("must be refused");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert_eq!(error.code(), code, "{message}");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let options = LoadOptions {
        dtype: Dtype::Float32,
        rope_len: None,
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
    let parts = [
        "has no weights that can be read: model.safetensors, ",
        "*.gguf",
    ];
    refused(copy.folder.path(), ErrorCode::ModelNotFound, &parts);
    copy.write_shards();
    fs::remove_file(copy.path("model-00001-of-00002.safetensors")).expect("remove");
    let parts = ["cannot read", "model-00001-of-00002.safetensors"];
    refused(copy.folder.path(), ErrorCode::ModelNotFound, &parts);
}

#[test]
fn configs_that_cannot_be_run_are_refused() {
    use ErrorCode::{InvalidModel, UnsupportedModel};
    let cases: [(&str, Value, ErrorCode, &[&str]); 13] = [
        (
            "model_type",
            json!("mamba"),
            UnsupportedModel,
            &["model_type mamba", "supported: llama, mistral, "],
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
            json!({ "quant_method": "fp8" }),
            UnsupportedModel,
            &["quant_method fp8", "mxfp4, awq, gptq"],
        ),
        (
            "quantization",
            json!({ "bits": 4 }),
            UnsupportedModel,
            &["{\"bits\":4}", "affine (MLX)"],
        ),
        (
            "quantization",
            json!({ "bits": 4, "group_size": 16, "mode": "nvfp4" }),
            UnsupportedModel,
            &["quantization mode nvfp4", "supported: affine, mxfp4"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "awq", "bits": 8 }),
            UnsupportedModel,
            &["AWQ bits 8", "supported: 4"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }),
            UnsupportedModel,
            &["AWQ version gemv", "supported: gemm"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "gptq", "bits": 3 }),
            UnsupportedModel,
            &["GPTQ bits 3", "supported: 2, 4, 8"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" }),
            UnsupportedModel,
            &["GPTQ checkpoint_format marlin", "supported: gptq, gptq_v2"],
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "mrope" }),
            UnsupportedModel,
            &["rope_type", "mrope", "supported: default, linear, "],
        ),
        (
            "vocab_size",
            json!("many"),
            InvalidModel,
            &["config.json", "many"],
        ),
        (
            "hidden_act",
            json!("relu2"),
            UnsupportedModel,
            &["relu2", "silu"],
        ),
    ];
    for (key, value, code, parts) in cases {
        let mut copy = Copy::of(TIED);
        copy.config[key] = value;
        refused(copy.write(), code, parts);
    }
    let mut copy = Copy::of(TIED);
    copy.config["model_type"] = json!("mistral");
    copy.config["architectures"] = Value::Null;
    copy.config["sliding_window"] = json!(0);
    refused(
        copy.write(),
        InvalidModel,
        &["sliding_window must be above 0"],
    );

    let mut copy = Copy::of(TIED);
    copy.config["model_type"] = json!("mixtral");
    copy.config["architectures"] = Value::Null;
    copy.config["num_local_experts"] = json!(4);
    let absent = "num_experts_per_tok must be between 1 and 16777216, but is absent";
    refused(copy.write(), InvalidModel, &[absent]);
    copy.config["num_experts_per_tok"] = json!(5);
    let too_many = "num_experts_per_tok must be at most the number of experts, but is 5";
    refused(copy.write(), InvalidModel, &[too_many]);
    copy.config["num_experts_per_tok"] = json!(2);
    let name = "tensor model.layers.0.mlp.gate.weight is missing";
    refused(copy.write(), InvalidModel, &[name]);

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
fn a_tensor_beyond_the_limit_of_mlx_is_refused() {
    // Method: a file with a hole of 4 GiB, 2^31 elements, which nobody reads.
    let name = "model.embed_tokens.weight";
    let mut copy = Copy::of(TIED);
    copy.config["vocab_size"] = json!(1 << 24);
    copy.config["hidden_size"] = json!(128);
    copy.write_config();
    let entry =
        json!({ "dtype": "BF16", "shape": [1 << 24, 128], "data_offsets": [0, 1_u64 << 32] });
    let header = json!({ name: entry }).to_string();
    let path = copy.path("model.safetensors");
    fs::write(
        &path,
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat(),
    )
    .expect("write");
    let file = fs::File::options().write(true).open(&path).expect("open");
    file.set_len(8 + header.len() as u64 + (1 << 32))
        .expect("hole");
    let parts = [name, "at most 2147483647 elements", "has 2147483648"];
    refused(copy.folder.path(), ErrorCode::UnsupportedModel, &parts);
}
