//! The same checkpoint as another program writes it.

use metald::models::Dtype;
use safetensors::Dtype as Stored;
use serde_json::json;

use crate::{
    checkpoint::{Copy, Tensor},
    families::{Golden, folder, rows},
    support::{Chunk, Runner},
};

/// Every second row of each expert, from `first` on.
fn every_second((dtype, mut shape, data): Tensor, first: usize) -> Tensor {
    let rows = shape[0] * shape[1];
    let halves = data.chunks_exact(data.len() / rows).skip(first).step_by(2);
    let data = halves.flatten().copied().collect();
    shape[1] /= 2;
    (dtype, shape, data)
}

/// Blocks of 16 bytes as words.
fn words((_, shape, data): Tensor) -> Tensor {
    (Stored::U32, vec![shape[0], shape[1], shape[2] * 4], data)
}

#[test]
fn gpt_oss_as_mlx_lm_writes_it() {
    const NAME: &str = "gpt_oss-mxfp4";
    let mut copy = Copy::of(folder(NAME).to_str().expect("text"));
    let values = json!({ "group_size": 32, "bits": 4, "mode": "mxfp4" });
    copy.config["quantization"] = values.clone();
    copy.config["quantization_config"] = values;
    for (name, tensor) in std::mem::take(&mut copy.tensors) {
        let Some((layer, kind)) = name.split_once(".mlp.experts.") else {
            copy.tensors.insert(name, tensor);
            continue;
        };
        let (projection, kind) = kind.rsplit_once('_').expect("gate_up_proj_blocks and such");
        let (kind, tensor) = match kind {
            "blocks" => ("weight", words(tensor)),
            _ => (kind, tensor),
        };
        let mut insert = |projection: &str, tensor| {
            let name = format!("{layer}.mlp.experts.{projection}.{kind}");
            copy.tensors.insert(name, tensor);
        };
        match projection {
            "gate_up_proj" => {
                insert("gate_proj", every_second(tensor.clone(), 0));
                insert("up_proj", every_second(tensor, 1));
            }
            _ => insert(projection, tensor),
        }
    }
    let row = rows().into_iter().find(|row| row.name == NAME);
    let row = row.expect("a row");
    let token_ids = Golden::read(NAME).token_ids;
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
    assert!(run(row.load_from(copy.write(), Dtype::Float32)) == expected);
}
