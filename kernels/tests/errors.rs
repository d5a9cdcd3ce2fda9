//! Wrong arguments are typed errors, and wrong values are errors of the result, never an abort.

mod support;

use metal_rpc_kernels::{
    AttentionMetadata, AttentionParams, KernelError, LogprobsMode, RopePairing, argmax, eval,
    gather_slots, gelu_tanh_mul, linear, paged_attention, reserve, reshape_and_cache, rms_norm,
    rope, scale, score_token_ids, silu_mul, write_slots,
};
use mlx_rs::{Array, Dtype};
use support::{array, array_i32, i32s, int};

fn ones(shape: &[usize]) -> Array {
    array(&vec![1.0; shape.iter().product()], shape)
}

fn shape_error<T>(result: Result<T, KernelError>, name: &str) {
    match result {
        Err(KernelError::Shape { argument, .. }) => assert_eq!(argument, name),
        Err(other) => panic!("{name}: {other}"),
        Ok(_) => panic!("{name}: accepted"),
    }
}

fn dtype_error<T>(result: Result<T, KernelError>, name: &str) {
    match result {
        Err(KernelError::Dtype { argument, .. }) => assert_eq!(argument, name),
        Err(other) => panic!("{name}: {other}"),
        Ok(_) => panic!("{name}: accepted"),
    }
}

#[test]
fn shapes_and_dtypes_are_checked_before_a_node_is_made() {
    let ints = array_i32(&[1, 2]);
    shape_error(linear(&ones(&[2, 3]), &ones(&[4, 5]), None), "x");
    shape_error(
        linear(&ones(&[2, 3]), &ones(&[4, 3]), Some(&ones(&[3]))),
        "bias",
    );
    shape_error(linear(&ones(&[2, 3]), &ones(&[3]), None), "weight");
    dtype_error(linear(&ints, &ones(&[4, 2]), None), "x");
    shape_error(rms_norm(&ones(&[2, 3]), &ones(&[4]), 1e-5), "x");
    dtype_error(rms_norm(&ones(&[3, 2]), &ints, 1e-5), "weight");
    shape_error(silu_mul(&ones(&[2, 3])), "gate_up");
    shape_error(gelu_tanh_mul(&ones(&[2, 3])), "gate_up");
    dtype_error(scale(&ints, 2.0), "x");
    shape_error(argmax(&ones(&[2, 0])), "logits");
    let x = ones(&[2, 3, 4]);
    let turn = |x: &Array, positions: &Array, inv_freq: &Array| {
        rope(x, positions, inv_freq, 1.0, RopePairing::Halves)
    };
    shape_error(turn(&x, &ints, &ones(&[3])), "inv_freq");
    shape_error(turn(&x, &array_i32(&[1]), &ones(&[2])), "positions");
    dtype_error(turn(&x, &ones(&[2]), &ones(&[2])), "positions");
    let score =
        |logits: &Array, ids: &Array| score_token_ids(logits, ids, LogprobsMode::RawLogprobs);
    shape_error(score(&ones(&[2, 0]), &ints), "logits");
    shape_error(score(&ones(&[2, 3]), &ints), "token_ids");
    shape_error(
        score(
            &ones(&[1, 3]),
            &array_i32(&[1, 2]).reshape(&[2, 1]).expect("two"),
        ),
        "token_ids",
    );
    dtype_error(score(&ones(&[2, 3]), &ones(&[2, 3])), "token_ids");
    dtype_error(gather_slots(&ones(&[2]), &ints), "table");
    let mut table = array_i32(&[1, 2, 3]);
    shape_error(write_slots(&mut table, &ints, &array_i32(&[1])), "values");
    dtype_error(write_slots(&mut table, &ones(&[2]), &ints), "values");
}

fn caches() -> (Array, Array) {
    let shape = [4, 8, 2, 16];
    let cache = || reserve(&shape, Dtype::Float32).expect("reserves");
    (cache(), cache())
}

