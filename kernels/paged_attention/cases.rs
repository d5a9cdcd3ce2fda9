//! Batches and layers that every backend must get right.

/// A layer's heads, how it attends, and the `(query_len, seq_len)` of each request.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) requests: Vec<(usize, usize)>,
    /// Tokens after the last request.
    pub(crate) padding: usize,
    pub(crate) sliding_window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) sinks: bool,
}

/// A layer of small heads with three query heads a key head, and the given requests.
pub(crate) fn case(requests: &[(usize, usize)]) -> Case {
    Case {
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 16,
        block_size: 16,
        requests: requests.to_vec(),
        padding: 0,
        sliding_window: None,
        soft_cap: None,
        sinks: false,
    }
}

/// Heads of every size and grouping, contexts around the ends of blocks and chunks (256 keys),
/// prefill and decode and nothing in one batch, windows, soft caps and sinks.
pub(crate) fn cases() -> Vec<Case> {
    let mixed = [(1, 40), (5, 5), (0, 0), (3, 33), (0, 17), (1, 1)];
    let mut cases = Vec::new();
    for head_dim in [64, 80, 96, 128, 256, 8, 20, 1] {
        cases.push(Case {
            head_dim,
            ..case(&mixed)
        });
    }
    for (num_heads, num_kv_heads) in [(1, 1), (4, 4), (4, 2), (8, 2), (8, 1), (5, 1), (64, 1)] {
        cases.push(Case {
            num_heads,
            num_kv_heads,
            ..case(&mixed)
        });
    }
    for block_size in [1, 8, 16, 32, 256, 300] {
        cases.push(Case {
            block_size,
            ..case(&mixed)
        });
    }
    for seq_len in [15, 16, 17, 255, 256, 257, 511, 512, 513, 800] {
        cases.push(case(&[(1, seq_len), (2, seq_len)]));
    }
    cases.extend(long_cases());
    cases.extend(crowded_cases());
    cases.push(case(&[(300, 300)]));
    cases.push(case(&[(20, 270), (1, 600), (64, 520), (7, 7)]));
    for window in [1, 2, 16, 100, 256, 300, 10_000] {
        let case = case(&[(1, 600), (40, 530), (20, 20)]);
        cases.push(Case {
            sliding_window: Some(window),
            ..case
        });
    }
    let long = [(1, 600), (20, 300)];
    cases.push(Case {
        soft_cap: Some(2.0),
        ..case(&long)
    });
    cases.push(Case {
        soft_cap: Some(50.0),
        sliding_window: Some(64),
        ..case(&long)
    });
    cases.push(Case {
        sinks: true,
        ..case(&long)
    });
    cases.push(Case {
        sinks: true,
        sliding_window: Some(5),
        ..case(&long)
    });
    cases.push(Case {
        padding: 3,
        ..case(&mixed)
    });
    cases.push(case(&[]));
    cases.push(Case {
        padding: 2,
        ..case(&[])
    });
    cases
}

/// Contexts to 33,000 tokens, around the ends of a GPU's pieces; of one head, so that they stay cheap.
fn long_cases() -> Vec<Case> {
    let of_one_head = |requests: &[(usize, usize)]| Case {
        num_heads: 1,
        num_kv_heads: 1,
        ..case(requests)
    };
    let powers = [64, 128, 1024, 4096, 8192, 16_384, 32_768];
    let mut cases: Vec<Case> = powers
        .iter()
        .map(|power| of_one_head(&[power - 1, *power, power + 1].map(|seq_len| (1, seq_len))))
        .collect();
    for (query_len, seq_len, sliding_window) in [
        (1, 33_000, None),
        (2, 33_000, Some(20_000)),
        (65, 4097, None),
    ] {
        cases.push(Case {
            sliding_window,
            ..of_one_head(&[(query_len, seq_len)])
        });
    }
    cases
}

/// So many decodes that a GPU attends to them by groups of heads; longer queries and none among them.
fn crowded_cases() -> Vec<Case> {
    let mut requests: Vec<(usize, usize)> = (0..70).map(|i| (1, 1 + i * 37 % 150)).collect();
    requests.extend([(0, 17), (3, 33), (1, 600), (7, 7), (1, 32)]);
    let crowd = Case {
        num_heads: 8,
        num_kv_heads: 4,
        padding: 2,
        ..case(&requests)
    };
    let mut cases: Vec<Case> = [8, 64, 80, 128]
        .map(|head_dim| Case {
            head_dim,
            ..crowd.clone()
        })
        .into();
    for num_heads in [4, 32, 36] {
        cases.push(Case {
            num_heads,
            block_size: 8,
            ..crowd.clone()
        });
    }
    cases.push(Case {
        sliding_window: Some(33),
        soft_cap: Some(2.0),
        ..crowd.clone()
    });
    cases.push(Case {
        sinks: true,
        block_size: 300,
        ..crowd
    });
    cases
}
