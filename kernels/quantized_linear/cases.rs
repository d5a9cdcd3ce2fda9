//! Formats and shapes of quantised layers that every backend must get right.

/// One layer and a number of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) groups: usize,
    pub(crate) outputs: usize,
    pub(crate) bits: u8,
    pub(crate) group_size: u8,
}

/// All formats at one row, a few and many. Groups on both sides of a vector of eight; outputs with
/// every rest of a tile; inputs on both sides of a block (512).
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [32, 64, 128] {
            for (rows, groups, outputs) in [(1, 1, 5), (3, 9, 6), (18, 5, 7)] {
                cases.push((rows, groups, outputs, bits, group_size));
            }
        }
    }
    for rows in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 65] {
        cases.push((rows, 8, 13, 4, 64));
        cases.push((rows, 17, 50, 8, 32));
    }
    // Large enough to be shared by threads.
    cases.push((1, 9, 1536, 4, 64));
    let case = |(rows, groups, outputs, bits, group_size)| Case {
        rows,
        groups,
        outputs,
        bits,
        group_size,
    };
    cases.into_iter().map(case).collect()
}
