//! Dispatch and combine in plain loops.

/// Token of each row, and where each expert's rows end.
pub(crate) fn dispatch(
    experts: &[i32],
    experts_per_token: usize,
    num_experts: i32,
) -> (Vec<usize>, Vec<i32>) {
    let (mut tokens, mut ends) = (Vec::new(), Vec::new());
    for expert in 0..num_experts {
        for (pair, &chosen) in experts.iter().enumerate() {
            if chosen == expert {
                tokens.push(pair / experts_per_token);
            }
        }
        ends.push(i32::try_from(tokens.len()).expect("tests are small"));
    }
    (tokens, ends)
}

/// The rows of one token, weighed and added in f64, and the bound of a kernel's error.
pub(crate) fn combine(rows: &[&[f32]], weights: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let term =
        |i: usize| move |(row, weight): (&&[f32], &f32)| f64::from(row[i]) * f64::from(*weight);
    let dim = rows.first().map_or(0, |row| row.len());
    let sum = |i| rows.iter().zip(weights).map(term(i)).sum();
    let magnitude = |i| {
        rows.iter()
            .zip(weights)
            .map(term(i))
            .map(f64::abs)
            .sum::<f64>()
    };
    let rounding = 2f64.powi(-24) * f64::from(u32::try_from(rows.len()).expect("few"));
    let tolerances = (0..dim).map(|i| magnitude(i) * rounding + 1e-30).collect();
    ((0..dim).map(sum).collect(), tolerances)
}