#[test]
fn a_slot_out_of_range_is_an_error_of_the_result() {
    let mut table = array_i32(&[1, 2, 3]);
    let gathered = gather_slots(&table, &array_i32(&[0, 3])).expect("fits");
    let message = eval([&gathered]).expect_err("out of range").to_string();
    assert!(
        message.contains("slot 3 is not in a table of 3"),
        "{message}"
    );
    // The stream goes on.
    assert_eq!(
        i32s(&gather_slots(&table, &array_i32(&[2])).expect("fits")),
        [3]
    );
    write_slots(&mut table, &array_i32(&[5]), &array_i32(&[-2])).expect("fits");
    assert!(eval([&table]).is_err());

    let (mut keys, mut values) = caches();
    let row = ones(&[1, 2, 16]);
    reshape_and_cache(&row, &row, &mut keys, &mut values, &array_i32(&[32])).expect("fits");
    assert!(eval([&keys]).is_err());
}

#[test]
fn the_cache_and_what_is_written_must_fit() {
    let (mut keys, mut values) = caches();
    let slots = array_i32(&[1]);
    let row = ones(&[1, 2, 16]);
    let narrow = ones(&[1, 2, 15]);
    shape_error(
        reshape_and_cache(&narrow, &row, &mut keys, &mut values, &slots),
        "key",
    );
    shape_error(
        reshape_and_cache(&row, &narrow, &mut keys, &mut values, &slots),
        "value",
    );
    let mut half = reserve(&[4, 8, 2, 16], Dtype::Float16).expect("reserves");
    dtype_error(
        reshape_and_cache(&row, &row, &mut keys, &mut half, &slots),
        "value_cache",
    );
    let ints = ones(&[1]);
    dtype_error(
        reshape_and_cache(&row, &row, &mut keys, &mut values, &ints),
        "slot_mapping",
    );
}

fn metadata(block: i32, query_len: i32, seq_len: i32) -> AttentionMetadata {
    AttentionMetadata {
        block_table: Array::from_slice(&[block, 0], &[1, 2]),
        query_start_loc: array_i32(&[0, query_len]),
        seq_lens: array_i32(&[seq_len]),
    }
}

const PARAMS: AttentionParams = AttentionParams {
    scale: 1.0,
    sliding_window: None,
    soft_cap: None,
    sinks: None,
};

#[test]
fn metadata_that_contradicts_itself_is_an_error_of_the_result() {
    let (keys, values) = caches();
    let query = ones(&[2, 4, 16]);
    let run = |metadata: &AttentionMetadata| {
        let out = paged_attention(&query, &keys, &values, metadata, &PARAMS);
        eval([&out.expect("the shapes fit")])
    };
    assert!(run(&metadata(3, 2, 9)).is_ok());
    for (block, query_len, seq_len) in [
        (4, 1, 1),
        (-1, 1, 1),
        (0, 2, 1),
        (0, 3, 3),
        (0, 1, 17),
        (0, -1, 1),
        (0, 1, -1),
    ] {
        let result = run(&metadata(block, query_len, seq_len));
        assert!(
            result.is_err(),
            "block {block}, {query_len} queries, {seq_len} keys"
        );
    }
}

#[test]
fn attention_checks_heads_and_parameters() {
    let (keys, values) = caches();
    let run = |query: &Array, params: &AttentionParams| {
        paged_attention(query, &keys, &values, &metadata(0, 1, 1), params)
    };
    shape_error(run(&ones(&[1, 3, 16]), &PARAMS), "key_cache");
    shape_error(run(&ones(&[1, 4, 8]), &PARAMS), "key_cache");
    let sinks = Some(ones(&[3]));
    shape_error(
        run(&ones(&[1, 4, 16]), &AttentionParams { sinks, ..PARAMS }),
        "sinks",
    );
    let no_window = AttentionParams {
        sliding_window: Some(0),
        ..PARAMS
    };
    let no_cap = AttentionParams {
        soft_cap: Some(0.0),
        ..PARAMS
    };
    for params in [no_window, no_cap] {
        let result = run(&ones(&[1, 4, 16]), &params);
        assert!(matches!(result, Err(KernelError::Value { .. })));
    }
}

#[test]
fn a_pool_beyond_the_address_space_is_refused() {
    let max = int(i32::MAX as usize);
    let result = reserve(&[max, max, max], Dtype::Float32);
    assert!(matches!(result, Err(KernelError::Mlx(_))));
    assert!(reserve(&[-1], Dtype::Float32).is_err());
}
