//! The router in plain loops, in f64, by sorting.

/// How one case routes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) k: usize,
    pub(crate) sigmoid: bool,
    /// Number of groups, groups kept, experts of a group that decide.
    pub(crate) groups: Option<(usize, usize, usize)>,
    pub(crate) normalize: bool,
    pub(crate) scale: f32,
}

/// The experts of one token and their weights.
pub(crate) fn route(logits: &[f32], correction: &[f32], rule: &Rule) -> (Vec<usize>, Vec<f64>) {
    let exps: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let score = |exp: &f64| match rule.sigmoid {
        true => exp / (1.0 + exp),
        false => exp / sum,
    };
    let scores: Vec<f64> = exps.iter().map(score).collect();
    let corrections = correction.iter().map(|&value| f64::from(value));
    let ranks: Vec<f64> = scores
        .iter()
        .zip(corrections.chain(std::iter::repeat(0.0)))
        .map(|(score, correction)| score + correction)
        .collect();
    let mut experts: Vec<usize> = (0..scores.len()).collect();
    if let Some((num_groups, kept, deciding)) = rule.groups {
        let size = ranks.len() / num_groups;
        let group_ranks: Vec<f64> = ranks
            .chunks(size)
            .map(|ranks| {
                descending(ranks)
                    .iter()
                    .take(deciding)
                    .map(|&i| ranks[i])
                    .sum()
            })
            .collect();
        let best = &descending(&group_ranks)[..kept];
        experts.retain(|expert| best.contains(&(expert / size)));
    }
    // Stable, so that of equal ranks the lower expert comes first.
    experts.sort_by(|&a, &b| ranks[b].total_cmp(&ranks[a]));
    experts.truncate(rule.k);
    let sum: f64 = match rule.normalize {
        true => experts.iter().map(|&expert| scores[expert]).sum(),
        false => 1.0,
    };
    let weights = experts
        .iter()
        .map(|&expert| scores[expert] / sum * f64::from(rule.scale))
        .collect();
    (experts, weights)
}

fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}
