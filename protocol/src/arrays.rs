//! Number arrays that travel as one msgpack `bin` of little-endian values.
//!
//! A prompt of 8,000 tokens is then one copy on both sides instead of 8,000 tagged integers.
//! Formats for people (JSON in `golden/`) show a list of numbers.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! raw_array {
    ($(#[$doc:meta])* $name:ident, $element:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name(pub Vec<$element>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    return self.0.serialize(serializer);
                }
                let bytes: Vec<u8> = self.0.iter().flat_map(|value| value.to_le_bytes()).collect();
                serializer.serialize_bytes(&bytes)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Bytes;
                impl Visitor<'_> for Bytes {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("a byte string of little-endian ", stringify!($element)))
                    }

                    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        let (values, rest) = bytes.as_chunks();
                        if !rest.is_empty() {
                            return Err(E::invalid_length(bytes.len(), &self));
                        }
                        Ok($name(values.iter().map(|value| <$element>::from_le_bytes(*value)).collect()))
                    }
                }
                deserializer.deserialize_bytes(Bytes)
            }
        }

        impl From<Vec<$element>> for $name {
            fn from(values: Vec<$element>) -> Self {
                Self(values)
            }
        }
    };
}

raw_array! {
    /// 32-bit signed integers: token ids (`-1` = no token), ranks, bitmask words.
    I32Array, i32
}
raw_array! {
    /// 32-bit floats: log probabilities.
    F32Array, f32
}
