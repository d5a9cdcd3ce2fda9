//! Kernels that are recorded and run again, where that can be: on the CPU, and with CUDA.

mod support;

use std::time::Instant;

use metal_rpc_kernels::{
    Recording, RecordingKind, add_rms_norm, argmax, delay, eval, gather_slots, linear, part,
    recording_kind, rehearse, reserve, rms_norm, rows, silu_mul, start, to_vec_i32, upload,
    write_slots,
};
use mlx_rs::{Array, Dtype};
use support::{Random, array, array_i32, f32s, i32s, int};

const ROWS: usize = 5;
/// Places that are read, then places that are written.
const NUMBERS: usize = 2 * ROWS;
const TABLE_LEN: usize = 64;

/// What follows each number in a ring of all.
fn ring() -> Vec<i32> {
    (0..int(TABLE_LEN))
        .map(|n| (n + 1) % int(TABLE_LEN))
        .collect()
}

/// Reads a table at places, and writes what follows at other places.
fn outputs(table: &mut Array, numbers: &Array) -> Vec<Array> {
    let place = |index: usize| part(numbers, index * ROWS, &[int(ROWS)]).expect("has parts");
    let read = gather_slots(table, &place(0)).expect("fits");
    let next = gather_slots(&array_i32(&ring()), &read).expect("fits");
    write_slots(table, &next, &place(1)).expect("fits");
    vec![next, table.clone()]
}

fn numbers(random: &mut Random) -> Vec<i32> {
    let mut places: Vec<i32> = (0..int(TABLE_LEN)).collect();
    random.shuffle(&mut places);
    places.truncate(NUMBERS);
    places
}

/// An empty recording, where there is such a thing.
fn recording(num_numbers: usize) -> Option<Recording> {
    let recording = Recording::new(num_numbers).expect("has memory");
    let kind = recording_kind().expect("MLX says");
    assert_eq!(recording.is_some(), kind.is_some());
    recording
}

#[test]
fn a_recording_does_with_other_numbers_what_it_was_recorded_for() {
    let mut random = Random::new(60);
    let mut expected = vec![0; TABLE_LEN];
    let mut table = reserve(&[int(TABLE_LEN)], Dtype::Int32).expect("reserves");
    let Some(mut recording) = recording(NUMBERS) else {
        return;
    };
    let mut results = Vec::new();
    for run in 0..40 {
        let values = numbers(&mut random);
        let place = |index: usize| usize::try_from(values[index]).expect("a place");
        let next: Vec<i32> = (0..ROWS)
            .map(|row| (expected[place(row)] + 1) % int(TABLE_LEN))
            .collect();
        for (row, next) in next.iter().enumerate() {
            expected[place(ROWS + row)] = *next;
        }
        let (tokens, evaluation) = if run < 2 {
            let numbers = upload(&values, &[int(NUMBERS)]).expect("fits");
            let outputs = outputs(&mut table, &numbers);
            rehearse().expect("MLX has its stream");
            let evaluation = start(&outputs).expect("starts");
            (outputs, evaluation)
        } else if recording.is_complete() {
            recording.replay(&values).expect("runs")
        } else {
            let outputs = outputs(&mut table, recording.numbers());
            let outputs: Vec<&Array> = outputs.iter().collect();
            recording.record(&values, &outputs, 1).expect("records")
        };
        // Nobody waits: several runs are on their way.
        results.push((tokens, evaluation, next));
        if run % 7 == 3 {
            // What is evaluated in between does not disturb.
            let x = array(&random.units(64), &[2, 32]);
            let gated = silu_mul(&x).expect("fits");
            start([&gated]).expect("starts");
        }
    }
    assert!(recording.is_complete());
    for (tokens, evaluation, next) in results {
        evaluation.wait().expect("runs");
        assert_eq!(to_vec_i32(&tokens[0]).expect("reads"), next);
    }
    eval([&table]).expect("runs");
    assert_eq!(to_vec_i32(&table).expect("reads"), expected);
}

/// Layers of a model of some rows. With CUDA kernels start before those in front of them have ended,
/// and on the CPU results take the places of those that are not needed any more.
fn layers(numbers: &Array, weights: &[Array; 4]) -> Array {
    let [norm, up, down, vocabulary] = weights;
    let mut x = rows(vocabulary, numbers).expect("fits");
    let mut h = rms_norm(&x, norm, 1e-6).expect("fits");
    for _ in 0..LAYERS {
        let gate_up = linear(&h, up, None).expect("fits");
        let y = linear(&silu_mul(&gate_up).expect("fits"), down, None).expect("fits");
        (h, x) = add_rms_norm(&y, &x, norm, 1e-6).expect("fits");
    }
    argmax(&linear(&h, vocabulary, None).expect("fits")).expect("fits")
}

const LAYERS: usize = 12;
const WIDTH: usize = 256;
const VOCABULARY: usize = 1000;

