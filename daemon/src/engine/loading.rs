//! Models: loaded on a thread of their own, shared by who asks, freed when nobody does.

use std::sync::Arc;
use std::time::Instant;

use metal_rpc_protocol::limits::{
    MAX_REQUESTS_PER_STEP, MAX_TOKENS_PER_REQUEST, MAX_TOKENS_PER_STEP,
};
use metal_rpc_protocol::{ErrorCode, ErrorReply, LoadModel, LoadProgress, ModelLoaded, Reply};
use tracing::{info, warn};

use super::control::refusal;
use super::handle::spawn;
use super::progress::Progress;
use super::{Engine, EngineMessage};
use crate::models::loaded::{LoadedModel, ModelKey};
use crate::models::{Dtype, LoadOptions, Model, ModelError};
use crate::outbox::Outbox;
use crate::sampler::LogprobsMode;
use crate::session::SessionId;

/// Sessions that wait for the same load.
#[derive(Debug, Default)]
pub(super) struct Loading {
    waiting: Vec<(SessionId, u64, Instant)>,
}

impl Engine {
    pub(super) fn load_model(
        &mut self,
        id: SessionId,
        (seq, received): (u64, Instant),
        load: LoadModel,
    ) -> Result<(), ErrorReply> {
        if self.session(id).load.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "LoadModel is legal once".to_owned(),
            ));
        }
        let (dtype, mode) = check_load(&load)?;
        let folder = self.config.model_roots.admit(load.path.as_ref());
        let key = folder
            .and_then(|folder| ModelKey::of_folder(&folder, dtype, load.max_model_len))
            .map_err(|error| model_error(&error))?;
        let is_here = self.models.contains_key(&key) || self.loading.contains_key(&key);
        let left_bytes = if is_here { 0 } else { self.left_bytes(None)? };
        let session = self.session(id);
        session.load = Some(load);
        session.logprobs_mode = mode;
        let outbox = session.outbox.clone();
        if self.models.contains_key(&key) {
            self.join_model(id, &key, (seq, received));
            return Ok(());
        }
        let is_new = !self.loading.contains_key(&key);
        self.loading
            .entry(key.clone())
            .or_default()
            .waiting
            .push((id, seq, received));
        if is_new {
            self.start_loading(key, (seq, outbox), left_bytes);
        }
        Ok(())
    }

    /// Loads on a thread of its own: others are served meanwhile. Evaluated arrays may change
    /// threads, and loading evaluates nothing.
    fn start_loading(&self, key: ModelKey, (seq, outbox): (u64, Outbox), left_bytes: u64) {
        info!(path = %key.path.display(), dtype = %key.dtype, "loading");
        let messages = self.messages.clone();
        let weights_bytes = self
            .models
            .values()
            .map(|loaded| loaded.model.weights_bytes())
            .sum();
        let free_bytes = self.config.memory.limit_bytes.saturating_sub(weights_bytes);
        let free_bytes = free_bytes.min(left_bytes);
        let device = self.config.device.mlx();
        let loader = Arc::clone(&self.config.models);
        let load = move || {
            let mut told = Progress::new(&key.path);
            let mut progress = |loaded_bytes, total_bytes| {
                if told.is_news(loaded_bytes, total_bytes) {
                    let progress = LoadProgress {
                        loaded_bytes,
                        total_bytes,
                    };
                    outbox.send(seq, Reply::LoadProgress(progress));
                }
            };
            let options = LoadOptions {
                dtype: key.dtype,
                rope_len: key.rope_len,
                device,
                free_bytes,
                progress: &mut progress,
            };
            let result = loader.load(&key.path, options);
            if let Ok(model) = &result {
                told.end(model.weights_bytes());
            }
            // The engine is gone only when the daemon stops.
            let _ = messages.send(EngineMessage::Loaded { key, result });
        };
        spawn("load", load);
    }

    pub(super) fn loaded(&mut self, key: ModelKey, result: Result<Box<dyn Model>, ModelError>) {
        let loading = self.loading.remove(&key).unwrap_or_default();
        match result {
            Ok(model) => {
                let idle_since = Some(Instant::now());
                let loaded = LoadedModel {
                    model,
                    cache: None,
                    num_sessions: 0,
                    idle_since,
                };
                self.models.insert(key.clone(), loaded);
                for (id, seq, received) in loading.waiting {
                    self.join_model(id, &key, (seq, received));
                }
            }
            Err(error) => {
                warn!(path = %key.path.display(), %error, "not loaded");
                for (id, seq, _) in loading.waiting {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.load = None;
                        session.outbox.send_error(seq, model_error(&error));
                    }
                }
            }
        }
    }

    fn join_model(&mut self, id: SessionId, key: &ModelKey, (seq, received): (u64, Instant)) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let loaded = self.models.get_mut(key).expect("the caller has looked");
        loaded.num_sessions += 1;
        loaded.idle_since = None;
        session.model = Some(key.clone());
        let model = &loaded.model;
        session.outbox.send(
            seq,
            Reply::ModelLoaded(ModelLoaded {
                model_type: model.args().model_type.to_owned(),
                vocab_size: model.vocab_size(),
                weights_bytes: model.weights_bytes(),
                load_ms: u64::try_from(received.elapsed().as_millis()).unwrap_or(u64::MAX),
                kv_cache_specs: model.kv_cache_specs(),
            }),
        );
    }

    pub(super) fn unload_idle_models(&mut self) {
        let keep_alive = self.config.model_keep_alive;
        let is_over = |since: &Instant| since.elapsed() >= keep_alive;
        self.models.retain(|key, loaded| {
            let unload = loaded.idle_since.as_ref().is_some_and(is_over);
            if unload {
                info!(path = %key.path.display(), "unloading");
            }
            !unload
        });
    }
}

fn check_load(load: &LoadModel) -> Result<(Dtype, LogprobsMode), ErrorReply> {
    let bad = |message: String| refusal(ErrorCode::BadMessage, message);
    let dtype = Dtype::from_name(&load.dtype).ok_or_else(|| {
        bad(format!(
            "dtype must be float32, float16 or bfloat16, but is {:?}",
            load.dtype
        ))
    })?;
    let mode = LogprobsMode::from_name(&load.logprobs_mode).ok_or_else(|| {
        bad(format!(
            "logprobs_mode {:?} is not known",
            load.logprobs_mode
        ))
    })?;
    let limits = [
        ("max_model_len", load.max_model_len, MAX_TOKENS_PER_REQUEST),
        ("max_num_seqs", load.max_num_seqs, MAX_REQUESTS_PER_STEP),
        (
            "max_num_batched_tokens",
            load.max_num_batched_tokens,
            MAX_TOKENS_PER_STEP,
        ),
    ];
    for (name, value, limit) in limits {
        if value == 0 || value as usize > limit {
            return Err(bad(format!("{name} must be 1 to {limit}, but is {value}")));
        }
    }
    Ok((dtype, mode))
}

fn model_error(error: &ModelError) -> ErrorReply {
    refusal(error.code(), error.to_string())
}
