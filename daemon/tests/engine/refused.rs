//! What is refused, and that nobody else notices.

use metal_rpc_protocol::{
    CreateCache, ErrorCode, ErrorReply, Exec, GrammarBitmask, NewBlocks, PromptLogprobTokenIds,
    Reply, SamplingParams, ThinkingBudget,
};
use metald::engine::EngineRequest;

use super::support::*;

/// Why a step is refused that follows a valid one; the session ends, another one does not notice.
#[test]
fn a_step_that_breaks_a_rule_ends_its_session_alone() {
    let tokens = prompt(7, 6);
    let new = |handle, tokens: &[i32]| Exec {
        new_requests: vec![open_request(handle, tokens, 1, greedy())],
        ..Exec::default()
    };
    let with_row = |exec: Exec, row: (u32, u32, u32)| Exec {
        handles: vec![row.0],
        num_computed_tokens: vec![row.1],
        num_scheduled_tokens: vec![row.2],
        ..exec
    };
    let bad_blocks = |block_ids: Vec<Vec<u32>>| {
        let mut step = with_row(new(1, &tokens), (1, 0, 6));
        step.new_requests[0].block_ids = block_ids;
        step
    };
    let mut no_prompt = with_row(new(1, &tokens), (1, 0, 6));
    no_prompt.new_requests[0].num_prompt_tokens = 7;
    let short_mask = GrammarBitmask {
        rows: vec![0],
        bitmask: vec![0].into(),
    };
    let asks = |change: &dyn Fn(&mut SamplingParams)| {
        let mut step = with_row(new(1, &tokens), (1, 0, 6));
        change(&mut step.new_requests[0].sampling_params);
        step
    };
    let scores = |start, num_columns, entries| {
        asks(&|params| {
            params.prompt_logprob_token_ids = Some(PromptLogprobTokenIds {
                start,
                num_columns,
                token_ids: vec![1; entries].into(),
            });
        })
    };
    let no_phrase = asks(&|params| {
        params.thinking_budget = Some(ThinkingBudget {
            max_tokens: 3,
            start_token_ids: vec![1],
            natural_end_token_ids: vec![],
            end_token_ids: vec![2],
        });
    });
    let bad_trace = asks(&|params| params.trace_decode_token_ids = Some(vec![5, 64]));
    let cases: Vec<(Exec, &str)> = vec![
        (no_phrase, "a thinking budget without the tokens"),
        (bad_trace, "token 1 of the trace"),
        (
            scores(2, 2, 5),
            "names 5 tokens of its prompt to score, 3 rows of 2",
        ),
        (
            scores(5, 2, 0),
            "names 0 tokens of its prompt to score, 0 rows of 2",
        ),
        (
            scores(0, 0, 0),
            "names 0 tokens of its prompt to score, 5 rows of 0",
        ),
        (scores(u32::MAX, u32::MAX, 1), "0 rows of 4294967295"),
        (exec(&[(3, 0, 1)]), "handle 3 is not known"),
        (exec(&[(900, 0, 1)]), "handle 900 is not known"),
        (exec(&[(0, 6, 1), (0, 7, 1)]), "handle 0 stands twice"),
        (exec(&[(0, 6, 0)]), "runs no token"),
        (exec(&[(0, 6, 2)]), "runs tokens 6..8, but only 7 are known"),
        (exec(&[(0, u32::MAX, 2)]), "but only 7 are known"),
        (
            Exec {
                finished: vec![2],
                ..Exec::default()
            },
            "handle 2 is not known",
        ),
        (
            Exec {
                num_computed_tokens: vec![],
                ..exec(&[(0, 6, 1)])
            },
            "num_computed_tokens has 0",
        ),
        (
            Exec {
                num_scheduled_tokens: vec![1, 1],
                ..exec(&[(0, 6, 1)])
            },
            "num_scheduled_tokens has 2",
        ),
        (
            exec(&[(0, 6, 1); 5]),
            "5 requests, max_num_seqs of this session is 4",
        ),
        (
            Exec {
                block_copies: vec![(1, 2)],
                ..exec(&[(0, 6, 1)])
            },
            "copying",
        ),
        (
            Exec {
                new_blocks: vec![NewBlocks {
                    row: 1,
                    block_ids: vec![vec![3]],
                }],
                ..exec(&[(0, 6, 1)])
            },
            "row 1 is named by new_blocks",
        ),
        (
            Exec {
                new_blocks: vec![NewBlocks {
                    row: 0,
                    block_ids: vec![],
                }],
                ..exec(&[(0, 6, 1)])
            },
            "0 KV-cache groups",
        ),
        (
            with_row(new(9, &tokens), (9, 0, 6)),
            "handle 9 is not below 8",
        ),
        (
            with_row(new(1, &[0; 65]), (1, 0, 64)),
            "65 tokens, max_model_len of this session is 64",
        ),
        (with_row(new(1, &[5, 64]), (1, 0, 2)), "token 1 of request"),
        (with_row(new(1, &[-1]), (1, 0, 1)), "token 0 of request"),
        (no_prompt, "7 prompt tokens of 6"),
        (
            bad_blocks(vec![vec![1, 40]]),
            "block 40 is not below the 40 blocks",
        ),
        (bad_blocks(vec![vec![1, 0]]), "block 0 is the null block"),
        (bad_blocks(vec![vec![1]]), "needs 2 blocks, its table has 1"),
        (
            with_row(bad_blocks(vec![vec![30, 31]]), (1, 4, 2)),
            "block 30 was never written",
        ),
        (
            Exec {
                grammar: Some(short_mask.clone()),
                ..exec(&[(0, 6, 1)])
            },
            "1 words, 1 rows of this vocabulary have 2",
        ),
        (
            Exec {
                grammar: Some(short_mask),
                sample_follows: true,
                ..exec(&[(0, 6, 1)])
            },
            "follows in a message of its own",
        ),
    ];
    let engine = engine();
    let mut bystander = Frontend::ready(&engine, 0, 0.5);
    let expected = generate_alone(&mut bystander, (0, 1), &tokens, &greedy(), (64, 4));
    for (id, (bad, message)) in (1..).zip(cases) {
        let mut frontend = Frontend::ready(&engine, id, 0.9);
        let first = with_row(new(0, &tokens), (0, 0, 6));
        frontend.step(first).expect("the first step is valid");
        let error = frontend.step(bad).expect_err(message);
        assert_eq!(
            error.code,
            ErrorCode::InvalidStep,
            "{message}: {}",
            error.message
        );
        assert!(
            error.message.contains(message),
            "{message:?} is not in {:?}",
            error.message
        );
        frontend.close();
        assert_eq!(
            generate_alone(&mut bystander, (0, 1), &tokens, &greedy(), (64, 4)),
            expected
        );
    }
    engine.stop();
}

