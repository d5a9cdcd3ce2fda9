//! Memory that is not there is an error of whoever asked for it, and of nobody after.

use metal_rpc_kernels::{KernelError, is_out_of_memory, linear, reserve, to_vec_f32};
use mlx_rs::ops::ones;
use mlx_rs::{Array, Dtype, transforms::eval};

/// Of f32, more than the address space of a process.
const ROWS: i32 = 1 << 30;
const COLUMNS: i32 = 1 << 16;

fn check_out_of_memory(array: &Array) {
    let error = eval([array]).expect_err("there is no such memory");
    assert!(is_out_of_memory(&error), "{error}");
    assert!(KernelError::from(error).is_out_of_memory());
    let one = ones::<f32>(&[3]).expect("a few bytes");
    let sum = one.add(&one).expect("their shapes fit");
    eval([&sum]).expect("it has nothing to do with the other");
    assert_eq!(to_vec_f32(&sum).expect("it is computed"), [2.0; 3]);
}

#[test]
fn a_node_of_mlx_without_memory_is_an_error() {
    for _ in 0..3 {
        check_out_of_memory(&ones::<f32>(&[ROWS, COLUMNS]).expect("nothing is computed yet"));
    }
}

#[test]
fn a_kernel_without_memory_is_an_error() {
    let weight = reserve(&[ROWS, 1], Dtype::Float32).expect("address space");
    let x = reserve(&[COLUMNS, 1], Dtype::Float32).expect("address space");
    check_out_of_memory(&linear(&x, &weight, None).expect("their shapes fit"));
}
