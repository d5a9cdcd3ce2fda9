//! Prefill and decode rates of a daemon, seen from the other side of its socket.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metal_rpc_protocol::{CreateCache, ModelLoaded, ServedStatus};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::BenchError;
use super::client::{Arrived, Client, groups, load_model};
use super::flags::ServeBenchFlags;
use super::own_daemon::OwnDaemon;
use super::statistics::{median, quantile};
use super::workload::{Shape, Workload};
use crate::endpoint::Endpoint;

/// One line of the output.
#[derive(Debug, Serialize)]
struct Row {
    /// Folder of the model.
    model: String,
    /// `model_type` of its configuration.
    model_type: String,
    /// What weights and cache are held in.
    dtype: String,
    /// Weights, in bytes.
    weights_bytes: u64,
    frontends: u32,
    /// Requests of each frontend.
    concurrency: u32,
    /// Tokens of each prompt.
    prompt: u32,
    /// Steps of one token of each request.
    decode: u32,
    repeat: u32,
    /// Prompt tokens a second, all frontends together: median, least, most of the repetitions.
    prefill_tokens_per_s: [f64; 3],
    /// The same for generated tokens after the first one of each request.
    decode_tokens_per_s: [f64; 3],
    /// From one result of a decode step to the next, in milliseconds.
    step_ms_p50: f64,
    step_ms_p99: f64,
    /// What the daemon says of a decode step: waiting, and running, in milliseconds.
    queue_ms_p50: f64,
    run_ms_p50: f64,
    /// Processor time that the engine took to build and submit a decode, in milliseconds: the mean.
    submit_ms: f64,
}

/// What one frontend saw of one batch of requests.
#[derive(Debug)]
struct Round {
    prefill: (Instant, Instant),
    decode: (Instant, Instant),
    /// Times between results of decode steps, in milliseconds.
    step_ms: Vec<f64>,
    queue_ms: Vec<f64>,
    run_ms: Vec<f64>,
    /// Of a forward, while this frontend decoded.
    submit_ms: f64,
}

/// Measures and prints.
///
/// # Errors
/// [`BenchError`].
pub fn run(flags: &ServeBenchFlags) -> Result<(), BenchError> {
    flags.check()?;
    // A daemon of our own lives until the measurement is over.
    let (_own, endpoint) = match &flags.endpoint {
        Some(text) => (
            None,
            Endpoint::new(Some(text), flags.token_file.as_deref())?,
        ),
        None => {
            let daemon = OwnDaemon::start(&flags.daemon)?;
            let endpoint = daemon.endpoint.clone();
            (Some(daemon), endpoint)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = measure_all(flags, &endpoint) => result,
            _ = terminate.recv() => Err(BenchError::Interrupted),
            _ = interrupt.recv() => Err(BenchError::Interrupted),
        }
    })
}

async fn measure_all(flags: &ServeBenchFlags, endpoint: &Endpoint) -> Result<(), BenchError> {
    for concurrency in &flags.concurrency {
        let row = measure(flags, endpoint, *concurrency).await?;
        let text = if flags.json {
            serde_json::to_string(&row).expect("plain numbers and strings")
        } else {
            row.text()
        };
        writeln!(std::io::stdout(), "{text}")?;
    }
    Ok(())
}

/// All repetitions at one number of requests. Sessions are new, the model stays loaded.
async fn measure(
    flags: &ServeBenchFlags,
    endpoint: &Endpoint,
    concurrency: u32,
) -> Result<Row, BenchError> {
    let barrier = Arc::new(Barrier::new(flags.frontends as usize));
    let mut frontends = JoinSet::new();
    let mut models = Vec::new();
    for index in 0..flags.frontends {
        let (client, shape, loaded) = prepare(flags, endpoint, concurrency).await?;
        models.push(loaded);
        let turns = Turns {
            warmup: flags.warmup,
            repeat: flags.repeat,
            frontend: index,
            barrier: Arc::clone(&barrier),
        };
        frontends.spawn(rounds(client, shape, turns));
    }
    let mut seen = Vec::new();
    while let Some(joined) = frontends.join_next().await {
        seen.push(joined.expect("a frontend does not panic")?);
    }
    Ok(summarize(flags, concurrency, &models[0], &seen))
}

async fn prepare(
    flags: &ServeBenchFlags,
    endpoint: &Endpoint,
    concurrency: u32,
) -> Result<(Client, Shape, ModelLoaded), BenchError> {
    let mut client = Client::connect(endpoint).await?;
    // The last token is sampled and never run.
    let max_model_len = flags.prompt + flags.decode + 1;
    let limits = (max_model_len, concurrency, flags.max_num_batched_tokens);
    let load = load_model(&flags.model.model, &flags.model.dtype, limits);
    let loaded = client.load(load).await?;
    let groups = groups(&loaded.kv_cache_specs);
    let shape = Shape {
        num_reqs: concurrency,
        prompt_len: flags.prompt,
        decode_len: flags.decode,
        block_size: flags.model.block_size,
        max_num_batched_tokens: flags.max_num_batched_tokens,
        vocab_size: loaded.vocab_size,
        num_groups: u32::try_from(groups.len()).expect("fewer groups than layers"),
        sampling_params: flags.sampling_params(),
    };
    let create = CreateCache {
        num_blocks: shape.num_blocks(),
        block_size: flags.model.block_size,
        groups,
    };
    client
        .create_cache(flags.daemon.memory_fraction, create)
        .await?;
    Ok((client, shape, loaded))
}

