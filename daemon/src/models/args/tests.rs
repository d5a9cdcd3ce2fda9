//! Many short configurations.

use metal_rpc_kernels::RopePairing;
use serde_json::{Value, json};

use super::*;
use crate::layers::RopeScaling;

fn config(changes: &Value) -> Config {
    let mut config = json!({
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    });
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    Config::from_json(config.to_string().as_bytes(), "config.json".into()).expect("an object")
}

fn parse(changes: &Value) -> Result<ModelArgs, ModelError> {
    ModelArgs::from_config(&config(changes), &Defaults::LLAMA)
}

fn parse_rope(changes: &Value) -> Result<RopeArgs, ModelError> {
    parse(changes)?.rope(&config(changes), "full_attention")
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let expected = ModelArgs {
        model_type: "llama".to_owned(),
        vocab_size: 100,
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 4,
        head_dim: 16,
        max_position_embeddings: 2048,
        norm: NormArgs {
            kind: NormKind::Rms,
            eps: 1e-6,
        },
        activation: Activation::Silu,
        tie_word_embeddings: false,
        rope_len: 2048,
        default_rope_theta: 10_000.0,
        default_partial_rotary_factor: 1.0,
    };
    assert_eq!(parse(&json!({})).expect("args"), expected);
    let nulls = json!({
        "num_key_value_heads": null,
        "head_dim": null,
        "rope_scaling": null,
        "rope_parameters": null,
        "quantization_config": null,
        "architectures": null,
    });
    assert_eq!(parse(&nulls).expect("args"), expected);
}

#[test]
fn present_keys_are_taken() {
    let check = |changes: Value, test: fn(&ModelArgs) -> bool| {
        let args = parse(&changes).expect("args");
        assert!(test(&args), "{changes} gives {args:?}");
    };
    check(json!({ "num_key_value_heads": 2 }), |args| {
        args.num_kv_heads == 2
    });
    check(json!({ "head_dim": 24 }), |args| args.head_dim == 24);
    check(json!({ "head_dim": 24, "hidden_size": 65 }), |args| {
        args.hidden_size == 65
    });
    check(json!({ "rms_norm_eps": 1e-5 }), |args| {
        args.norm.eps == 1e-5
    });
    check(json!({ "tie_word_embeddings": true }), |args| {
        args.tie_word_embeddings
    });
    check(json!({ "hidden_act": "swish" }), |args| {
        args.activation == Activation::Silu
    });
    check(json!({ "hidden_act": "gelu_pytorch_tanh" }), |args| {
        args.activation == Activation::GeluTanh
    });
}

#[test]
fn rope_is_read_in_every_spelling() {
    let linear = |factor| RopeScaling::Linear { factor };
    let check = |changes: Value, theta: f64, scaling: RopeScaling| {
        let rope = parse_rope(&changes).expect("args");
        let expected = RopeArgs {
            rotary_dim: 16,
            pairing: RopePairing::Halves,
            theta,
            scaling,
        };
        assert_eq!(rope, expected, "{changes}");
    };
    let old = json!({ "rope_theta": 5e5, "rope_scaling": { "rope_type": "linear", "factor": 2 } });
    check(old, 5e5, linear(2.0));
    let oldest = json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } });
    check(oldest, 1e4, linear(4.0));
    let new = json!({
        "rope_parameters": { "rope_theta": 1e5, "rope_type": "linear", "factor": 8.0 }
    });
    check(new, 1e5, linear(8.0));
    let outside = json!({ "rope_theta": 7e4, "rope_parameters": { "rope_type": "default" } });
    check(outside, 7e4, RopeScaling::None);
    let nested = json!({ "rope_parameters": {
        "full_attention": { "rope_theta": 1e6, "rope_type": "linear", "factor": 3.0 },
        "sliding_attention": { "rope_theta": 1e4, "rope_type": "default" },
    } });
    check(nested, 1e6, linear(3.0));
    let empty = json!({ "rope_theta": 9e4, "rope_parameters": {} });
    check(empty, 9e4, RopeScaling::None);
    let partial = json!({ "rope_parameters": { "partial_rotary_factor": 0.25 } });
    assert_eq!(parse_rope(&partial).expect("args").rotary_dim, 4);
    let partial = json!({ "partial_rotary_factor": 0.5 });
    assert_eq!(parse_rope(&partial).expect("args").rotary_dim, 8);
}

