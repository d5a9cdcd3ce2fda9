//! The same request gets the same tokens, however it is run and whoever runs beside it.

use std::collections::VecDeque;

use metal_rpc_protocol::{Exec, GrammarBitmask, Sample};
use metald::engine::EngineRequest;

use super::support::*;

#[test]
fn a_request_gets_the_same_tokens_alone_in_chunks_in_a_batch_and_pipelined() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let prompts: Vec<Vec<i32>> = [5, 9, 1, 16]
        .iter()
        .zip(1..)
        .map(|(len, seed)| prompt(seed, *len))
        .collect();
    let params = [greedy(), seeded(), greedy(), seeded()];
    let alone: Vec<Vec<i32>> = prompts
        .iter()
        .zip(&params)
        .map(|(tokens, params)| generate_alone(&mut frontend, (0, 1), tokens, params, (64, 8)))
        .collect();
    for chunk in [1, 3, 4] {
        for ((tokens, params), expected) in prompts.iter().zip(&params).zip(&alone) {
            let chunked = generate_alone(&mut frontend, (1, 9), tokens, params, (chunk, 8));
            assert_eq!(&chunked, expected, "in chunks of {chunk}");
        }
    }

    // All four together, and each step sent before the result of the one before is read.
    let mut first = exec(&[]);
    for (handle, (tokens, params)) in (0..).zip(prompts.iter().zip(&params)) {
        first
            .new_requests
            .push(open_request(handle, tokens, 1 + 8 * handle, params.clone()));
        first.handles.push(handle);
        first.num_computed_tokens.push(0);
        first
            .num_scheduled_tokens
            .push(u32::try_from(tokens.len()).expect("a few"));
    }
    let lens = first.num_scheduled_tokens.clone();
    let mut batched = vec![Vec::new(); 4];
    let mut in_flight = VecDeque::from([frontend.send(EngineRequest::Exec(first))]);
    for step in 0..8 {
        if step < 7 {
            let rows: Vec<_> = (0..)
                .zip(&lens)
                .map(|(handle, len)| (handle, len + step, 1))
                .collect();
            in_flight.push_back(frontend.send(EngineRequest::Exec(exec(&rows))));
        }
        let (seq, reply) = frontend.receive();
        assert_eq!(
            Some(seq),
            in_flight.pop_front(),
            "replies come in the order of the steps"
        );
        for (tokens, token) in batched
            .iter_mut()
            .zip(step_result(reply.expect("it is valid")).token_ids.0)
        {
            tokens.push(token);
        }
    }
    assert_eq!(batched, alone);
    engine.stop();
}

#[test]
fn two_frontends_with_the_same_block_numbers_do_not_see_each_other() {
    let engine = engine();
    let mut a = Frontend::ready(&engine, 0, 0.3);
    let mut b = Frontend::ready(&engine, 1, 0.6);
    let (prompt_a, prompt_b) = (prompt(3, 10), prompt(4, 7));
    let alone_a = generate_alone(&mut a, (0, 1), &prompt_a, &greedy(), (64, 6));
    let alone_b = generate_alone(&mut b, (0, 1), &prompt_b, &greedy(), (64, 6));
    assert_ne!(alone_a, alone_b);

    // In turns, with the same handles and blocks.
    let mut step_a = Exec {
        new_requests: vec![open_request(0, &prompt_a, 1, greedy())],
        ..exec(&[(0, 0, 10)])
    };
    let mut step_b = Exec {
        new_requests: vec![open_request(0, &prompt_b, 1, greedy())],
        ..exec(&[(0, 0, 7)])
    };
    let (mut tokens_a, mut tokens_b) = (Vec::new(), Vec::new());
    for step in 0..6 {
        a.send(EngineRequest::Exec(step_a));
        b.send(EngineRequest::Exec(step_b));
        tokens_a.extend(step_result(a.receive().1.expect("it is valid")).token_ids.0);
        tokens_b.extend(step_result(b.receive().1.expect("it is valid")).token_ids.0);
        step_a = exec(&[(0, 10 + step, 1)]);
        step_b = exec(&[(0, 7 + step, 1)]);
    }
    assert_eq!((tokens_a, tokens_b), (alone_a, alone_b));

    // When one leaves, its blocks go back and the other goes on.
    b.close();
    let again = generate_alone(&mut a, (1, 20), &prompt_a, &greedy(), (64, 6));
    assert_eq!(again.len(), 6);
    let status = status(&engine);
    assert_eq!(status.sessions.len(), 1);
    assert_eq!(status.models[0].sessions, 1);
    engine.stop();
}

#[test]
fn a_grammar_binds_the_token_whether_it_comes_with_the_step_or_after_it() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let only = |token: usize| {
        let mut bitmask = vec![0_i32; VOCAB_SIZE.div_ceil(32)];
        bitmask[token / 32] |= 1 << (token % 32);
        GrammarBitmask {
            rows: vec![0],
            bitmask: bitmask.into(),
        }
    };
    let tokens = prompt(5, 6);
    let first = Exec {
        new_requests: vec![open_request(0, &tokens, 1, seeded())],
        grammar: Some(only(37)),
        ..exec(&[(0, 0, 6)])
    };
    assert_eq!(frontend.step(first).expect("it is valid").token_ids.0, [37]);
    let exec_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 6, 1)])
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq,
        grammar: Some(only(13)),
    }));
    let (seq, reply) = frontend.receive();
    assert_eq!(seq, exec_seq);
    assert_eq!(step_result(reply.expect("it is valid")).token_ids.0, [13]);

    // Sent at once: the grammar may arrive while its step still waits for its turn.
    let exec_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 7, 1)])
    }));
    let next_seq = frontend.send(EngineRequest::Exec(Exec {
        sample_follows: true,
        ..exec(&[(0, 8, 1)])
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq,
        grammar: Some(only(3)),
    }));
    frontend.send(EngineRequest::Sample(Sample {
        exec_seq: next_seq,
        grammar: Some(only(4)),
    }));
    for expected in [3, 4] {
        assert_eq!(
            step_result(frontend.receive().1.expect("it is valid"))
                .token_ids
                .0,
            [expected]
        );
    }
    engine.stop();
}
