//! `metald bench rpc`: where the time of a step goes that no model spends.
//!
//! A daemon whose model computes nothing answers a frontend in this process. Encoding and decoding
//! are also timed alone, on the bytes of the very steps that were sent.

use std::io::Write;
use std::time::{Duration, Instant};

use metal_rpc_protocol::{
    CreateCache, Exec, Reply, ReplyEnvelope, Request, RequestEnvelope, SamplingParams,
    SessionToken, StepResult, decode_reply, decode_request, encode_reply, encode_request,
};
use serde::Serialize;

use super::BenchError;
use super::checkpoint;
use super::client::{Client, groups, load_model};
use super::flags::RpcFlags;
use super::own_daemon::OwnDaemon;
use super::statistics::{median, quantile};
use super::workload::{Shape, Workload};

/// Tokens of each prompt; they do not matter.
const PROMPT: u32 = 16;
/// Steps before anything counts.
const WARM_UP: usize = 50;

/// What a step of one number of requests takes, in microseconds.
#[derive(Debug, Serialize)]
struct Row {
    /// Requests of the step.
    requests: u32,
    /// Bytes of an `Exec` in which no request enters a new block, and of its result.
    exec_bytes: usize,
    result_bytes: usize,
    /// `Exec` to bytes, in the frontend.
    encode_us: f64,
    /// Bytes to `Exec`, in the daemon.
    decode_us: f64,
    /// `StepResult` to bytes, in the daemon.
    reply_encode_us: f64,
    /// Bytes to `StepResult`, in the frontend.
    reply_decode_us: f64,
    /// A `Ping` and its `Pong`: both sockets, both ways, and the dispatcher.
    ping_us_p50: f64,
    ping_us_p99: f64,
    /// One step at a time, from before it is encoded until its result is decoded.
    step_us_p50: f64,
    step_us_p99: f64,
    /// The part of it that the daemon says: from arrival to the engine's turn, ...
    queue_us_p50: f64,
    /// ... and from there to the tokens: checking, building, the model that does nothing, sampling.
    run_us_p50: f64,
    /// Two steps in flight, from result to result.
    pipelined_us_p50: f64,
    pipelined_us_p99: f64,
}

/// Measures and prints.
///
/// # Errors
/// [`BenchError`].
pub fn run(flags: &RpcFlags) -> Result<(), BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let daemon = OwnDaemon::start_null(&flags.daemon, flags.step_us)?;
    let model = daemon.folder().join("model");
    checkpoint::write_config("tiny", &model)?;
    for requests in &flags.requests {
        let row = runtime.block_on(measure(flags, &daemon, *requests))?;
        let line = if flags.json {
            serde_json::to_string(&row).expect("plain numbers")
        } else {
            row.text()
        };
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(())
}

async fn measure(flags: &RpcFlags, daemon: &OwnDaemon, num_reqs: u32) -> Result<Row, BenchError> {
    let steps = flags.steps.div_ceil(2) + u32::try_from(WARM_UP).expect("a few");
    let mut client = Client::connect(&daemon.endpoint).await?;
    let limits = (PROMPT + 2 * steps + 1, num_reqs, PROMPT * num_reqs);
    let load = load_model(&daemon.folder().join("model"), "bfloat16", limits);
    let loaded = client.load(load).await?;
    let shape = Shape {
        num_reqs,
        prompt_len: PROMPT,
        decode_len: 2 * steps,
        block_size: 16,
        max_num_batched_tokens: PROMPT * num_reqs,
        vocab_size: loaded.vocab_size,
        num_groups: 1,
        sampling_params: greedy(),
    };
    let create = CreateCache {
        num_blocks: shape.num_blocks(),
        block_size: 16,
        groups: groups(&loaded.kv_cache_specs),
    };
    client
        .create_cache(flags.daemon.memory_fraction, create)
        .await?;
    let pings = pings(&mut client, flags.steps).await?;
    let mut workload = Workload::new(shape, 1);
    client.run(workload.prefill()).await?;
    let mut decode: Vec<Exec> = workload.decode().collect();
    let pipelined = decode.split_off(steps as usize);
    // Requests are within a block here.
    let sample = decode[1].clone();
    let seen = one_by_one(&mut client, decode).await?;
    let arrived = client.run(pipelined).await?;
    let between = arrived[WARM_UP..]
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at);
    let pipelined: Vec<f64> = between.map(micros).collect();
    client.run([workload.finish()]).await?;
    client.goodbye().await?;
    let codec = Codec::measure(sample, arrived.into_iter().next().map(|first| first.result));
    let p50 = |values: fn(&Seen) -> f64| median(&seen.iter().map(values).collect::<Vec<_>>());
    let step: Vec<f64> = seen.iter().map(|seen| seen.step).collect();
    Ok(Row {
        requests: num_reqs,
        exec_bytes: codec.exec_bytes,
        result_bytes: codec.result_bytes,
        encode_us: codec.encode,
        decode_us: codec.decode,
        reply_encode_us: codec.reply_encode,
        reply_decode_us: codec.reply_decode,
        ping_us_p50: median(&pings),
        ping_us_p99: quantile(&pings, 0.99),
        step_us_p50: median(&step),
        step_us_p99: quantile(&step, 0.99),
        queue_us_p50: p50(|seen| seen.queue),
        run_us_p50: p50(|seen| seen.run),
        pipelined_us_p50: median(&pipelined),
        pipelined_us_p99: quantile(&pipelined, 0.99),
    })
}