#[test]
fn broken_rules_are_named() {
    let check = |changes: Value, part: &str| {
        let error = parse_rope(&changes)
            .expect_err("must be refused")
            .to_string();
        assert!(
            error.contains(part),
            "{changes} gives {error:?}, not {part:?}"
        );
    };
    check(
        json!({ "vocab_size": 0 }),
        "vocab_size must be between 1 and 16777216, but is 0",
    );
    check(json!({ "hidden_size": -1 }), "hidden_size must be between");
    check(
        json!({ "num_hidden_layers": 1_i64 << 40 }),
        "num_hidden_layers must be between",
    );
    check(
        json!({ "num_attention_heads": 3 }),
        "hidden_size must be a multiple",
    );
    check(
        json!({ "num_key_value_heads": 3 }),
        "num_key_value_heads must be a divisor",
    );
    check(json!({ "head_dim": 7 }), "head_dim must be even");
    check(
        json!({ "head_dim": 1 << 23 }),
        "num_attention_heads must be at most",
    );
    check(
        json!({ "rms_norm_eps": -1.0 }),
        "rms_norm_eps must be between 0 and 1",
    );
    check(
        json!({ "hidden_act": "relu" }),
        "hidden_act relu is not supported; supported: silu",
    );
    check(json!({ "hidden_act": 1 }), "hidden_act must be a string");
    check(
        json!({ "partial_rotary_factor": 0.2 }),
        "partial_rotary_factor must be an even share of head_dim, but is 0.2",
    );
    check(
        json!({ "rope_theta": "big" }),
        "rope_theta must be a number, but is \"big\"",
    );
    check(
        json!({ "rope_theta": 1.0 }),
        "rope_theta must be above 1, but is 1",
    );
    check(
        json!({ "rope_scaling": 2.0 }),
        "rope_scaling must be an object",
    );
    check(
        json!({ "rope_scaling": { "type": "mrope" } }),
        "rope_type \"mrope\" is not supported; supported: default, linear, dynamic, llama3, yarn, longrope",
    );
    check(
        json!({ "rope_scaling": { "type": "dynamic" } }),
        "factor must be a number, but is absent",
    );
    let short = json!({ "rope_scaling": { "type": "su", "short_factor": [1, 2] } });
    check(
        short,
        "short_factor must be one number per pair of rotated elements, but is 2 for 8 pairs",
    );
    check(
        json!({ "rope_scaling": { "type": 1 } }),
        "rope_type 1 is not supported",
    );
    check(
        json!({ "rope_scaling": { "type": "linear" } }),
        "factor must be a number, but is absent",
    );
    check(
        json!({ "rope_scaling": { "type": "linear", "factor": 0 } }),
        "factor must be above 0",
    );
    let blend = json!({ "rope_scaling": {
        "type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
    } });
    check(blend, "high_freq_factor must be above low_freq_factor");
    let nested = json!({ "rope_parameters": { "sliding_attention": { "rope_type": "default" } } });
    check(nested, "rope_parameters must be given for every layer type");
}

#[test]
fn a_rope_that_depends_on_the_length_says_for_which_it_is_made() {
    let check = |changes: Value, max_model_len: u32, expected: Option<u32>| {
        let length = rope_args::length(&config(&changes), max_model_len).expect("a rope");
        assert_eq!(length, expected, "{changes} for {max_model_len}");
    };
    check(json!({}), 100, None);
    check(
        json!({ "rope_scaling": { "type": "linear", "factor": 4 } }),
        9000,
        None,
    );
    let dynamic = json!({ "rope_scaling": { "type": "dynamic", "factor": 4 } });
    check(dynamic.clone(), 100, Some(2048));
    check(dynamic, 9000, Some(9000));
    let long = json!({
        "rope_scaling": { "type": "longrope" },
        "original_max_position_embeddings": 512,
    });
    check(long.clone(), 100, Some(512));
    check(long.clone(), 512, Some(512));
    check(long.clone(), 513, Some(513));
    check(long, 2048, Some(513));
    let inside = json!({
        "rope_parameters": { "rope_type": "longrope", "original_max_position_embeddings": 512 },
    });
    check(inside, 2048, Some(513));
}

#[test]
fn frequencies_are_those_of_transformers() {
    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        config: Value,
        inv_freq: Vec<f32>,
        attention_factor: f32,
    }
    let golden = include_str!("../../../tests/golden/rope.json");
    let golden: Golden = serde_json::from_str(golden).expect("golden");
    assert_eq!(golden.cases.len(), 13);
    for case in golden.cases {
        let rope = parse_rope(&case.config).expect("args");
        let inv_freq = rope.inv_freq();
        assert_eq!(inv_freq.len(), case.inv_freq.len());
        for (actual, expected) in inv_freq.iter().zip(&case.inv_freq) {
            // Two powers that may differ by an ulp, and at most three roundings after each.
            let error = (actual - expected).abs() / expected;
            assert!(
                error <= 4.0 * f32::EPSILON,
                "{actual}, not {expected}: {}",
                case.config
            );
        }
        let error = (rope.attention_factor() - case.attention_factor).abs();
        assert!(error <= f32::EPSILON, "{}", case.config);
    }
}