#[test]
fn kernels_of_a_recording_wait_for_those_before_them() {
    for num_rows in [1, ROWS] {
        record_layers(num_rows);
    }
}

fn record_layers(num_rows: usize) {
    let Some(mut recording) = recording(num_rows) else {
        return;
    };
    let mut random = Random::new(61);
    let mut weight = |shape: &[usize], scale: f32| {
        let len = shape.iter().product();
        let values: Vec<f32> = random.units(len).iter().map(|v| v * scale).collect();
        array(&values, shape)
            .as_dtype(Dtype::Bfloat16)
            .expect("casts")
    };
    let weights = [
        weight(&[WIDTH], 1.0),
        weight(&[8 * WIDTH, WIDTH], 0.1),
        weight(&[WIDTH, 4 * WIDTH], 0.1),
        weight(&[VOCABULARY, WIDTH], 1.0),
    ];
    let mut results = Vec::new();
    for run in 0..30 {
        let tokens = (0..num_rows).map(|_| int(random.below(VOCABULARY)));
        let values: Vec<i32> = tokens.collect();
        let numbers = upload(&values, &[int(num_rows)]).expect("fits");
        let alone = layers(&numbers, &weights);
        rehearse().expect("MLX has its stream");
        start([&alone]).expect("starts");
        if run < 2 {
            continue;
        }
        let begun = if recording.is_complete() {
            recording.replay(&values).expect("runs")
        } else {
            let tokens = layers(recording.numbers(), &weights);
            let begun = recording.record(&values, &[&tokens], 1);
            begun.expect("records")
        };
        results.push((begun, alone));
    }
    assert!(recording.is_complete());
    let results: Vec<_> = results
        .into_iter()
        .map(|((results, evaluation), alone)| {
            evaluation.wait().expect("runs");
            (to_vec_i32(&results[0]).expect("reads"), i32s(&alone))
        })
        .collect();
    assert!(results.iter().any(|(result, _)| *result != results[0].0));
    for (result, alone) in &results {
        assert_eq!(result, alone);
    }
}

/// With CUDA: what is not at hand is taken while it is recorded, 61 MB, which no other test here uses.
/// On the CPU: not all of the nodes are kernels of this crate.
#[test]
fn what_cannot_be_recorded_has_its_result() {
    let Some(mut recording) = recording(WIDTH) else {
        return;
    };
    let column = array(&[0.001; 60_000], &[60_000, 1]);
    let outputs = |numbers: &Array| {
        let row = numbers.as_dtype(Dtype::Float32).expect("casts");
        let row = row.reshape(&[1, int(WIDTH)]).expect("has as many");
        let gated = silu_mul(&row.multiply(&column).expect("fits")).expect("fits");
        let sums = gated.sum_axes(&[0], false).expect("sums");
        sums.as_dtype(Dtype::Int32).expect("casts")
    };
    let values: Vec<i32> = (0..int(WIDTH)).collect();
    let recorded = outputs(recording.numbers());
    let (results, evaluation) = recording.record(&values, &[&recorded], 1).expect("records");
    evaluation.wait().expect("runs");
    assert!(!recording.is_complete());
    let alone = i32s(&outputs(&upload(&values, &[int(WIDTH)]).expect("fits")));
    assert!(alone.iter().any(|v| *v != alone[0]), "{alone:?}");
    assert_eq!(to_vec_i32(&results[0]).expect("reads"), alone);
}

#[test]
fn what_depends_on_the_time_is_not_recorded() {
    if recording_kind().expect("MLX says") != Some(RecordingKind::Calls) {
        return;
    }
    let mut recording = recording(1).expect("the CPU records");
    let table = array(&[3.0, 5.0], &[2, 1]);
    let read = rows(&table, recording.numbers()).expect("fits");
    let later = delay(&read, Instant::now()).expect("fits");
    let token = argmax(&later).expect("fits");
    recording.record(&[1], &[&token], 1).expect("runs");
    assert!(!recording.is_complete());
}

#[test]
fn a_part_is_a_place_in_the_same_memory() {
    let whole = upload(&(0..24).collect::<Vec<_>>(), &[24]).expect("fits");
    let middle = part(&whole, 6, &[3, 4]).expect("is there");
    assert_eq!(middle.shape(), [3, 4]);
    let sum = middle.sum_axes(&[1], false).expect("sums");
    eval([&sum]).expect("runs");
    assert_eq!(to_vec_i32(&sum).expect("reads"), [30, 46, 62]);
    part(&whole, 13, &[3, 4]).expect_err("there are 24");
    let later = whole.add(&whole).expect("fits");
    part(&later, 0, &[4]).expect_err("it is not evaluated");
    let floats = array(&[1.0, 2.0, 3.0, 4.0], &[4]);
    let last = part(&floats, 2, &[2]).expect("is there");
    assert_eq!(f32s(&last.add(&last).expect("fits")), [6.0, 8.0]);
}
