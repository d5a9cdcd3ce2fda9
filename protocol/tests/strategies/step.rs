//! Steps and results.

use metal_rpc_protocol::{
    Exec, F32Array, GrammarBitmask, I32Array, Logprobs, NewBlocks, NewRequest,
    PromptLogprobTokenIds, PromptLogprobs, PromptTokenIdLogprobs, RowError, Sample, SamplingParams,
    StepResult, ThinkingBudget,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{number, text};

pub(super) fn exec() -> impl Strategy<Value = Exec> {
    let requests = (any::<bool>(), ids(), vec(new_request(), 0..3));
    let rows = (ids(), ids(), ids());
    let blocks = (vec(new_blocks(), 0..4), vec(any::<(u32, u32)>(), 0..4));
    (requests, rows, blocks, option::of(grammar())).prop_map(|(requests, rows, blocks, grammar)| {
        let (sample_follows, finished, new_requests) = requests;
        let (handles, num_computed_tokens, num_scheduled_tokens) = rows;
        let (new_blocks, block_copies) = blocks;
        Exec {
            sample_follows,
            finished,
            new_requests,
            handles,
            num_computed_tokens,
            num_scheduled_tokens,
            new_blocks,
            block_copies,
            grammar,
        }
    })
}

pub(super) fn sample() -> impl Strategy<Value = Sample> {
    (any::<u64>(), option::of(grammar()))
        .prop_map(|(exec_seq, grammar)| Sample { exec_seq, grammar })
}

pub(super) fn step_result() -> impl Strategy<Value = StepResult> {
    let lists = (
        vec(prompt_logprobs(), 0..3),
        vec(prompt_token_id_logprobs(), 0..3),
        vec(row_error(), 0..3),
    );
    (integers(), option::of(logprobs()), lists, any::<[u32; 2]>()).prop_map(
        |(token_ids, logprobs, lists, [queue_us, run_us])| {
            let (prompt_logprobs, prompt_token_id_logprobs, row_errors) = lists;
            StepResult {
                token_ids,
                logprobs,
                prompt_logprobs,
                prompt_token_id_logprobs,
                row_errors,
                queue_us,
                run_us,
            }
        },
    )
}

fn new_request() -> impl Strategy<Value = NewRequest> {
    let numbers = any::<[u32; 2]>();
    (numbers, text(), integers(), block_ids(), sampling_params()).prop_map(
        |(numbers, req_id, token_ids, block_ids, sampling_params)| {
            let [handle, num_prompt_tokens] = numbers;
            NewRequest {
                handle,
                req_id,
                token_ids,
                num_prompt_tokens,
                block_ids,
                sampling_params,
            }
        },
    )
}

fn sampling_params() -> impl Strategy<Value = SamplingParams> {
    let reals = [number(), number(), number(), number(), number(), number()];
    let integers = (any::<[u32; 2]>(), option::of(any::<i64>()));
    let lists = (ids(), vec((any::<u32>(), number()), 0..4), vec(ids(), 0..4));
    let optional_lists = (option::of(ids()), option::of(ids()), option::of(ids()));
    let counts = any::<(Option<i32>, Option<i32>)>();
    let scored = option::of(prompt_logprob_token_ids());
    let thinking = option::of(thinking_budget());
    let scored = (counts, scored, thinking);
    (reals, integers, lists, optional_lists, scored).prop_map(
        |(reals, integers, lists, optional_lists, scored)| {
            let [
                temperature,
                top_p,
                min_p,
                presence_penalty,
                frequency_penalty,
                repetition_penalty,
            ] = reals;
            let ([top_k, min_tokens], seed) = integers;
            let (stop_token_ids, logit_bias, bad_words_token_ids) = lists;
            let (allowed_token_ids, logprob_token_ids, trace_decode_token_ids) = optional_lists;
            let ((logprobs, prompt_logprobs), prompt_logprob_token_ids, thinking_budget) = scored;
            SamplingParams {
                temperature,
                top_p,
                top_k,
                min_p,
                seed,
                presence_penalty,
                frequency_penalty,
                repetition_penalty,
                min_tokens,
                stop_token_ids,
                logit_bias,
                allowed_token_ids,
                bad_words_token_ids,
                logprobs,
                prompt_logprobs,
                logprob_token_ids,
                thinking_budget,
                prompt_logprob_token_ids,
                trace_decode_token_ids,
            }
        },
    )
}

fn thinking_budget() -> impl Strategy<Value = ThinkingBudget> {
    (any::<u32>(), ids(), ids(), ids()).prop_map(
        |(max_tokens, start_token_ids, natural_end_token_ids, end_token_ids)| ThinkingBudget {
            max_tokens,
            start_token_ids,
            natural_end_token_ids,
            end_token_ids,
        },
    )
}

fn prompt_logprob_token_ids() -> impl Strategy<Value = PromptLogprobTokenIds> {
    (any::<[u32; 2]>(), integers()).prop_map(|([start, num_columns], token_ids)| {
        PromptLogprobTokenIds {
            start,
            num_columns,
            token_ids,
        }
    })
}

fn new_blocks() -> impl Strategy<Value = NewBlocks> {
    (any::<u32>(), block_ids()).prop_map(|(row, block_ids)| NewBlocks { row, block_ids })
}

fn grammar() -> impl Strategy<Value = GrammarBitmask> {
    (ids(), integers()).prop_map(|(rows, bitmask)| GrammarBitmask { rows, bitmask })
}

fn logprobs() -> impl Strategy<Value = Logprobs> {
    (any::<u32>(), integers(), reals(), integers()).prop_map(
        |(num_columns, token_ids, logprobs, ranks)| Logprobs {
            num_columns,
            token_ids,
            logprobs,
            ranks,
        },
    )
}

fn prompt_logprobs() -> impl Strategy<Value = PromptLogprobs> {
    (any::<u32>(), logprobs()).prop_map(|(row, logprobs)| PromptLogprobs { row, logprobs })
}

fn prompt_token_id_logprobs() -> impl Strategy<Value = PromptTokenIdLogprobs> {
    (any::<[u32; 2]>(), reals()).prop_map(|([row, num_columns], logprobs)| PromptTokenIdLogprobs {
        row,
        num_columns,
        logprobs,
    })
}

fn row_error() -> impl Strategy<Value = RowError> {
    (any::<u32>(), text()).prop_map(|(row, message)| RowError { row, message })
}

fn block_ids() -> impl Strategy<Value = Vec<Vec<u32>>> {
    vec(ids(), 0..3)
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    vec(any::<u32>(), 0..20)
}

fn reals() -> impl Strategy<Value = F32Array> {
    let real = proptest::num::f32::NORMAL | proptest::num::f32::INFINITE;
    vec(real, 0..70).prop_map(F32Array)
}

fn integers() -> impl Strategy<Value = I32Array> {
    vec(any::<i32>(), 0..70).prop_map(I32Array)
}
