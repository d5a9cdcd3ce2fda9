//! The daemon gives no memory away that it has not: what the system counts is what counts.

use metal_rpc_kernels::footprint_bytes;
use metal_rpc_protocol::{ErrorCode, ErrorReply, Reply};
use metald::device::MemoryBudget;
use metald::engine::{EngineConfig, EngineHandle};

use super::support::*;

fn engine_that_may_take(limit_bytes: u64) -> EngineHandle {
    let memory = MemoryBudget {
        total_bytes: 1 << 40,
        limit_bytes,
    };
    let config = EngineConfig {
        memory,
        ..config(64)
    };
    EngineHandle::start(config).expect("the CPU can be used")
}

fn refused(result: Result<Reply, ErrorReply>) -> String {
    let error = result.expect_err("there is no memory");
    assert_eq!(error.code, ErrorCode::OutOfMemory, "{}", error.message);
    error.message
}

#[test]
fn a_daemon_that_takes_all_it_may_loads_nothing() {
    let engine = engine_that_may_take(1 << 20);
    let mut frontend = Frontend::open(&engine, 0);
    let message = refused(frontend.ask(load_model("llama-tied")));
    assert!(message.contains("the daemon takes"), "{message}");
    engine.stop();
}

#[test]
fn memory_that_the_daemon_took_otherwise_is_not_granted() {
    const MEBIBYTE: u64 = 1 << 20;
    let before = footprint_bytes().expect("the system says");
    let engine = engine_that_may_take(before + 500 * MEBIBYTE);
    let mut frontend = Frontend::open(&engine, 0);
    frontend.load("llama-tied").expect("there is memory");
    let taken = std::hint::black_box(vec![1_u8; 700 << 20]);
    let message = refused(frontend.ask(reserve(1.0)));
    assert!(message.contains("VLLM_METAL_MEMORY_FRACTION"), "{message}");
    drop(taken);
    let reply = frontend.ask(reserve(1.0)).expect("it was given back");
    let Reply::MemoryReserved(reserved) = reply else {
        panic!("{} is no answer to ReserveMemory", reply.name());
    };
    // Other tests of this process take and give back some meanwhile.
    assert!(
        reserved.available_bytes < 600 * MEBIBYTE,
        "{}",
        reserved.available_bytes
    );
    frontend
        .ask(frontend.create_cache())
        .expect("it is less than that");
    engine.stop();
}
