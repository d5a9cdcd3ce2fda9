//! Shapes of the linear layer that every backend must get right.

/// One layer and a number of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
}

/// Rows on both sides of the change from streaming to blocks (16) and of a block (64); inputs with
/// and without a tail, on both sides of a block (512); outputs with every rest of a tile.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for rows in [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 66] {
        for (inputs, outputs) in [(64, 48), (77, 25), (576, 50)] {
            cases.push((rows, inputs, outputs, rows % 2 == 1));
        }
    }
    for inputs in [1, 7, 8, 9, 511, 512, 513, 1100] {
        cases.push((1, inputs, 9, false));
        cases.push((18, inputs, 9, true));
    }
    for outputs in [1, 2, 47, 49, 97] {
        cases.push((1, 40, outputs, true));
        cases.push((20, 40, outputs, false));
    }
    // One row on a GPU: on both sides of what it takes at once (1024).
    for inputs in [504, 520, 1016, 1024, 1032, 2056] {
        cases.push((1, inputs, 13, false));
    }
    // Large enough to be shared by threads.
    cases.push((1, 576, 1536, false));
    cases.push((130, 200, 150, true));
    let case = |(rows, inputs, outputs, bias)| Case {
        rows,
        inputs,
        outputs,
        bias,
    };
    cases.into_iter().map(case).collect()
}
