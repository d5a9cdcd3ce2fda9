//! `config.json`: what a checkpoint says of itself.
//!
//! Raw: [`ModelArgs`](super::ModelArgs) is what most families need of it, resolved. A family with
//! further keys reads them here.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ModelError, file::read_limited};

/// Most bytes of a `config.json`. The largest in use (per-layer rope factors) have some 20 KB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// `config.json` as it stands.
#[derive(Debug)]
pub struct Config {
    values: Map<String, Value>,
    file: PathBuf,
}

impl Config {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    /// If it is missing, too large or not a JSON object.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join("config.json");
        let bytes = read_limited(&file, MAX_CONFIG_BYTES)?;
        Self::from_json(&bytes, file)
    }

    pub(super) fn from_json(bytes: &[u8], file: PathBuf) -> Result<Self, ModelError> {
        let values = match serde_json::from_slice(bytes) {
            Ok(values) => values,
            Err(source) => return Err(ModelError::Json { path: file, source }),
        };
        Ok(Self { values, file })
    }

    /// The value of a key; `None` if it is absent or null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there and null.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key) == Some(&Value::Null)
    }

    /// A number; `None` if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else.
    pub fn number(&self, key: &'static str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A positive factor for activations; `None` if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "activations are f32 at most"
    )]
    pub fn factor(&self, key: &'static str) -> Result<Option<f32>, ModelError> {
        let rule = "a number above 0";
        self.typed(key, rule, |value| {
            let factor = value.as_f64()? as f32;
            (factor.is_finite() && factor > 0.0).then_some(factor)
        })
    }

    /// A count of something; `None` if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else, or does not fit in 31 bits.
    pub fn count(&self, key: &'static str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "between 0 and 2147483647", |value| {
            let value = value.as_u64()?;
            u32::try_from(value).ok().filter(|&value| value >> 31 == 0)
        })
    }

    /// A flag, or its default if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        let flag = self.typed(key, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    /// A text; `None` if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self, key: &'static str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of numbers or texts; `None` if the key is absent or null.
    ///
    /// # Errors
    /// If it is something else.
    pub fn list(&self, key: &'static str) -> Result<Option<&[Value]>, ModelError> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    fn typed<'a, T>(
        &'a self,
        key: &'static str,
        rule: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(invalid(key, rule, Some(value))),
        }
    }

    /// `model_type`, which names the family.
    ///
    /// # Errors
    /// If there is none.
    pub fn model_type(&self) -> Result<&str, ModelError> {
        match self.values.get("model_type") {
            Some(Value::String(model_type)) => Ok(model_type),
            other => Err(invalid("model_type", "a string", other)),
        }
    }

    /// Refuses a checkpoint whose `architectures` names none of `known`: a classifier or a reward
    /// model has the weights of a language model, but no language-model head.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub fn check_architecture(&self, known: &[&'static str]) -> Result<(), ModelError> {
        let Some(value) = self.get("architectures") else {
            return Ok(());
        };
        let names = value.as_array().into_iter().flatten();
        if names
            .filter_map(Value::as_str)
            .any(|name| known.contains(&name))
        {
            return Ok(());
        }
        Err(ModelError::Unsupported {
            key: "architectures",
            value: value.to_string(),
            known: known.to_vec(),
        })
    }

    /// The whole file as `T`.
    ///
    /// # Errors
    /// [`ModelError::Json`] if a key is missing or of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        T::deserialize(Value::Object(self.values.clone())).map_err(|source| ModelError::Json {
            path: self.file.clone(),
            source,
        })
    }
}

/// The error for a key whose value has the wrong type.
pub(super) fn invalid(key: &'static str, rule: &'static str, value: Option<&Value>) -> ModelError {
    ModelError::Config {
        key,
        rule,
        value: value.map_or_else(|| "absent".to_owned(), Value::to_string),
    }
}
