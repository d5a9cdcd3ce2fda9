//! What is told of the tokens of a prompt, and tokens that are not drawn.

use metal_rpc_protocol::{
    Exec, I32Array, PromptLogprobTokenIds, SamplingParams, StepResult, ThinkingBudget,
};

use super::support::*;

/// The results of the steps that run a prompt in chunks; the request is closed behind them.
fn run_prompt(
    frontend: &mut Frontend<'_>,
    tokens: &[i32],
    params: &SamplingParams,
    chunk: usize,
) -> Vec<StepResult> {
    let mut computed = 0;
    let mut new = vec![open_request(0, tokens, 1, params.clone())];
    let mut results = Vec::new();
    for part in tokens.chunks(chunk) {
        let len = u32::try_from(part.len()).expect("a few");
        let step = Exec {
            new_requests: std::mem::take(&mut new),
            ..exec(&[(0, computed, len)])
        };
        results.push(frontend.step(step).expect("it is valid"));
        computed += len;
    }
    let finished = Exec {
        finished: vec![0],
        ..Exec::default()
    };
    frontend.step(finished).expect("it is known");
    results
}

#[test]
fn prompt_logprobs_come_once_and_are_the_same_in_chunks() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let tokens = prompt(6, 11);
    let params = SamplingParams {
        prompt_logprobs: Some(2),
        ..greedy()
    };
    let mut reports = Vec::new();
    for chunk in [11, 4] {
        let mut results = run_prompt(&mut frontend, &tokens, &params, chunk);
        let last = results.pop().expect("there is a chunk");
        assert!(
            results
                .iter()
                .all(|result| result.prompt_logprobs.is_empty())
        );
        assert!(last.prompt_token_id_logprobs.is_empty());
        let logprobs = last.prompt_logprobs[0].logprobs.clone();
        assert_eq!(logprobs.num_columns, 3);
        let own: Vec<i32> = logprobs.token_ids.0.chunks(3).map(|row| row[0]).collect();
        assert_eq!(own, tokens[1..], "column 0 is the prompt's own token");
        reports.push(logprobs);
    }
    assert_eq!(reports[0], reports[1]);
    engine.stop();
}

#[test]
fn named_tokens_of_a_prompt_score_what_the_whole_vocabulary_does() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let tokens = prompt(6, 11);
    let start = 3;
    // Two tokens and a pad for what follows each of the positions 3 to 9.
    let asked: Vec<i32> = (0..7).flat_map(|i| [i * 9, 63 - i, -1]).collect();
    let params = SamplingParams {
        prompt_logprobs: Some(-1),
        prompt_logprob_token_ids: Some(PromptLogprobTokenIds {
            start,
            num_columns: 3,
            token_ids: I32Array(asked.clone()),
        }),
        ..greedy()
    };
    for chunk in [11, 4, 2] {
        let mut results = run_prompt(&mut frontend, &tokens, &params, chunk);
        let last = results.pop().expect("there is a chunk");
        let is_silent = |result: &StepResult| result.prompt_token_id_logprobs.is_empty();
        assert!(results.iter().all(is_silent), "chunks of {chunk}");
        let all = &last.prompt_logprobs[0].logprobs;
        let columns = all.num_columns as usize;
        let expected: Vec<f32> = (0..)
            .zip(&asked)
            .map(|(cell, id)| {
                let row = (start as usize + cell / 3) * columns;
                let ids = &all.token_ids.0[row + 1..row + columns];
                let place = ids.iter().position(|other| other == id);
                place.map_or(f32::NEG_INFINITY, |i| all.logprobs.0[row + 1 + i])
            })
            .collect();
        let [scores] = &last.prompt_token_id_logprobs[..] else {
            panic!("one request asked: {:?}", last.prompt_token_id_logprobs);
        };
        assert_eq!((scores.row, scores.num_columns), (0, 3));
        assert_eq!(scores.logprobs.0, expected, "chunks of {chunk}");
    }
    engine.stop();
}

#[test]
fn a_trace_is_followed_and_the_request_goes_on_by_itself() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let tokens = prompt(2, 7);
    let traced = SamplingParams {
        trace_decode_token_ids: Some(vec![60, 61]),
        ..greedy()
    };
    let longer: Vec<i32> = tokens.iter().chain(&[60, 61]).copied().collect();
    let expected = generate_alone(&mut frontend, (0, 1), &longer, &greedy(), (64, 4));
    let answer = generate_alone(&mut frontend, (0, 1), &tokens, &traced, (64, 6));
    assert_eq!(answer[..2], [60, 61]);
    assert_eq!(answer[2..], expected);
    // Its scores are the model's, of the token that it was given.
    let scored = SamplingParams {
        logprobs: Some(0),
        ..traced
    };
    let results = run_prompt(&mut frontend, &tokens, &scored, 64);
    let scores = results[0].logprobs.as_ref().expect("asked for");
    assert_eq!(scores.token_ids.0, [60]);
    assert!(scores.logprobs.0[0] < 0.0);
    assert!(scores.ranks.0[0] > 1, "the model would not have said it");
    engine.stop();
}

#[test]
fn a_spent_thinking_budget_ends_the_thought() {
    let engine = engine();
    let mut frontend = Frontend::ready(&engine, 0, 0.5);
    let tokens = prompt(2, 7);
    for params in [greedy(), seeded()] {
        let free = generate_alone(&mut frontend, (0, 1), &tokens, &params, (64, 6));
        let end = [62, 63];
        assert!(!free.contains(&end[0]));
        // The prompt's last token begins the thought.
        let start = tokens[6].cast_unsigned();
        for max_tokens in [0, 1, 3] {
            let bound = SamplingParams {
                thinking_budget: Some(ThinkingBudget {
                    max_tokens,
                    start_token_ids: vec![start],
                    natural_end_token_ids: vec![63],
                    end_token_ids: vec![62, 63],
                }),
                ..params.clone()
            };
            let answer = generate_alone(&mut frontend, (0, 1), &tokens, &bound, (64, 6));
            let thought = max_tokens as usize;
            assert_eq!(answer[..thought], free[..thought]);
            assert_eq!(answer[thought..thought + 2], end, "budget {max_tokens}");
        }
    }
    engine.stop();
}
