//! Lists and strings with a limit: longer ones end a message's decoding, or are cut.
//!
//! A list is refused at its announced length, before its elements are read: a byte on the wire can
//! be the whole of an element that takes hundreds in memory.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads a list of at most `MAX` elements.
pub(crate) fn list<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(ListVisitor::<MAX, T>(PhantomData))
}

/// Reads a list of at most `MAX` elements that may be absent.
pub(crate) fn optional_list<'de, const MAX: usize, T, D>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let list = Option::<List<MAX, T>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.0))
}

/// Reads a string of at most `MAX` bytes.
pub(crate) fn string<'de, const MAX: usize, D>(deserializer: D) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
{
    let text = <&str>::deserialize(deserializer)?;
    if text.len() > MAX {
        let expected = format!("a string of at most {MAX} bytes");
        return Err(D::Error::invalid_length(text.len(), &expected.as_str()));
    }
    Ok(text.to_owned())
}

/// Reads a string and keeps at most `MAX` bytes of it, cut between characters.
pub(crate) fn cut_string<'de, const MAX: usize, D>(deserializer: D) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
{
    let text = <&str>::deserialize(deserializer)?;
    Ok(text[..text.floor_char_boundary(MAX)].to_owned())
}

struct List<const MAX: usize, T>(Vec<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Deserialize<'de> for List<MAX, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        list::<MAX, T, D>(deserializer).map(Self)
    }
}

struct ListVisitor<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for ListVisitor<MAX, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let announced = seq.size_hint().unwrap_or(0);
        if announced > MAX {
            return Err(A::Error::invalid_length(announced, &self));
        }
        // Grows as elements arrive: what is announced may never come.
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            if elements.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}
