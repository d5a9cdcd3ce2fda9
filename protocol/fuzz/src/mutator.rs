//! Seeded changes of messages: what a careless or hostile sender might make of a right one.

use fastrand::Rng;

/// Markers of msgpack that announce something, and numbers at the edges.
const TELLING: [u8; 24] = [
    0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xc4, 0xc6, 0xc9, 0xca, 0xcb,
    0xcc, 0xcf, 0xd3, 0xd9, 0xdb, 0xdc, 0xdd, 0xff,
];
/// Lengths at the edges, big-endian.
const LENGTHS: [u32; 6] = [0, 1, 0xff, 0xffff, 0x7fff_ffff, u32::MAX];

/// Makes messages out of examples. The same seed makes the same messages.
#[derive(Debug)]
pub struct Mutator {
    rng: Rng,
    examples: Vec<Vec<u8>>,
}

impl Mutator {
    /// A mutator of `examples`.
    ///
    /// # Panics
    /// Without examples.
    #[must_use]
    pub fn new(seed: u64, examples: Vec<Vec<u8>>) -> Self {
        assert!(!examples.is_empty(), "nothing to change");
        Self {
            rng: Rng::with_seed(seed),
            examples,
        }
    }

    /// The next message.
    pub fn next_message(&mut self) -> Vec<u8> {
        let mut bytes = self.example();
        self.change(&mut bytes);
        while self.rng.bool() {
            self.change(&mut bytes);
        }
        bytes
    }

    fn example(&mut self) -> Vec<u8> {
        let index = self.rng.usize(..self.examples.len());
        self.examples[index].clone()
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.rng.u8(..));
            return;
        }
        let at = self.rng.usize(..bytes.len());
        match self.rng.u8(..8) {
            0 => bytes[at] ^= 1 << self.rng.u8(..8),
            1 => bytes[at] = self.rng.u8(..),
            2 => bytes[at] = TELLING[self.rng.usize(..TELLING.len())],
            3 => bytes.insert(at, TELLING[self.rng.usize(..TELLING.len())]),
            4 => bytes.truncate(at),
            5 => {
                let end = self.rng.usize(at..bytes.len()) + 1;
                bytes.drain(at..end);
            }
            6 => {
                let length = LENGTHS[self.rng.usize(..LENGTHS.len())].to_be_bytes();
                let end = (at + length.len()).min(bytes.len());
                bytes.splice(at..end, length);
            }
            _ => {
                let other = self.example();
                let from = self.rng.usize(..=other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_messages_and_another_seed_others() {
        let messages = |seed| -> Vec<Vec<u8>> {
            let mut mutator = Mutator::new(seed, vec![b"one".to_vec(), b"two".to_vec()]);
            (0..50).map(|_| mutator.next_message()).collect()
        };
        assert_eq!(messages(7), messages(7));
        assert_ne!(messages(7), messages(8));
    }
}