/// The rounds of one frontend, which begin together with those of the others.
#[derive(Debug)]
struct Turns {
    /// Rounds that are not counted.
    warmup: u32,
    /// Rounds that are.
    repeat: u32,
    /// Number of the frontend.
    frontend: u32,
    barrier: Arc<Barrier>,
}

async fn rounds(mut client: Client, shape: Shape, turns: Turns) -> Result<Vec<Round>, BenchError> {
    let Turns {
        warmup, barrier, ..
    } = &turns;
    let mut rounds = Vec::new();
    for number in 0..warmup + turns.repeat {
        let seed = number << 16 | turns.frontend;
        let mut workload = Workload::new(shape.clone(), seed);
        barrier.wait().await;
        let begin = Instant::now();
        let prefilled = client.run(workload.prefill()).await?;
        let prefill = (begin, last_arrival(&prefilled, begin));
        let before = client.served().await?;
        barrier.wait().await;
        let begin = Instant::now();
        let decoded = client.run(workload.decode()).await?;
        let decode = (begin, last_arrival(&decoded, begin));
        let submit_ms = submit_ms(before, client.served().await?);
        client.run([workload.finish()]).await?;
        if number >= *warmup {
            rounds.push(Round::new((prefill, decode), &decoded, submit_ms));
        }
    }
    client.goodbye().await?;
    Ok(rounds)
}

fn last_arrival(arrived: &[Arrived], begin: Instant) -> Instant {
    arrived.last().map_or(begin, |last| last.at)
}

impl Round {
    fn new(
        (prefill, decode): ((Instant, Instant), (Instant, Instant)),
        decoded: &[Arrived],
        submit_ms: f64,
    ) -> Self {
        let between = decoded.windows(2).map(|pair| pair[1].at - pair[0].at);
        let micros = |value: fn(&Arrived) -> u32| {
            decoded
                .iter()
                .map(|arrived| f64::from(value(arrived)) / 1e3)
                .collect()
        };
        Self {
            prefill,
            decode,
            step_ms: between.map(millis).collect(),
            queue_ms: micros(|arrived| arrived.result.queue_us),
            run_ms: micros(|arrived| arrived.result.run_us),
            submit_ms,
        }
    }
}

/// The mean of the forwards in between.
#[expect(clippy::cast_precision_loss, reason = "far less than 2^52 us")]
fn submit_ms(before: ServedStatus, after: ServedStatus) -> f64 {
    let forwards = after.forwards - before.forwards;
    (after.submit_us - before.submit_us) as f64 / 1e3 / forwards as f64
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn summarize(
    flags: &ServeBenchFlags,
    concurrency: u32,
    loaded: &ModelLoaded,
    seen: &[Vec<Round>],
) -> Row {
    let num_reqs = f64::from(flags.frontends * concurrency);
    // From the first frontend's beginning to the last one's end.
    let rates = |tokens: u32, span: fn(&Round) -> (Instant, Instant)| {
        let rates: Vec<f64> = (0..flags.repeat as usize)
            .filter_map(|number| {
                let begin = seen.iter().map(|rounds| span(&rounds[number]).0).min()?;
                let end = seen.iter().map(|rounds| span(&rounds[number]).1).max()?;
                Some(num_reqs * f64::from(tokens) / (end - begin).as_secs_f64())
            })
            .collect();
        [median(&rates), quantile(&rates, 0.0), quantile(&rates, 1.0)]
    };
    let all = |values: fn(&Round) -> &[f64]| -> Vec<f64> {
        seen.iter().flatten().flat_map(values).copied().collect()
    };
    let step_ms = all(|round| &round.step_ms);
    let submit_ms: Vec<f64> = seen.iter().flatten().map(|round| round.submit_ms).collect();
    Row {
        model: flags.model.model.display().to_string(),
        model_type: loaded.model_type.clone(),
        dtype: flags.model.dtype.clone(),
        weights_bytes: loaded.weights_bytes,
        frontends: flags.frontends,
        concurrency,
        prompt: flags.prompt,
        decode: flags.decode,
        repeat: flags.repeat,
        prefill_tokens_per_s: rates(flags.prompt, |round| round.prefill),
        decode_tokens_per_s: rates(flags.decode, |round| round.decode),
        step_ms_p50: median(&step_ms),
        step_ms_p99: quantile(&step_ms, 0.99),
        queue_ms_p50: median(&all(|round| &round.queue_ms)),
        run_ms_p50: median(&all(|round| &round.run_ms)),
        submit_ms: median(&submit_ms),
    }
}

impl Row {
    fn text(&self) -> String {
        let rate = |[median, least, most]: [f64; 3]| format!("{median:.1} [{least:.1} {most:.1}]");
        format!(
            "{} x {:3} requests   prefill {} tok/s   decode {} tok/s   step p50 {:.3} ms p99 {:.3} \
             ms   in the daemon: waits {:.3} ms, is submitted in {:.3} ms, runs {:.3} ms",
            self.frontends,
            self.concurrency,
            rate(self.prefill_tokens_per_s),
            rate(self.decode_tokens_per_s),
            self.step_ms_p50,
            self.step_ms_p99,
            self.queue_ms_p50,
            self.submit_ms,
            self.run_ms_p50
        )
    }
}
