//! Batches of experts that every backend must get right.

/// Rows of each expert, and one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) rows: &'static [usize],
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
}

/// Experts without rows at both ends and between; both ways through the product side by side;
/// enough to be shared by threads.
pub(crate) const CASES: [Case; 6] = [
    case(&[1, 0, 0, 1], 64, 48, false),
    case(&[0, 3, 15, 0, 16, 70, 0], 77, 25, true),
    case(&[0, 0, 1], 1, 1, true),
    case(&[2, 2, 2, 2], 513, 49, false),
    case(&[20], 40, 97, true),
    case(&[1, 5, 0, 33, 4, 1], 200, 300, false),
];

const fn case(rows: &'static [usize], inputs: usize, outputs: usize, bias: bool) -> Case {
    Case {
        rows,
        inputs,
        outputs,
        bias,
    }
}
