//! Launches that are recorded and run again, where that can be: with CUDA. Elsewhere there is no
//! recording, and parts of arrays are all that is left of it.

mod support;

use metal_rpc_kernels::{
    Recording, add_rms_norm, can_record, gather_slots, linear, part, rehearse, reserve, rms_norm,
    silu_mul, to_vec_i32, upload, write_slots,
};
use mlx_rs::{Array, Dtype, transforms::async_eval};
use support::{Random, array, f32s, i32s, int};

const ROWS: usize = 5;
/// Places that are read, places that are written, numbers that are added.
const NUMBERS: usize = 3 * ROWS;

/// Reads a table at places, adds numbers, writes the sums at other places.
fn outputs(table: &mut Array, numbers: &Array) -> Vec<Array> {
    let place = |index: usize| part(numbers, index * ROWS, &[int(ROWS)]).expect("has parts");
    let read = gather_slots(table, &place(0)).expect("fits");
    let sums = read.add(place(2)).expect("fits");
    write_slots(table, &sums, &place(1)).expect("fits");
    vec![sums, table.clone()]
}

fn numbers(random: &mut Random, table_len: usize) -> Vec<i32> {
    let mut places: Vec<i32> = (0..int(table_len)).collect();
    random.shuffle(&mut places);
    places.truncate(2 * ROWS);
    places.extend((0..ROWS).map(|_| int(random.below(1000))));
    places
}

#[test]
fn a_recording_does_with_other_numbers_what_it_was_recorded_for() {
    let mut random = Random::new(60);
    let table_len = 64;
    let mut expected = vec![0; table_len];
    let mut table = reserve(&[64], Dtype::Int32).expect("reserves");
    if !can_record().expect("MLX says") {
        assert!(Recording::new(NUMBERS).expect("MLX says").is_none());
        return;
    }
    let mut recording = Recording::new(NUMBERS).expect("has memory").expect("CUDA");
    let mut results = Vec::new();
    for run in 0..40 {
        let values = numbers(&mut random, table_len);
        let sums: Vec<i32> = (0..ROWS)
            .map(|row| {
                let read = usize::try_from(values[row]).expect("a place");
                expected[read] + values[2 * ROWS + row]
            })
            .collect();
        for (row, sum) in sums.iter().enumerate() {
            expected[usize::try_from(values[ROWS + row]).expect("a place")] = *sum;
        }
        let tokens = if run < 2 {
            let numbers = upload(&values, &[int(NUMBERS)]).expect("fits");
            let outputs = outputs(&mut table, &numbers);
            rehearse().expect("MLX has its stream");
            async_eval(&outputs).expect("submits");
            outputs[0].clone()
        } else if recording.is_complete() {
            recording.replay(&values).expect("runs").remove(0)
        } else {
            let outputs = outputs(&mut table, recording.numbers());
            let outputs: Vec<&Array> = outputs.iter().collect();
            recording
                .record(&values, &outputs, 1)
                .expect("records")
                .remove(0)
        };
        // Nobody waits: several runs are on their way.
        results.push((tokens, sums));
        if run % 7 == 3 {
            // What is evaluated in between does not disturb.
            let x = array(&random.units(64), &[2, 32]);
            async_eval([&silu_mul(&x).expect("fits")]).expect("submits");
        }
    }
    assert!(recording.is_complete());
    for (tokens, sums) in &results {
        assert_eq!(to_vec_i32(tokens).expect("reads"), *sums);
    }
    table.eval().expect("runs");
    assert_eq!(to_vec_i32(&table).expect("reads"), expected);
}

/// Layers of a model of one row, whose kernels start before those in front of them have ended.
fn layers(numbers: &Array, weights: &[Array; 4]) -> Vec<Array> {
    let [norm, up, down, scale] = weights;
    let x = numbers.as_dtype(Dtype::Float32).expect("casts");
    let mut x = x.as_dtype(Dtype::Bfloat16).expect("casts");
    x = x.reshape(&[1, int(WIDTH)]).expect("has as many");
    let mut h = rms_norm(&x, norm, 1e-6).expect("fits");
    for _ in 0..LAYERS {
        let gate_up = linear(&h, up, None).expect("fits");
        let y = linear(&silu_mul(&gate_up).expect("fits"), down, None).expect("fits");
        (h, x) = add_rms_norm(&y, &x, norm, 1e-6).expect("fits");
    }
    let scaled = h.multiply(scale).expect("fits");
    vec![scaled.as_dtype(Dtype::Int32).expect("casts")]
}

