//! What a load takes in memory: the weights, once.

use std::{env, fs, io::Write, path::Path, process::Command};

use metald::models::Dtype;
use serde_json::{Map, Value, json};

use crate::{header::Header, support::load};

/// Tells the child which folder to load.
const FOLDER: &str = "METALD_TEST_FOLDER";
/// What the child says before its two numbers.
const MARK: &str = "weights and peak in bytes:";

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const VOCAB: usize = 8192;
const NUM_LAYERS: usize = 6;

/// Loads in a process of its own, whose peak is its own.
#[test]
#[ignore = "the child of the next test"]
fn child() {
    let folder = env::var(FOLDER).expect("the next test sets it");
    let before = status_bytes("VmRSS:");
    let model = load(Path::new(&folder), Dtype::Bfloat16).expect("load");
    let peak = status_bytes("VmHWM:") - before;
    let text = format!("{MARK} {} {peak}\n", model.weights_bytes());
    std::io::stdout()
        .write_all(text.as_bytes())
        .expect("a pipe");
}

fn status_bytes(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with(key));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

/// How a format stores a matrix `[rows, columns]`: kinds, element types, shapes.
type Stored = fn(usize, usize) -> Vec<(&'static str, &'static str, [usize; 2])>;

#[test]
fn a_load_takes_little_more_than_the_weights() {
    // Method: files with holes, which cost neither disk nor time.
    let awq = json!({ "quant_method": "awq", "bits": 4, "group_size": 128 });
    let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
    let mlx = json!({ "bits": 4, "group_size": 64 });
    let cases: [(&str, Value, Stored); 5] = [
        ("bfloat16", Value::Null, |r, c| {
            vec![("weight", "BF16", [r, c])]
        }),
        ("float32", Value::Null, |r, c| {
            vec![("weight", "F32", [r, c])]
        }),
        ("mlx", mlx, |r, c| {
            let shared = [r, c / 64];
            vec![
                ("weight", "U32", [r, c / 8]),
                ("scales", "BF16", shared),
                ("biases", "BF16", shared),
            ]
        }),
        ("awq", awq, |r, c| {
            let groups = c / 128;
            vec![
                ("qweight", "I32", [c, r / 8]),
                ("qzeros", "I32", [groups, r / 8]),
                ("scales", "F16", [groups, r]),
            ]
        }),
        ("gptq", gptq, |r, c| {
            let groups = c / 128;
            vec![
                ("qweight", "I32", [c / 8, r]),
                ("qzeros", "I32", [groups, r / 8]),
                ("scales", "F16", [groups, r]),
            ]
        }),
    ];
    for (name, quantization, stored) in cases {
        let folder = tempfile::tempdir().expect("folder");
        write_config(folder.path(), &quantization);
        write_safetensors(folder.path(), stored);
        check(name, folder.path());
    }
    // Q4_0, which is kept, and Q6_K, which becomes larger.
    for (name, kind, weights, bytes) in [("q4_0", 2, 32, 18), ("q6_k", 14, 256, 210)] {
        let folder = tempfile::tempdir().expect("folder");
        write_config(folder.path(), &Value::Null);
        write_gguf(folder.path(), kind, [weights, bytes]);
        check(name, folder.path());
    }
}

#[track_caller]
fn check(name: &str, folder: &Path) {
    let output = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "memory::child", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        // Each thread has buffers of its own.
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .expect("it is running");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = text
        .split(MARK)
        .nth(1)
        .unwrap_or_else(|| panic!("{name}: {text}"));
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .take(2)
        .map(|number| number.parse().expect("a number"))
        .collect();
    let (weights, peak) = (numbers[0], numbers[1]);
    assert!(
        weights > 40 << 20,
        "{name}: {weights} bytes are too few to tell"
    );
    assert!(
        peak * 100 <= weights * 115,
        "{name}: {weights} bytes of weights took {peak} bytes at most"
    );
}

/// Names, rows and columns of all matrices that a format may quantise.
fn matrices() -> Vec<(String, usize, usize)> {
    let layer = [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", HIDDEN, HIDDEN),
        ("self_attn.v_proj", HIDDEN, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ];
    let layers = (0..NUM_LAYERS).flat_map(|index| {
        layer.map(|(name, rows, columns)| (format!("model.layers.{index}.{name}"), rows, columns))
    });
    layers.collect()
}

/// Names and shapes of what no format quantises here.
fn others() -> Vec<(String, Vec<usize>)> {
    let norms = (0..NUM_LAYERS).flat_map(|index| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|name| (format!("model.layers.{index}.{name}"), vec![HIDDEN]))
    });
    let ends = [
        ("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    norms.chain(ends).collect()
}

fn write_config(folder: &Path, quantization: &Value) {
    let config = json!({
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": true,
        "quantization_config": quantization,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("write");
}

fn write_safetensors(folder: &Path, stored: Stored) {
    let mut header = Map::new();
    let mut end = 0;
    let mut add = |name: String, dtype: &str, shape: &[usize]| {
        let element = if dtype.ends_with("32") { 4 } else { 2 };
        let start = end;
        end += shape.iter().product::<usize>() * element;
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    };
    for (name, rows, columns) in matrices() {
        for (kind, dtype, shape) in stored(rows, columns) {
            add(format!("{name}.{kind}"), dtype, &shape);
        }
    }
    for (name, shape) in others() {
        add(format!("{name}.weight"), "BF16", &shape);
    }
    let text = Value::Object(header).to_string();
    let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    write_with_hole(&folder.join("model.safetensors"), &bytes, end);
}

fn write_gguf(folder: &Path, kind: u32, [weights, bytes]: [usize; 2]) {
    const F16: u32 = 1;
    let names = [
        ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
    ];
    let renamed = |name: &str| {
        names
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
            + ".weight"
    };
    let mut header = Header::llama(16);
    let mut end = 0;
    for (name, rows, columns) in matrices() {
        header.tensor(
            &renamed(&name),
            kind,
            &[columns as u64, rows as u64],
            end as u64,
        );
        end += rows * columns / weights * bytes;
    }
    for (name, shape) in others() {
        let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
        header.tensor(&renamed(&name), F16, &dims, end as u64);
        end += shape.iter().product::<usize>() * 2;
    }
    let start = header.bytes();
    // Tensors begin at a multiple of 32.
    write_with_hole(&folder.join("model.gguf"), &start, end + 32);
}

fn write_with_hole(path: &Path, start: &[u8], hole: usize) {
    fs::write(path, start).expect("write");
    let file = fs::File::options().write(true).open(path).expect("open");
    file.set_len((start.len() + hole) as u64).expect("hole");
}
