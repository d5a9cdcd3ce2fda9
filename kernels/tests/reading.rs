//! Results are waited for and read on a thread that has no stream, and gets none by that. The only
//! test of its process, because it counts threads.

mod support;

use std::{fs, thread};

use metal_rpc_kernels::{eval, linear, start, to_vec_f32, to_vec_i32};
use support::{array, array_i32};

#[cfg(target_os = "linux")]
fn num_threads() -> usize {
    fs::read_dir("/proc/self/task").expect("procfs").count()
}

#[test]
#[cfg(target_os = "linux")]
fn another_thread_waits_and_reads_without_a_stream() {
    let weight = array(&vec![1.0; 512 * 512], &[512, 512]);
    let mut y = array(&vec![1.0; 64 * 512], &[64, 512]);
    // The first kernel starts the workers, and the first operation the stream.
    eval([&linear(&y, &weight, None).expect("fits")]).expect("runs");
    let before = num_threads();
    for _ in 0..20 {
        y = linear(&y, &weight, None).expect("fits") * array(&[1.0 / 512.0], &[1]);
    }
    assert!(
        to_vec_f32(&y).is_err(),
        "an array that nobody computes must not be waited for"
    );
    let evaluation = start([&y]).expect("starts");
    let other = thread::spawn(move || {
        evaluation.wait().expect("is computed");
        let values = to_vec_f32(&y).expect("reads");
        (values, num_threads())
    });
    let (values, during) = other.join().expect("reads");
    assert_eq!(values, vec![1.0; 64 * 512]);
    assert!(
        during <= before + 1,
        "reading made {} threads",
        during - before - 1
    );
    let tokens = array_i32(&[3, 1, 2]);
    assert_eq!(to_vec_i32(&tokens).expect("reads"), [3, 1, 2]);
    assert!(to_vec_f32(&tokens).is_err());
}
