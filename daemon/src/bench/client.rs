//! One session over the socket, as a frontend has it.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use metal_rpc_protocol::limits::MAX_STEPS_IN_FLIGHT;
use metal_rpc_protocol::{
    CacheCreated, CreateCache, Exec, Hello, KvCacheSpec, LoadModel, ModelLoaded, PROTOCOL_VERSION,
    Reply, ReplyEnvelope, Request, RequestEnvelope, ReserveMemory, ServedStatus, SessionToken,
    StepResult, decode_reply, encode_request,
};
use tokio::time::timeout;

use super::BenchError;
use crate::endpoint::Endpoint;
use crate::socket::Dealer;

/// A session.
#[derive(Debug)]
pub(super) struct Client {
    socket: Dealer,
    session: Option<SessionToken>,
    seq: u64,
    heartbeat: Duration,
    /// When the daemon last heard of it.
    sent: Instant,
}

/// A result and when it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    /// When.
    pub(super) at: Instant,
    /// What.
    pub(super) result: StepResult,
}

impl Client {
    /// Connects and says hello.
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self, BenchError> {
        let mut client = Self {
            socket: Dealer::connect(endpoint).await?,
            session: None,
            seq: 0,
            heartbeat: Duration::from_secs(5),
            sent: Instant::now(),
        };
        let hello = Hello {
            min_protocol_version: PROTOCOL_VERSION,
            max_protocol_version: PROTOCOL_VERSION,
            vllm_version: String::new(),
            frontend: "metald bench".to_owned(),
            pid: std::process::id(),
            weight: 1,
        };
        match client.ask(Request::Hello(hello)).await? {
            Reply::Welcome(welcome) => {
                client.session = welcome.session.as_array().copied().map(SessionToken);
                client.heartbeat = Duration::from_millis(welcome.heartbeat_ms.into());
                Ok(client)
            }
            other => Err(BenchError::Unexpected(other.name())),
        }
    }

    /// Loads a model.
    pub(super) async fn load(&mut self, load: LoadModel) -> Result<ModelLoaded, BenchError> {
        match self.ask(Request::LoadModel(load)).await? {
            Reply::ModelLoaded(loaded) => Ok(loaded),
            other => Err(BenchError::Unexpected(other.name())),
        }
    }

    /// Reserves `memory_fraction` of the memory and creates a cache in it.
    pub(super) async fn create_cache(
        &mut self,
        memory_fraction: f64,
        create: CreateCache,
    ) -> Result<CacheCreated, BenchError> {
        let reserve = ReserveMemory { memory_fraction };
        match self.ask(Request::ReserveMemory(reserve)).await? {
            Reply::MemoryReserved(_) => {}
            other => return Err(BenchError::Unexpected(other.name())),
        }
        match self.ask(Request::CreateCache(create)).await? {
            Reply::CacheCreated(created) => Ok(created),
            other => Err(BenchError::Unexpected(other.name())),
        }
    }

    /// Runs steps one after the other, as many in flight as a session may have.
    pub(super) async fn run(
        &mut self,
        steps: impl IntoIterator<Item = Exec>,
    ) -> Result<Vec<Arrived>, BenchError> {
        let mut in_flight = VecDeque::new();
        let mut arrived = Vec::new();
        for step in steps {
            if in_flight.len() == MAX_STEPS_IN_FLIGHT {
                arrived.push(self.result(in_flight.pop_front()).await?);
            }
            in_flight.push_back(self.send(Request::Exec(step)).await?);
        }
        while let Some(seq) = in_flight.pop_front() {
            arrived.push(self.result(Some(seq)).await?);
        }
        Ok(arrived)
    }

    /// What the daemon has done since it started. Asks until the engine has the time to answer.
    pub(super) async fn served(&mut self) -> Result<ServedStatus, BenchError> {
        loop {
            match self.ask(Request::Status).await? {
                Reply::StatusReport(report) if report.engine_us.is_some() => {
                    return Ok(report.served);
                }
                Reply::StatusReport(_) => {}
                other => return Err(BenchError::Unexpected(other.name())),
            }
        }
    }

    /// Asks for nothing; returns when that is answered.
    pub(super) async fn ping(&mut self) -> Result<(), BenchError> {
        let seq = self.send(Request::Ping).await?;
        loop {
            let envelope = decode_reply(&self.socket.receive().await?)?;
            match envelope.reply {
                Reply::Error(error) => return Err(BenchError::Refused(error)),
                _ if envelope.seq == seq => return Ok(()),
                _ => {}
            }
        }
    }

    /// Takes leave.
    pub(super) async fn goodbye(mut self) -> Result<(), BenchError> {
        self.ask(Request::Goodbye).await.map(|_| ())
    }

    async fn result(&mut self, seq: Option<u64>) -> Result<Arrived, BenchError> {
        let ReplyEnvelope {
            seq: answered,
            reply,
        } = self.receive().await?;
        let at = Instant::now();
        assert_eq!(Some(answered), seq, "results come in the order of steps");
        match reply {
            Reply::StepResult(mut result) => match result.row_errors.pop() {
                None => Ok(Arrived { at, result }),
                Some(error) => Err(BenchError::Row(error)),
            },
            other => Err(BenchError::Unexpected(other.name())),
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Reply, BenchError> {
        self.send(request).await?;
        Ok(self.receive().await?.reply)
    }

    /// Sends a request; returns its number.
    async fn send(&mut self, request: Request) -> Result<u64, BenchError> {
        self.seq += 1;
        let envelope = RequestEnvelope {
            session: self.session,
            seq: self.seq,
            request,
        };
        self.socket.send(encode_request(&envelope)).await?;
        self.sent = Instant::now();
        Ok(self.seq)
    }

    /// The next reply that answers something. Keeps the session alive while it waits.
    async fn receive(&mut self) -> Result<ReplyEnvelope, BenchError> {
        loop {
            // News of a load is no reason to fall silent.
            let silence = self.heartbeat.saturating_sub(self.sent.elapsed());
            let Ok(bytes) = timeout(silence, self.socket.receive()).await else {
                self.send(Request::Ping).await?;
                continue;
            };
            let envelope = decode_reply(&bytes?)?;
            match envelope.reply {
                Reply::Pong | Reply::LoadProgress(_) => {}
                Reply::Error(error) => return Err(BenchError::Refused(error)),
                _ => return Ok(envelope),
            }
        }
    }
}

/// What is asked of a model at `path`, for `max_num_seqs` requests of `max_model_len` tokens.
pub(super) fn load_model(path: &Path, dtype: &str, limits: (u32, u32, u32)) -> LoadModel {
    let (max_model_len, max_num_seqs, max_num_batched_tokens) = limits;
    LoadModel {
        path: path.display().to_string(),
        dtype: dtype.to_owned(),
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens,
        logprobs_mode: "raw_logprobs".to_owned(),
    }
}

/// The layers of each KV-cache group: those with the same window share one.
pub(super) fn groups(specs: &[KvCacheSpec]) -> Vec<Vec<u32>> {
    let mut groups: Vec<(Option<u32>, Vec<u32>)> = Vec::new();
    for (layer, spec) in (0..).zip(specs) {
        match groups
            .iter_mut()
            .find(|(window, _)| *window == spec.sliding_window)
        {
            Some((_, layers)) => layers.push(layer),
            None => groups.push((spec.sliding_window, vec![layer])),
        }
    }
    groups.into_iter().map(|(_, layers)| layers).collect()
}