const LAYERS: usize = 12;
const WIDTH: usize = 768;

#[test]
fn kernels_of_a_recording_wait_for_those_before_them() {
    if !can_record().expect("MLX says") {
        return;
    }
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
        array(&[1000.0], &[1]),
    ];
    let mut recording = Recording::new(WIDTH).expect("has memory").expect("CUDA");
    let mut results = Vec::new();
    for run in 0..30 {
        let values: Vec<i32> = (0..WIDTH).map(|_| int(random.below(200)) - 100).collect();
        let numbers = upload(&values, &[int(WIDTH)]).expect("fits");
        let alone = layers(&numbers, &weights).remove(0);
        rehearse().expect("MLX has its stream");
        async_eval([&alone]).expect("submits");
        if run < 2 {
            continue;
        }
        let result = if recording.is_complete() {
            recording.replay(&values).expect("runs").remove(0)
        } else {
            let outputs = layers(recording.numbers(), &weights);
            let outputs: Vec<&Array> = outputs.iter().collect();
            recording
                .record(&values, &outputs, 1)
                .expect("records")
                .remove(0)
        };
        results.push((result, alone));
    }
    assert!(recording.is_complete());
    for (result, alone) in &results {
        let alone = i32s(alone);
        assert!(alone.iter().any(|v| *v != alone[0]), "{alone:?}");
        assert_eq!(to_vec_i32(result).expect("reads"), alone);
    }
}

/// What is not at hand is taken while it is recorded: 61 MB, which no other test here uses.
#[test]
fn a_recording_that_takes_memory_from_the_system_has_its_result() {
    if !can_record().expect("MLX says") {
        return;
    }
    let column = array(&[0.001; 20_000], &[20_000, 1]);
    let outputs = |numbers: &Array| {
        let row = numbers.as_dtype(Dtype::Float32).expect("casts");
        let row = row.reshape(&[1, int(WIDTH)]).expect("has as many");
        let gated = silu_mul(&row.multiply(&column).expect("fits")).expect("fits");
        let sums = gated.sum_axes(&[0], false).expect("sums");
        sums.as_dtype(Dtype::Int32).expect("casts")
    };
    let values: Vec<i32> = (0..int(WIDTH)).collect();
    let mut recording = Recording::new(WIDTH).expect("has memory").expect("CUDA");
    let recorded = outputs(recording.numbers());
    let results = recording.record(&values, &[&recorded], 1).expect("records");
    let alone = i32s(&outputs(&upload(&values, &[int(WIDTH)]).expect("fits")));
    assert!(alone.iter().any(|v| *v != alone[0]), "{alone:?}");
    assert_eq!(to_vec_i32(&results[0]).expect("reads"), alone);
}

#[test]
fn a_part_is_a_place_in_the_same_memory() {
    let whole = upload(&(0..24).collect::<Vec<_>>(), &[24]).expect("fits");
    let middle = part(&whole, 6, &[3, 4]).expect("is there");
    assert_eq!(middle.shape(), [3, 4]);
    let sum = middle.sum_axes(&[1], false).expect("sums");
    sum.eval().expect("runs");
    assert_eq!(to_vec_i32(&sum).expect("reads"), [30, 46, 62]);
    part(&whole, 13, &[3, 4]).expect_err("there are 24");
    let later = whole.add(&whole).expect("fits");
    part(&later, 0, &[4]).expect_err("it is not evaluated");
    let floats = array(&[1.0, 2.0, 3.0, 4.0], &[4]);
    let last = part(&floats, 2, &[2]).expect("is there");
    assert_eq!(f32s(&last.add(&last).expect("fits")), [6.0, 8.0]);
}
