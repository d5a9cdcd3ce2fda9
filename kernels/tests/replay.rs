//! Launches that are recorded and run again, where that can be: with CUDA. Elsewhere there is no
//! recording, and parts of arrays are all that is left of it.

mod support;

use metal_rpc_kernels::{
    Recording, can_record, gather_slots, part, rehearse, reserve, silu_mul, to_vec_i32, upload,
    write_slots,
};
use mlx_rs::{Array, Dtype, transforms::async_eval};
use support::{Random, array, f32s, int};

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
