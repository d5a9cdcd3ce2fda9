//! Rows of logits with a catch.

/// Ties, infinities, NaN, and the places where a vector or a block (1024) ends.
pub(crate) fn rows() -> Vec<Vec<f32>> {
    let at = |len: usize, places: &[(usize, f32)]| {
        let mut row = vec![0.0; len];
        for &(place, value) in places {
            row[place] = value;
        }
        row
    };
    vec![
        at(1, &[]),
        at(9, &[(8, 1.0)]),
        at(3000, &[(1023, 2.0), (1024, 2.0)]),
        at(3000, &[(1024, 2.0), (2048, 2.0), (2999, 2.0)]),
        at(3000, &[(2999, 1e-30)]),
        at(3000, &[(7, f32::INFINITY), (1500, f32::INFINITY)]),
        at(
            3000,
            &[(7, f32::INFINITY), (1500, f32::NAN), (1501, f32::NAN)],
        ),
        at(1027, &[(1025, f32::NAN)]),
        vec![f32::NEG_INFINITY; 2000],
        vec![-0.0, 0.0],
        (0..2000)
            .map(|i| if i < 1900 { f32::NEG_INFINITY } else { -5.0 })
            .collect(),
    ]
}