#[test]
fn what_comes_out_of_order_or_does_not_fit_is_refused_and_the_session_goes_on() {
    let engine = engine();
    let mut frontend = Frontend::open(&engine, 0);
    let code = |result: Result<Reply, ErrorReply>| result.expect_err("it is refused").code;
    assert_eq!(
        code(frontend.ask(EngineRequest::Exec(exec(&[])))),
        ErrorCode::OutOfOrder
    );
    assert_eq!(code(frontend.ask(reserve(0.5))), ErrorCode::OutOfOrder);
    assert_eq!(
        code(frontend.ask(frontend.create_cache())),
        ErrorCode::OutOfOrder
    );
    assert_eq!(
        code(frontend.ask(load_model("no-such-model"))),
        ErrorCode::ModelNotFound
    );
    frontend
        .load("llama-tied")
        .expect("a failed load may be tried again");
    assert_eq!(
        code(frontend.ask(load_model("llama-tied"))),
        ErrorCode::OutOfOrder
    );
    assert_eq!(
        code(frontend.ask(frontend.create_cache())),
        ErrorCode::OutOfMemory
    );
    assert_eq!(code(frontend.ask(reserve(0.0))), ErrorCode::OutOfMemory);
    frontend.ask(reserve(0.5)).expect("there is memory");
    let groups = EngineRequest::CreateCache(CreateCache {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
        groups: vec![vec![0]],
    });
    assert_eq!(code(frontend.ask(groups)), ErrorCode::Unsupported);
    frontend
        .ask(frontend.create_cache())
        .expect("it is less than was reserved");
    assert_eq!(
        generate_alone(&mut frontend, (0, 1), &prompt(1, 5), &greedy(), (64, 2)).len(),
        2
    );

    // What one holds, another cannot have.
    let mut other = Frontend::open(&engine, 1);
    other.load("llama-tied").expect("it is loaded already");
    let error = other
        .ask(reserve(1e-6))
        .expect_err("that is less than the other one holds");
    assert_eq!(error.code, ErrorCode::OutOfMemory);
    assert!(error.message.contains("frontend 0"), "{}", error.message);
    engine.stop();
}
