//! Numbers, strings and values of a GGUF header, one after the other.
//!
//! # Source
//! ggml `docs/gguf.md`, versions 2 and 3.

use std::{
    fs::File,
    io::{BufReader, Read},
};

use super::GgufError;

/// Most bytes of a string that is kept: names of tensors and keys have at most 64 in ggml, chat
/// templates are skipped.
const MAX_STRING_BYTES: u64 = 4096;

/// Reads a file from its beginning on.
pub(super) struct Reader<'a> {
    input: BufReader<&'a File>,
    /// Bytes read, or skipped.
    at_bytes: u64,
    size_bytes: u64,
}

/// A value that we may need; all others are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    /// A float, a flag, a negative number, an array, or a text too long for a name.
    Skipped,
}

/// ggml's numbers of types of values.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a File, size_bytes: u64) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 16, file),
            at_bytes: 0,
            size_bytes,
        }
    }

    /// Where the next byte is in the file.
    pub(super) fn at_bytes(&self) -> u64 {
        self.at_bytes
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// A number of things that take at least `least_bytes` each: no more than fit into the file.
    pub(super) fn count(&mut self, what: &'static str, least_bytes: u64) -> Result<u64, GgufError> {
        let count = self.u64()?;
        if count > (self.size_bytes - self.at_bytes) / least_bytes {
            return Err(GgufError::Count { what, count });
        }
        Ok(count)
    }

    /// The name of a key or a tensor.
    pub(super) fn name(&mut self) -> Result<String, GgufError> {
        let len = self.u64()?;
        match self.text(len)? {
            Value::Text(name) => Ok(name),
            _ => Err(GgufError::Name { len }),
        }
    }

    /// A value, its type before it.
    pub(super) fn value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let number = match kind {
            kind::U8 => u64::from(self.take::<1>()?[0]),
            kind::U16 => u64::from(u16::from_le_bytes(self.take()?)),
            kind::U32 => u64::from(self.u32()?),
            kind::U64 => self.u64()?,
            kind::I32 => match u64::try_from(i32::from_le_bytes(self.take()?)) {
                Ok(number) => number,
                Err(_) => return Ok(Value::Skipped),
            },
            kind::STRING => {
                let len = self.u64()?;
                return self.text(len);
            }
            kind::ARRAY => {
                self.skip_array()?;
                return Ok(Value::Skipped);
            }
            _ => {
                self.skip(width(kind)?)?;
                return Ok(Value::Skipped);
            }
        };
        Ok(Value::Number(number))
    }

    /// Arrays are vocabularies and numbers for each layer; none is needed here.
    fn skip_array(&mut self) -> Result<(), GgufError> {
        let kind = self.u32()?;
        if kind != kind::STRING {
            let width = width(kind)?;
            let count = self.count("an array", width)?;
            return self.skip(count * width);
        }
        for _ in 0..self.count("an array", 8)? {
            let len = self.u64()?;
            self.skip(len)?;
        }
        Ok(())
    }

    fn text(&mut self, len: u64) -> Result<Value, GgufError> {
        if len > MAX_STRING_BYTES {
            self.skip(len)?;
            return Ok(Value::Skipped);
        }
        let mut bytes = vec![0; usize::try_from(len).expect("bounded by MAX_STRING_BYTES")];
        self.input
            .read_exact(&mut bytes)
            .map_err(GgufError::of_read)?;
        self.at_bytes += len;
        Ok(String::from_utf8(bytes).map_or(Value::Skipped, Value::Text))
    }

    fn skip(&mut self, len: u64) -> Result<(), GgufError> {
        if len > self.size_bytes - self.at_bytes {
            return Err(GgufError::End);
        }
        let offset = i64::try_from(len).map_err(|_| GgufError::End)?;
        self.input
            .seek_relative(offset)
            .map_err(GgufError::of_read)?;
        self.at_bytes += len;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(GgufError::of_read)?;
        self.at_bytes += N as u64;
        Ok(bytes)
    }
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Result<u64, GgufError> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Ok(1),
        kind::U16 | kind::I16 => Ok(2),
        kind::U32 | kind::I32 | kind::F32 => Ok(4),
        kind::U64 | kind::I64 | kind::F64 => Ok(8),
        kind => Err(GgufError::ValueType { kind }),
    }
}
