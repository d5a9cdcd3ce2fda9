//! Random messages of every kind. Values are arbitrary, not meaningful: the codec knows no meaning.

mod handshake;
mod step;

use metal_rpc_protocol::limits::MAX_REQ_ID_BYTES;
use metal_rpc_protocol::{
    ErrorCode, ErrorReply, KvStatus, ModelStatus, Reply, ReplyEnvelope, Request, RequestEnvelope,
    Scope, ServedStatus, SessionStatus, SessionToken, StatusReport,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) fn request_envelope() -> impl Strategy<Value = RequestEnvelope> {
    let session = option::of(any::<[u8; 16]>().prop_map(SessionToken));
    (session, any::<u64>(), request()).prop_map(|(session, seq, request)| RequestEnvelope {
        session,
        seq,
        request,
    })
}

pub(crate) fn reply_envelope() -> impl Strategy<Value = ReplyEnvelope> {
    (any::<u64>(), reply()).prop_map(|(seq, reply)| ReplyEnvelope { seq, reply })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        handshake::hello().prop_map(Request::Hello),
        handshake::load_model().prop_map(Request::LoadModel),
        handshake::reserve_memory().prop_map(Request::ReserveMemory),
        handshake::create_cache().prop_map(Request::CreateCache),
        step::exec().prop_map(Request::Exec),
        step::sample().prop_map(Request::Sample),
        Just(Request::Ping),
        Just(Request::Goodbye),
        Just(Request::Status),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        handshake::welcome().prop_map(Reply::Welcome),
        handshake::load_progress().prop_map(Reply::LoadProgress),
        handshake::model_loaded().prop_map(Reply::ModelLoaded),
        handshake::memory_reserved().prop_map(Reply::MemoryReserved),
        handshake::cache_created().prop_map(Reply::CacheCreated),
        step::step_result().prop_map(Reply::StepResult),
        Just(Reply::Pong),
        Just(Reply::Farewell),
        status_report().prop_map(Reply::StatusReport),
        error().prop_map(Reply::Error),
    ]
}

fn error() -> impl Strategy<Value = ErrorReply> {
    let code = (1_u16..=14).prop_map(|code| ErrorCode::try_from(code).expect("a code"));
    let scope = (0_u8..=2).prop_map(|scope| Scope::try_from(scope).expect("a scope"));
    (code, scope, text()).prop_map(|(code, scope, message)| ErrorReply {
        code,
        scope,
        message,
    })
}

fn status_report() -> impl Strategy<Value = StatusReport> {
    let restarts = (any::<u64>(), option::of(text()));
    let daemon = (any::<(u32, u64)>(), text(), any::<u64>(), restarts, text());
    let lists = (vec(session_status(), 0..4), vec(model_status(), 0..4));
    let kv = any::<[u64; 3]>().prop_map(|[budget_bytes, granted_bytes, used_bytes]| KvStatus {
        budget_bytes,
        granted_bytes,
        used_bytes,
    });
    let served = any::<[u64; 4]>().prop_map(|[forwards, steps, tokens, submit_us]| ServedStatus {
        forwards,
        steps,
        tokens,
        submit_us,
    });
    let process = (any::<u64>(), option::of(any::<u32>()));
    (daemon, lists, kv, served, process).prop_map(|(daemon, lists, kv, served, process)| {
        let ((sessions, models), (footprint_bytes, engine_us)) = (lists, process);
        let ((pid, epoch), version, uptime_s, (restarts, previous_end), device) = daemon;
        StatusReport {
            pid,
            epoch,
            version,
            uptime_s,
            restarts,
            previous_end,
            device,
            sessions,
            models,
            kv,
            served,
            footprint_bytes,
            engine_us,
        }
    })
}

fn session_status() -> impl Strategy<Value = SessionStatus> {
    let names = (text(), text(), option::of(text()));
    (names, any::<[u32; 5]>(), any::<[u64; 5]>()).prop_map(|(names, small, large)| {
        let (frontend, vllm_version, model) = names;
        let [pid, running_requests, granted_blocks, used_blocks, weight] = small;
        let [reserved_bytes, steps, tokens, silent_ms, lease_left_ms] = large;
        SessionStatus {
            frontend,
            pid,
            vllm_version,
            model,
            running_requests,
            reserved_bytes,
            granted_blocks,
            used_blocks,
            steps,
            tokens,
            weight,
            silent_ms,
            lease_left_ms,
        }
    })
}

fn model_status() -> impl Strategy<Value = ModelStatus> {
    (text(), text(), text(), any::<(u64, u32)>()).prop_map(
        |(path, model_type, dtype, (weights_bytes, sessions))| ModelStatus {
            path,
            model_type,
            dtype,
            weights_bytes,
            sessions,
        },
    )
}

/// Any string, around the lengths where msgpack changes its marker too.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,8}",
        (30_usize..34).prop_map(|length| "a".repeat(length)),
        (254_usize..258).prop_map(|length| "a".repeat(length)),
        Just("a".repeat(MAX_REQ_ID_BYTES)),
    ]
}

fn number() -> impl Strategy<Value = f64> {
    proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::INFINITE
}
