//! Which tokens a prompt must get, whoever asks, however its step is cut and whoever shares it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use metal_rpc_protocol::SamplingParams;

use super::world::World;
use crate::models::loaded::{LoadedModel, ModelKey};

/// The checkpoints that frontends load.
pub(super) const MODELS: [&str; 2] = ["llama-tied", "llama-biased"];
/// Prompts of different lengths, around the size of a block.
pub(super) const NUM_PROMPTS: usize = 6;
/// Longest output of a request.
pub(super) const MAX_OUTPUTS: usize = 10;

/// What a request asks: an entry of the oracle's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// Index into [`MODELS`].
    pub(super) model: usize,
    /// Which prompt.
    pub(super) prompt: usize,
    /// Whether its tokens are drawn, with a seed, instead of the most likely ones.
    pub(super) is_drawn: bool,
}

/// The answers, and the models that give them.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    answers: HashMap<Question, Vec<i32>>,
    /// Loaded once for all worlds.
    pub(super) models: HashMap<ModelKey, LoadedModel>,
}

impl Oracle {
    /// Asks a daemon each question, one at a time.
    pub(super) fn learn() -> Self {
        let mut oracle = Self::default();
        for model in 0..MODELS.len() {
            for (prompt, is_drawn) in (0..NUM_PROMPTS).flat_map(|p| [(p, false), (p, true)]) {
                let question = Question {
                    model,
                    prompt,
                    is_drawn,
                };
                let answer = World::ask_alone(&mut oracle, question);
                assert_eq!(answer.len(), MAX_OUTPUTS);
                oracle.answers.insert(question, answer);
            }
        }
        oracle
    }

    /// The output tokens of a question; none before it was asked alone.
    pub(super) fn answer(&self, question: Question) -> Option<&[i32]> {
        self.answers.get(&question).map(Vec::as_slice)
    }
}

impl Question {
    /// The folder of its model.
    pub(super) fn folder(model: usize) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(MODELS[model])
    }

    /// The prompt's tokens.
    pub(super) fn tokens(self) -> Vec<i32> {
        let seed = i32::try_from(self.prompt).expect("a few");
        let len = [1, 3, 4, 5, 11, 17][self.prompt];
        (0..len)
            .map(|i| (seed * 31 + i * i * 7 + i * 3) % 64)
            .collect()
    }

    /// How its tokens are sampled.
    pub(super) fn sampling_params(self) -> SamplingParams {
        SamplingParams {
            temperature: if self.is_drawn { 1.0 } else { 0.0 },
            seed: self.is_drawn.then_some(11),
            ..SamplingParams::default()
        }
    }
}
