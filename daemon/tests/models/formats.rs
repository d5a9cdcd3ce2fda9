//! A tiny model in every format of quantised weights, against the same weights in float32.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use metal_rpc_protocol::ErrorCode;
use metald::models::Dtype;
use safetensors::Dtype as Stored;

use crate::{
    checkpoint::{Copy, Tensor},
    made::{made, python},
    support::{Chunk, Runner, load},
};

/// What `support::python` runs, the first with the arguments that follow.
const SCRIPTS: [(&str, &[&str]); 2] = [("make_formats.py", &[]), ("make_gguf.py", &["formats"])];
const SOURCES: [&str; 2] = [
    include_str!("../golden/make_formats.py"),
    include_str!("../golden/make_gguf.py"),
];

/// The checkpoints of the scripts, made by the first call after one was changed.
fn folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let made = made("formats", &SOURCES, |folder| {
            for (script, arguments) in SCRIPTS {
                python(script, arguments, &[folder]);
            }
        });
        let entries = fs::read_dir(made).expect("folder");
        let mut folders: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
        folders.sort();
        folders
    })
}

/// Logits of 24 tokens.
fn logits(folder: &Path, dtype: Dtype) -> Vec<Vec<f32>> {
    let token_ids: Vec<i32> = (0..24).map(|index| index * 29 % 64).collect();
    let chunk = Chunk {
        token_ids: &token_ids,
        num_computed: 0,
        blocks: &[3, 1, 6, 2, 5, 4],
    };
    let model = load(folder, dtype).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
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
/// rounded to 11 bits or weights to 8; or where weights of four and eight bits are multiplied in
/// integers, on CPUs with AMX. That rounds each input of a layer by 0.3 units on average, 1e-5 of its
/// group's largest, so a product by about 3e-5 of its magnitude, and a model has a dozen of them.
fn tolerance(name: &str) -> f32 {
    match name.trim_end_matches("-experts").split_once('-') {
        Some(("awq" | "gptq", _)) => 2e-3,
        Some(("gguf", "q2_k" | "q6_k")) => 2e-2,
        Some(("gguf", "q3_k" | "q4_k" | "q5_k" | "iq4_xs")) => 2e-3,
        Some(("gguf", "q4_0" | "q4_1" | "q8_0" | "iq4_nl")) => 5e-4,
        Some(("mlx", "4bit" | "4bit-f32" | "8bit" | "mixed")) => 5e-4,
        _ if name == "awq" || name == "gptq" => 2e-3,
        _ => 1e-5,
    }
}

/// The same with keys and values in bfloat16, whose rounding comes on top.
const TOLERANCE_IN_BFLOAT16: f32 = 2e-2;

#[test]
fn every_format_gives_the_logits_of_its_weights() {
    let folders = folders();
    assert!(folders.len() > 25);
    let mut failures = Vec::new();
    for folder in folders {
        let name = folder.file_name().expect("name").to_str().expect("text");
        let expected = logits(&folder.join("plain"), Dtype::Float32);
        // The second is what a user has: unquantised tensors, keys and values in bfloat16. The
        // weights that are compared with stay in float32: rounding them is not the format's cost.
        let limits = [
            (Dtype::Float32, tolerance(name)),
            (Dtype::Bfloat16, TOLERANCE_IN_BFLOAT16),
        ];
        for (dtype, limit) in limits {
            let error = relative_error(&logits(folder, dtype), &expected);
            if error >= limit {
                failures.push(format!("{name} as {dtype}: {error}, at most {limit}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn folder(name: &str) -> &'static Path {
    let mut folders = folders().iter();
    folders.find(|folder| folder.ends_with(name)).expect("made")
}

/// A case: a checkpoint, a tensor of `model.layers.0.self_attn.q_proj`, what becomes of it, and what
/// is said of that.
type Case = (
    &'static str,
    &'static str,
    fn(Tensor) -> Option<Tensor>,
    ErrorCode,
    &'static str,
);

#[test]
fn tensors_that_do_not_fit_each_other_are_refused() {
    use ErrorCode::{InvalidModel, UnsupportedModel};
    // Shapes: `[256, 256]` weights in groups of 64, or of 128 for AWQ and GPTQ.
    let cases: [Case; 14] = [
        (
            "mlx-4bit",
            "scales",
            |_| None,
            InvalidModel,
            "q_proj.scales is missing",
        ),
        (
            "mlx-4bit",
            "scales",
            |t| reshaped(t, &[512, 2]),
            InvalidModel,
            "must have shape [256, 2]",
        ),
        (
            "mlx-4bit",
            "scales",
            |t| retyped(t, Stored::I16),
            UnsupportedModel,
            "but is I16",
        ),
        (
            "mlx-4bit",
            "biases",
            |t| cut(t, &[256, 2]),
            InvalidModel,
            "must have shape [256, 4]",
        ),
        // Seven bits, and groups of 48.
        (
            "mlx-4bit",
            "weight",
            |t| grown(t, &[256, 56]),
            InvalidModel,
            "2, 3, 4, 5, 6 or 8 bits",
        ),
        (
            "mlx-4bit",
            "scales",
            |t| cut(t, &[256, 3]),
            InvalidModel,
            "in groups of 32, 64 or 128",
        ),
        (
            "mlx-4bit",
            "weight",
            |t| cut(t, &[128, 32]),
            InvalidModel,
            "256 rows of 256 inputs",
        ),
        (
            "mlx-mxfp4",
            "scales",
            |t| cut(t, &[256, 4]),
            InvalidModel,
            "256 rows of 256 inputs",
        ),
        (
            "awq",
            "qzeros",
            |_| None,
            InvalidModel,
            "q_proj.qzeros is missing",
        ),
        (
            "awq",
            "qweight",
            |t| cut(t, &[256, 16]),
            InvalidModel,
            "must have shape [256, 32]",
        ),
        (
            "awq",
            "qweight",
            |t| retyped(t, Stored::F32),
            UnsupportedModel,
            "but is F32",
        ),
        (
            "gptq",
            "scales",
            |t| cut(t, &[1, 256]),
            InvalidModel,
            "q_proj.qzeros",
        ),
        (
            "gptq",
            "qweight",
            |t| cut(t, &[24, 256]),
            InvalidModel,
            "256 inputs in 2, 4 or 8 bits",
        ),
        (
            "gptq",
            "g_idx",
            unordered,
            UnsupportedModel,
            "GPTQ desc_act true (inputs of",
        ),
    ];
    for (name, kind, change, code, part) in cases {
        let mut copy = Copy::of(folder(name).to_str().expect("text"));
        let key = format!("model.layers.0.self_attn.q_proj.{kind}");
        let tensor = copy.tensors.remove(&key).expect("it is there");
        if let Some(tensor) = change(tensor) {
            copy.tensors.insert(key, tensor);
        }
        let error = load(copy.write(), Dtype::Float32).expect_err("must be refused");
        assert!(
            error.to_string().contains(part),
            "{name} {kind}: {part:?} is not in {error}"
        );
        assert_eq!(error.code(), code, "{error}");
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a case")]
fn reshaped((dtype, _, data): Tensor, shape: &[usize]) -> Option<Tensor> {
    Some((dtype, shape.to_vec(), data))
}

#[expect(clippy::unnecessary_wraps, reason = "a case")]
fn retyped((_, shape, data): Tensor, dtype: Stored) -> Option<Tensor> {
    Some((dtype, shape, data))
}

fn cut((dtype, shape, mut data): Tensor, to: &[usize]) -> Option<Tensor> {
    let element = data.len() / shape.iter().product::<usize>();
    data.truncate(to.iter().product::<usize>() * element);
    reshaped((dtype, shape, data), to)
}

fn grown((dtype, shape, mut data): Tensor, to: &[usize]) -> Option<Tensor> {
    let element = data.len() / shape.iter().product::<usize>();
    data.resize(to.iter().product::<usize>() * element, 0);
    reshaped((dtype, shape, data), to)
}

fn unordered((dtype, shape, mut data): Tensor) -> Option<Tensor> {
    data.rotate_left(4);
    reshaped((dtype, shape, data), &[256])
}

#[test]
fn quantised_weights_take_less_memory() {
    let plain = load(&folder("mlx-4bit").join("plain"), Dtype::Bfloat16).expect("load");
    let quantised = load(folder("mlx-4bit"), Dtype::Bfloat16).expect("load");
    // 4.5 bits instead of 16.
    assert!(quantised.weights_bytes() * 10 < plain.weights_bytes() * 3);
}