/// What vLLM's engine core is measured with, too.
fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

async fn pings(client: &mut Client, count: u32) -> Result<Vec<f64>, BenchError> {
    let mut times = Vec::new();
    for _ in 0..count {
        let sent = Instant::now();
        client.ping().await?;
        times.push(micros(sent.elapsed()));
    }
    Ok(times.split_off(WARM_UP.min(times.len() / 2)))
}

/// A step that nothing overlaps with, in microseconds.
#[derive(Debug)]
struct Seen {
    step: f64,
    queue: f64,
    run: f64,
}

async fn one_by_one(client: &mut Client, steps: Vec<Exec>) -> Result<Vec<Seen>, BenchError> {
    let mut seen = Vec::new();
    for step in steps {
        let sent = Instant::now();
        for arrived in client.run([step]).await? {
            seen.push(Seen {
                step: micros(arrived.at - sent),
                queue: arrived.result.queue_us.into(),
                run: arrived.result.run_us.into(),
            });
        }
    }
    Ok(seen.split_off(WARM_UP))
}

/// What writing and reading a step and its result takes, in microseconds.
#[derive(Debug)]
struct Codec {
    exec_bytes: usize,
    result_bytes: usize,
    encode: f64,
    decode: f64,
    reply_encode: f64,
    reply_decode: f64,
}

impl Codec {
    fn measure(exec: Exec, result: Option<StepResult>) -> Self {
        let request = RequestEnvelope {
            session: Some(SessionToken([7; 16])),
            seq: 70_000,
            request: Request::Exec(exec),
        };
        let reply = ReplyEnvelope {
            seq: 70_000,
            reply: Reply::StepResult(result.unwrap_or_default()),
        };
        let (sent, answered) = (encode_request(&request), encode_reply(&reply));
        Self {
            exec_bytes: sent.len(),
            result_bytes: answered.len(),
            encode: timed(|| encode_request(&request)),
            decode: timed(|| decode_request(&sent)),
            reply_encode: timed(|| encode_reply(&reply)),
            reply_decode: timed(|| decode_reply(&answered)),
        }
    }
}

/// The median time of a call, in microseconds.
fn timed<T>(call: impl Fn() -> T) -> f64 {
    let times: Vec<f64> = (0..1000)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(call());
            micros(start.elapsed())
        })
        .collect();
    median(&times)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl Row {
    fn text(&self) -> String {
        format!(
            "{:4} requests ({} and {} bytes): encode {:.1}, decode {:.1}, reply encode {:.1}, \
             decode {:.1}; ping p50 {:.0} p99 {:.0}; step p50 {:.0} p99 {:.0}, of it waiting {:.0} \
             and running {:.0}; pipelined p50 {:.0} p99 {:.0} us",
            self.requests,
            self.exec_bytes,
            self.result_bytes,
            self.encode_us,
            self.decode_us,
            self.reply_encode_us,
            self.reply_decode_us,
            self.ping_us_p50,
            self.ping_us_p99,
            self.step_us_p50,
            self.step_us_p99,
            self.queue_us_p50,
            self.run_us_p50,
            self.pipelined_us_p50,
            self.pipelined_us_p99
        )
    }
}
