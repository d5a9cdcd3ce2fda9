//! One example of each message, and two steps more: what `golden/` holds and the tests mutate.

mod handshake;
mod step;

use metal_rpc_protocol::{
    CodecError, ErrorCode, ErrorReply, KvStatus, ModelStatus, Reply, ReplyEnvelope, Request,
    RequestEnvelope, Scope, ServedStatus, SessionStatus, SessionToken, StatusReport, decode_reply,
    decode_request, encode_reply, encode_request,
};

/// A message in either direction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// From a frontend.
    Request(RequestEnvelope),
    /// From the daemon.
    Reply(ReplyEnvelope),
}

impl Message {
    /// The bytes on the wire.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Request(envelope) => encode_request(envelope),
            Self::Reply(envelope) => encode_reply(envelope),
        }
    }

    /// Reads bytes as a message of the same direction.
    pub(crate) fn decode_alike(&self, bytes: &[u8]) -> Result<Self, CodecError> {
        match self {
            Self::Request(_) => decode_request(bytes).map(Self::Request),
            Self::Reply(_) => decode_reply(bytes).map(Self::Reply),
        }
    }
}

/// All examples with their names: `Request::Hello` is `hello`, a second `Exec` is
/// `exec_every_field`.
pub(crate) fn examples() -> Vec<(&'static str, Message)> {
    let mut examples = requests();
    examples.extend(replies());
    examples
}

fn requests() -> Vec<(&'static str, Message)> {
    let in_session = |seq, request| {
        let session = Some(SessionToken(*b"0123456789abcdef"));
        Message::Request(RequestEnvelope {
            session,
            seq,
            request,
        })
    };
    let alone = |request| {
        Message::Request(RequestEnvelope {
            session: None,
            seq: 1,
            request,
        })
    };
    vec![
        ("hello", alone(Request::Hello(handshake::hello()))),
        (
            "load_model",
            in_session(2, Request::LoadModel(handshake::load_model())),
        ),
        (
            "reserve_memory",
            in_session(3, Request::ReserveMemory(handshake::reserve_memory())),
        ),
        (
            "create_cache",
            in_session(4, Request::CreateCache(handshake::create_cache())),
        ),
        ("exec", in_session(5, Request::Exec(step::exec()))),
        (
            "exec_every_field",
            in_session(70_000, Request::Exec(step::exec_every_field())),
        ),
        (
            "exec_decode_64",
            in_session(71_234, Request::Exec(step::exec_decode_64())),
        ),
        ("sample", in_session(6, Request::Sample(step::sample()))),
        ("ping", in_session(7, Request::Ping)),
        ("goodbye", in_session(8, Request::Goodbye)),
        ("status", alone(Request::Status)),
    ]
}

fn replies() -> Vec<(&'static str, Message)> {
    let to = |seq, reply| Message::Reply(ReplyEnvelope { seq, reply });
    vec![
        ("welcome", to(1, Reply::Welcome(handshake::welcome()))),
        (
            "load_progress",
            to(2, Reply::LoadProgress(handshake::load_progress())),
        ),
        (
            "model_loaded",
            to(2, Reply::ModelLoaded(handshake::model_loaded())),
        ),
        (
            "memory_reserved",
            to(3, Reply::MemoryReserved(handshake::memory_reserved())),
        ),
        (
            "cache_created",
            to(4, Reply::CacheCreated(handshake::cache_created())),
        ),
        (
            "step_result",
            to(70_000, Reply::StepResult(step::step_result())),
        ),
        ("pong", to(7, Reply::Pong)),
        ("farewell", to(8, Reply::Farewell)),
        ("status_report", to(1, Reply::StatusReport(status_report()))),
        ("error", to(5, Reply::Error(error()))),
    ]
}

fn status_report() -> StatusReport {
    StatusReport {
        pid: 4211,
        epoch: 0xfedc_ba98_7654_3210,
        version: "0.1.0".to_owned(),
        uptime_s: 3600,
        restarts: 2,
        previous_end: Some("step_timeout".to_owned()),
        device: "cpu".to_owned(),
        sessions: vec![
            SessionStatus {
                frontend: "api-1".to_owned(),
                pid: 4300,
                vllm_version: "0.33.0".to_owned(),
                model: Some("/models/smollm2-135m".to_owned()),
                running_requests: 12,
                reserved_bytes: 754_974_720,
                granted_blocks: 2048,
                used_blocks: 96,
                steps: 51_300,
                tokens: 611_000,
                weight: 2,
                silent_ms: 3,
                lease_left_ms: 7997,
            },
            SessionStatus {
                frontend: "api-2".to_owned(),
                pid: 4301,
                vllm_version: "0.33.0".to_owned(),
                model: None,
                running_requests: 0,
                reserved_bytes: 0,
                granted_blocks: 0,
                used_blocks: 0,
                steps: 0,
                tokens: 0,
                weight: 1,
                silent_ms: 1200,
                lease_left_ms: 6800,
            },
        ],
        models: vec![ModelStatus {
            path: "/models/smollm2-135m".to_owned(),
            model_type: "llama".to_owned(),
            dtype: "bfloat16".to_owned(),
            weights_bytes: 269_060_000,
            sessions: 1,
        }],
        kv: KvStatus {
            budget_bytes: 7_730_941_132,
            granted_bytes: 754_974_720,
            used_bytes: 35_389_440,
        },
        served: ServedStatus {
            forwards: 50_120,
            steps: 51_300,
            tokens: 611_000,
            submit_us: 37_200_000,
        },
        footprint_bytes: 612_368_384,
        engine_us: Some(85),
    }
}

fn error() -> ErrorReply {
    ErrorReply {
        code: ErrorCode::InvalidStep,
        scope: Scope::Session,
        message: "row 0 names handle 9, which no request of this session has".to_owned(),
    }
}
