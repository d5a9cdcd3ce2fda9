//! `metald generate`: one prompt through the engine, without vLLM and without a socket.
//!
//! It speaks to the engine as a frontend does: the same messages, the same way of a step.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use metal_rpc_protocol::{
    CodecError, CreateCache, ErrorReply, Exec, LoadModel, ModelLoaded, NewBlocks, NewRequest,
    Reply, ReserveMemory, SamplingParams, decode_reply,
};
use serde::Deserialize;
use tokenizers::Tokenizer;
use tokio::sync::mpsc;

use crate::config::{ConfigError, GenerateFlags};
use crate::device::DeviceError;
use crate::engine::{EngineHandle, EngineMessage, EngineRequest};
use crate::outbox::Outbox;
use crate::session::{SessionId, Ticket};

const BLOCK_SIZE: u32 = 16;
const SESSION: SessionId = SessionId(0);

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`DeviceError`].
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The tokenizer cannot be used.
    #[error("{}: {error}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        error: tokenizers::Error,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The engine refused.
    #[error("{}", .0.message)]
    Refused(ErrorReply),
    /// The engine answered with another message than it should.
    #[error("the engine answered {0}")]
    Unexpected(&'static str),
    /// The engine's answer cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The engine is gone.
    #[error("the engine has stopped")]
    Stopped,
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// Prints the continuation of a prompt as it is generated.
///
/// # Errors
/// [`GenerateError`].
pub fn run(flags: &GenerateFlags) -> Result<(), GenerateError> {
    let path = flags.model.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).map_err(|error| GenerateError::Tokenizer {
        path: path.clone(),
        error,
    })?;
    let encoding = tokenizer
        .encode(flags.prompt.as_str(), true)
        .map_err(|error| GenerateError::Tokenizer {
            path: path.clone(),
            error,
        })?;
    let prompt: Vec<i32> = encoding
        .get_ids()
        .iter()
        .map(|id| id.cast_signed())
        .collect();
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let eos = EosTokens::of_folder(&flags.model);
    let engine = EngineHandle::start(flags.engine()?)?;
    let (outbox, replies) = Outbox::new();
    let mut frontend = Frontend {
        engine: &engine,
        replies,
        seq: 0,
    };
    frontend.tell(EngineMessage::Open {
        session: SESSION,
        frontend: "generate".into(),
        weight: 1,
        outbox,
    })?;
    let result = frontend.generate(flags, prompt, &eos, &tokenizer);
    engine.stop();
    result
}

/// One session of the engine in this process.
struct Frontend<'a> {
    engine: &'a EngineHandle,
    replies: mpsc::Receiver<Vec<u8>>,
    seq: u64,
}

