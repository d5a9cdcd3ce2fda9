//! A step that fails is known to have failed, and no other one is.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use metal_rpc_kernels::{
    Evaluation, Recording, delay, eval, gather_slots, linear, start, to_vec_i32,
};
use mlx_rs::{Array, Dtype};
use support::{array, array_i32, reports_values};

const STEP: Duration = Duration::from_millis(50);

fn begin(output: &Array) -> Evaluation {
    start([output]).expect("starts")
}

/// A step that takes its time, and fails after it if there is no such slot.
fn step(slot: i32) -> Array {
    let slots = array(&[0.0], &[1]);
    let slots = delay(&slots, Instant::now() + STEP).expect("a float");
    let slots = slots.as_dtype(Dtype::Int32).expect("cast") + array_i32(&[slot]);
    gather_slots(&array_i32(&[5, 6, 7]), &slots).expect("fits")
}

fn message(evaluation: Evaluation) -> String {
    let error = evaluation.wait().expect_err("there is no such slot");
    error.to_string()
}

#[test]
fn a_failure_is_that_of_its_evaluation_alone() {
    if !reports_values() {
        return;
    }
    let results = [step(1), step(3), step(2), step(-1), step(0)];
    let [first, second, third, fourth, fifth] = results.each_ref().map(begin);
    first.wait().expect("nothing is wrong with it");
    assert!(message(second).contains("slot 3 is not in a table of 3"));
    third.wait().expect("nothing is wrong with it");
    assert!(message(fourth).contains("slot -1 is not in a table of 3"));
    fifth.wait().expect("nothing is wrong with it");
    for (result, token) in [(0, 6), (2, 7), (4, 5)] {
        assert_eq!(to_vec_i32(&results[result]).expect("reads"), [token]);
    }
}

#[test]
fn a_failure_is_known_although_the_next_step_was_built_upon_it() {
    if !reports_values() {
        return;
    }
    let wrong = step(3);
    let evaluation = begin(&wrong);
    // It has failed by now, or fails while the next one is built: MLX tells one of both.
    for wait in [Duration::ZERO, 2 * STEP] {
        thread::sleep(wait);
        let zeros = &wrong - &wrong;
        let next = gather_slots(&array_i32(&[5, 6, 7]), &zeros).expect("fits");
        eval([&next]).expect("it reads garbage, and that is all");
        assert_eq!(to_vec_i32(&next).expect("reads"), [5]);
    }
    assert!(message(evaluation).contains("slot 3"));
}

/// What MLX itself cannot compute: a singular matrix has no inverse.
#[test]
fn a_failure_of_mlx_is_known_although_the_next_step_was_built_upon_it() {
    if !reports_values() {
        return;
    }
    let singular = array(&[0.0; 4], &[2, 2]);
    let inverse = mlx_rs::linalg::inv(&singular).expect("a square");
    let evaluation = begin(&inverse);
    let next = linear(&inverse, &singular, None).expect("fits");
    // It is told too, unless the other one has failed by now.
    let _ = eval([&next]);
    assert!(evaluation.wait().is_err());
}

#[test]
fn a_recorded_step_fails_alone_too() {
    if !reports_values() {
        return;
    }
    let table = array_i32(&[5, 6, 7]);
    let mut recording = Recording::new(1).expect("has memory").expect("the CPU has");
    let outputs = gather_slots(&table, recording.numbers()).expect("fits");
    let (_, evaluation) = recording.record(&[2], &[&outputs], 1).expect("runs");
    evaluation.wait().expect("nothing is wrong with it");
    assert!(recording.is_complete());
    let runs = [1, 3, 0].map(|slot| recording.replay(&[slot]).expect("starts"));
    let [(first, first_run), (_, second_run), (third, third_run)] = runs;
    first_run.wait().expect("nothing is wrong with it");
    assert!(message(second_run).contains("slot 3"));
    third_run.wait().expect("nothing is wrong with it");
    assert_eq!(to_vec_i32(&first[0]).expect("reads"), [6]);
    assert_eq!(to_vec_i32(&third[0]).expect("reads"), [5]);
}

/// A step for which there is no memory says nothing of the one in front of it.
#[test]
fn a_step_that_cannot_start_fails_alone() {
    if !reports_values() {
        return;
    }
    let result = step(1);
    let evaluation = begin(&result);
    let huge = mlx_rs::ops::ones::<f32>(&[1 << 30, 1 << 16]).expect("a node");
    assert!(start([&huge]).is_err());
    evaluation.wait().expect("nothing is wrong with it");
    assert_eq!(to_vec_i32(&result).expect("reads"), [6]);
}
