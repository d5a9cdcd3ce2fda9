//! The header of a GGUF file, by hand.

/// A header, piece by piece.
pub(crate) struct Header {
    pub(crate) values: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Header {
    /// Of a Llama without tensors.
    pub(crate) fn llama(num_heads: u32) -> Self {
        let value = [
            text("general.architecture"),
            vec![8, 0, 0, 0],
            text("llama"),
        ]
        .concat();
        let mut header = Self {
            values: vec![value],
            tensors: Vec::new(),
        };
        header.number("llama.attention.head_count", num_heads);
        header
    }

    pub(crate) fn number(&mut self, key: &str, number: u32) {
        let value = [text(key), vec![4, 0, 0, 0], number.to_le_bytes().to_vec()];
        self.values.push(value.concat());
    }

    /// `shape` has the fastest dimension first, as in the file.
    pub(crate) fn tensor(&mut self, name: &str, kind: u32, shape: &[u64], offset: u64) {
        let dims = shape.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let count = u32::try_from(shape.len()).expect("small").to_le_bytes();
        let tensor = [
            text(name),
            count.to_vec(),
            dims,
            kind.to_le_bytes().to_vec(),
            offset.to_le_bytes().to_vec(),
        ];
        self.tensors.push(tensor.concat());
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len(), self.values.len()].map(|n| (n as u64).to_le_bytes());
        let start = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &counts.concat()].concat();
        [start, self.values.concat(), self.tensors.concat()].concat()
    }
}