impl Frontend<'_> {
    fn generate(
        &mut self,
        flags: &GenerateFlags,
        prompt: Vec<i32>,
        eos: &EosTokens,
        tokenizer: &Tokenizer,
    ) -> Result<(), GenerateError> {
        let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let num_tokens = prompt_len.saturating_add(flags.max_tokens);
        let loaded = self.prepare(flags, num_tokens, prompt_len)?;
        let mut stream = tokenizer.decode_stream(true);
        let mut output = std::io::stdout().lock();
        write!(output, "{}", flags.prompt)?;
        let mut step = self.first_step(flags, prompt, prompt_len);
        for computed in prompt_len..num_tokens {
            let token_id = self.step(step)?;
            if eos.contains(token_id) {
                break;
            }
            let text = stream
                .step(token_id)
                .map_err(|error| GenerateError::Tokenizer {
                    path: flags.model.join("tokenizer.json"),
                    error,
                })?;
            write!(output, "{}", text.unwrap_or_default())?;
            output.flush()?;
            step = next_step(computed);
        }
        writeln!(output)?;
        tracing::debug!(model_type = loaded.model_type, "done");
        Ok(())
    }

    /// Loads the model and creates a cache of `num_tokens` tokens.
    fn prepare(
        &mut self,
        flags: &GenerateFlags,
        num_tokens: u32,
        prompt_len: u32,
    ) -> Result<ModelLoaded, GenerateError> {
        let load = LoadModel {
            path: flags.model.display().to_string(),
            dtype: flags.dtype.clone(),
            max_model_len: num_tokens,
            max_num_seqs: 1,
            max_num_batched_tokens: prompt_len,
            logprobs_mode: "raw_logprobs".to_owned(),
        };
        let loaded = match self.ask(EngineRequest::LoadModel(load))? {
            Reply::ModelLoaded(loaded) => loaded,
            other => return Err(GenerateError::Unexpected(other.name())),
        };
        self.ask(EngineRequest::ReserveMemory(ReserveMemory {
            memory_fraction: 1.0,
        }))?;
        let num_layers = u32::try_from(loaded.kv_cache_specs.len()).unwrap_or(u32::MAX);
        self.ask(EngineRequest::CreateCache(CreateCache {
            num_blocks: num_tokens.div_ceil(BLOCK_SIZE) + 1,
            block_size: BLOCK_SIZE,
            groups: vec![(0..num_layers).collect()],
        }))?;
        Ok(loaded)
    }

    fn first_step(&self, flags: &GenerateFlags, prompt: Vec<i32>, prompt_len: u32) -> Exec {
        Exec {
            new_requests: vec![NewRequest {
                handle: 0,
                req_id: "prompt".to_owned(),
                token_ids: prompt.into(),
                num_prompt_tokens: prompt_len,
                block_ids: vec![(1..=prompt_len.div_ceil(BLOCK_SIZE)).collect()],
                sampling_params: SamplingParams {
                    temperature: flags.temperature,
                    seed: flags.seed,
                    ..SamplingParams::default()
                },
            }],
            handles: vec![0],
            num_computed_tokens: vec![0],
            num_scheduled_tokens: vec![prompt_len],
            ..Exec::default()
        }
    }

    fn step(&mut self, exec: Exec) -> Result<u32, GenerateError> {
        match self.ask(EngineRequest::Exec(exec))? {
            Reply::StepResult(result) => match result.row_errors.first() {
                None => Ok(result.token_ids.0[0].cast_unsigned()),
                Some(error) => Err(GenerateError::Refused(ErrorReply {
                    code: metal_rpc_protocol::ErrorCode::StepFailed,
                    scope: metal_rpc_protocol::Scope::Request,
                    message: error.message.clone(),
                })),
            },
            other => Err(GenerateError::Unexpected(other.name())),
        }
    }

    fn tell(&self, message: EngineMessage) -> Result<(), GenerateError> {
        self.engine
            .messages
            .send(message)
            .map_err(|_| GenerateError::Stopped)
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: EngineRequest) -> Result<Reply, GenerateError> {
        self.seq += 1;
        let (seq, received) = (self.seq, Instant::now());
        self.tell(EngineMessage::Request {
            session: SESSION,
            seq,
            received,
            request,
            ticket: Ticket::default(),
        })?;
        loop {
            let bytes = self.replies.blocking_recv().ok_or(GenerateError::Stopped)?;
            match decode_reply(&bytes)?.reply {
                Reply::LoadProgress(_) => {}
                Reply::Error(error) => return Err(GenerateError::Refused(error)),
                reply => return Ok(reply),
            }
        }
    }
}

/// Runs the token at position `computed`, which the last step sampled.
fn next_step(computed: u32) -> Exec {
    let is_new_block = computed.is_multiple_of(BLOCK_SIZE);
    let new_block = NewBlocks {
        row: 0,
        block_ids: vec![vec![computed / BLOCK_SIZE + 1]],
    };
    Exec {
        handles: vec![0],
        num_computed_tokens: vec![computed],
        new_blocks: if is_new_block {
            vec![new_block]
        } else {
            Vec::new()
        },
        ..Exec::default()
    }
}

/// The tokens that end a text, from `generation_config.json` or `config.json`.
#[derive(Debug, Default, Deserialize)]
struct EosTokens {
    #[serde(default)]
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl EosTokens {
    fn of_folder(folder: &std::path::Path) -> Self {
        let read = |name: &str| -> Option<Self> {
            serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()
        };
        let named = |eos: &Self| eos.eos_token_id.is_some();
        read("generation_config.json")
            .filter(named)
            .or_else(|| read("config.json"))
            .unwrap_or_default()
    }

    fn contains(&self, token_id: u32) -> bool {
        match &self.eos_token_id {
            None => false,
            Some(OneOrMany::One(eos)) => *eos == token_id,
            Some(OneOrMany::Many(eos)) => eos.contains(&token_id),
        }
    }
}
