//! Forwards that fail: memory that is not there, a device that gives up. Sessions that had no part in
//! it come back and get their tokens.

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use metal_rpc_kernels::{gather_slots, reserve as reserve_array};
use metal_rpc_protocol::{ErrorCode, Exec, KvCacheSpec, Scope};
use metald::engine::EngineConfig;
use metald::kv_cache::KvCache;
use metald::models::{
    Checkpoints, ForwardInput, LoadOptions, Loader, Model, ModelArgs, ModelError,
};
use mlx_rs::ops::ones;
use mlx_rs::{Array, Dtype};

use super::machine::Machine;
use super::support::*;

const TURN_TOKENS: u32 = 8;
/// So many logits at once go wrong.
const MOST_ROWS: i32 = 2;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The step needs more memory than a process can have.
    Memory,
    /// A kernel fails while it runs.
    Device,
}

impl Fault {
    /// A number that cannot be computed.
    fn number(self) -> Result<Array, ModelError> {
        Ok(match self {
            Self::Memory => ones::<f32>(&[1 << 30, 1 << 16])?.sum_axes(&[0, 1], false)?,
            Self::Device => {
                let table = reserve_array(&[4], Dtype::Int32)?;
                gather_slots(&table, &Array::from_slice(&[4], &[1]))?.as_dtype(Dtype::Float32)?
            }
        })
    }
}

/// A real model that cannot compute the logits of more than [`MOST_ROWS`] rows.
#[derive(Debug)]
struct Faulty(Box<dyn Model>, Fault);

impl Model for Faulty {
    fn args(&self) -> &ModelArgs {
        self.0.args()
    }

    fn kv_cache_specs(&self) -> Vec<KvCacheSpec> {
        self.0.kv_cache_specs()
    }

    fn weights_bytes(&self) -> u64 {
        self.0.weights_bytes()
    }

    fn forward(&self, input: &ForwardInput, kv_cache: &mut KvCache) -> Result<Array, ModelError> {
        self.0.forward(input, kv_cache)
    }

    fn logits(&self, hidden: &Array) -> Result<Array, ModelError> {
        let logits = self.0.logits(hidden)?;
        if hidden.shape()[0] <= MOST_ROWS {
            return Ok(logits);
        }
        Ok(logits.add(self.1.number()?)?)
    }
}

#[derive(Debug)]
struct FaultyCheckpoints(Fault);

impl Loader for FaultyCheckpoints {
    fn load(&self, folder: &Path, options: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError> {
        let model = Checkpoints.load(folder, options)?;
        Ok(Box::new(Faulty(model, self.0)))
    }
}

fn faulty(fault: Fault) -> EngineConfig {
    EngineConfig {
        models: Arc::new(FaultyCheckpoints(fault)),
        ..config(TURN_TOKENS)
    }
}

/// The first step of `count` requests of a token each.
fn open_many(count: u32) -> Exec {
    let requests = 0..count;
    let open = |handle: u32| open_request(handle, &[7], 1 + 9 * handle, greedy());
    Exec {
        new_requests: requests.clone().map(open).collect(),
        ..exec(&requests.map(|handle| (handle, 0, 1)).collect::<Vec<_>>())
    }
}

fn check_refused(machine: &mut Machine, id: u32, code: ErrorCode) {
    let error = machine
        .reply(id)
        .expect("it is answered")
        .expect_err("it fails");
    assert_eq!(
        (error.code, error.scope),
        (code, Scope::Session),
        "{}",
        error.message
    );
}

fn run_to_the_end(machine: &mut Machine) {
    while machine.complete() {}
}

#[test]
fn a_forward_without_memory_fails_again_for_its_cause_alone() {
    let mut alone = Machine::new(config(TURN_TOKENS), &[1]);
    alone.step(0, open_and_run(4));
    run_to_the_end(&mut alone);
    let expected = alone.result(0).expect("it is answered").token_ids;

    let mut machine = Machine::new(faulty(Fault::Memory), &[1, 1]);
    machine.steps(vec![(0, open_and_run(4)), (1, open_many(4))]);
    for id in 0..2 {
        check_refused(&mut machine, id, ErrorCode::OutOfMemory);
    }
    // Both come back with the same.
    machine.open(2, 1);
    machine.open(3, 1);
    machine.steps(vec![(2, open_and_run(4)), (3, open_many(4))]);
    run_to_the_end(&mut machine);
    check_refused(&mut machine, 3, ErrorCode::OutOfMemory);
    assert_eq!(
        machine.result(2).expect("it is answered").token_ids,
        expected
    );
}

#[test]
fn a_forward_that_was_built_behind_one_that_fails_is_whole() {
    let mut alone = Machine::new(config(TURN_TOKENS), &[1]);
    alone.step(0, open_and_run(4));
    run_to_the_end(&mut alone);
    let expected = alone.result(0).expect("it is answered").token_ids;

    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        let mut machine = Machine::new(faulty(Fault::Device), &[1, 1]);
        machine.step(0, open_many(4));
        // It is about to fail, or it has failed, and nobody has looked.
        sleep(wait);
        machine.step(1, open_and_run(4));
        machine.step(0, exec(&[(0, 1, 1)]));
        run_to_the_end(&mut machine);
        check_refused(&mut machine, 0, ErrorCode::StepFailed);
        assert!(
            machine.reply(0).is_none(),
            "what was built upon it is worth nothing"
        );
        let result = machine.result(1).expect("it is answered");
        assert_eq!(result.token_ids, expected);
    }
}

#[test]
fn a_step_that_lost_a_part_of_itself_to_the_device_fails_too() {
    let mut machine = Machine::new(faulty(Fault::Device), &[1, 1]);
    // The prompt is not done when the other's step ends, and fails.
    machine.steps(vec![(0, open_and_run(30)), (1, open_many(4))]);
    assert!(machine.complete());
    for id in 0..2 {
        check_refused(&mut machine, id, ErrorCode::StepFailed);
    }
    // The device goes on.
    machine.open(2, 1);
    machine.step(2, open_and_run(30));
    run_to_the_end(&mut machine);
    assert!(machine.result(2).is_some());
}

#[test]
fn a_step_whose_logits_are_lost_does_not_wait_for_its_grammar() {
    let mut machine = Machine::new(faulty(Fault::Device), &[1, 1]);
    let held = Exec {
        sample_follows: true,
        ..open_and_run(4)
    };
    machine.steps(vec![(0, held), (1, open_many(4))]);
    assert!(machine.complete());
    for id in 0..2 {
        check_refused(&mut machine, id, ErrorCode::StepFailed);
    }
}
