//! How many tokens of a forward each session gets: max-min fair by weight.
//!
//! Whoever wants less than its share gets all that it wants; what it leaves is shared by the
//! others. A session is never held back while there is room, because a token more in a forward
//! costs the others next to nothing.

use std::cmp::Reverse;

/// What one session would run, and its weight.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Tokens that are ready, at least one.
    pub tokens: u32,
    /// Its share, relative to the others'.
    pub weight: u32,
}

/// Splits `max_tokens`: everybody gets a token, and the rest is shared by weight.
///
/// # Invariants
/// - Nobody gets more than it wants, and all together at most `max_tokens`.
/// - Who gets less than it wants has at least its share of what is left after a token for each.
#[must_use]
pub fn shares(max_tokens: u32, wants: &[Want]) -> Vec<u32> {
    let everybody = u32::try_from(wants.len()).expect("sessions are limited");
    assert!(
        everybody <= max_tokens,
        "{everybody} sessions share {max_tokens} tokens"
    );
    let mut gets: Vec<u32> = wants.iter().map(|want| want.tokens.min(1)).collect();
    let mut left = max_tokens - gets.iter().sum::<u32>();
    loop {
        let mut hungry: Vec<usize> = (0..wants.len())
            .filter(|i| wants[*i].tokens > gets[*i])
            .collect();
        let total: u64 = hungry.iter().map(|i| u64::from(wants[*i].weight)).sum();
        if left == 0 || total == 0 {
            return gets;
        }
        hungry.sort_by_key(|i| Reverse(wants[*i].weight));
        let share = |i: &usize| u64::from(left) * u64::from(wants[*i].weight) / total;
        let mut parts: Vec<u64> = hungry.iter().map(share).collect();
        if parts.iter().all(|part| *part == 0) {
            // Too little to share: the heaviest get a token each.
            parts.fill(1);
        }
        for (i, part) in hungry.into_iter().zip(parts) {
            let part = u32::try_from(part).expect("at most `left`");
            let more = part.min(wants[i].tokens - gets[i]).min(left);
            gets[i] += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(max_tokens: u32, wants: &[(u32, u32)], expected: &[u32]) {
        let wants: Vec<Want> = wants
            .iter()
            .map(|(tokens, weight)| Want {
                tokens: *tokens,
                weight: *weight,
            })
            .collect();
        assert_eq!(shares(max_tokens, &wants), expected, "{wants:?}");
    }

    #[test]
    fn room_is_shared_by_weight_and_what_one_leaves_goes_to_the_others() {
        check(64, &[], &[]);
        check(64, &[(10, 1)], &[10]);
        check(64, &[(1000, 1)], &[64]);
        check(64, &[(1000, 1), (1000, 1)], &[32, 32]);
        check(64, &[(1000, 1), (1, 1)], &[63, 1]);
        check(62, &[(1000, 3), (1000, 1)], &[46, 16]);
        check(64, &[(1000, 1), (8, 1), (1000, 1)], &[28, 8, 28]);
        check(64, &[(32, 1), (32, 1)], &[32, 32]);
        check(4, &[(9, 1), (9, 100), (9, 1)], &[1, 2, 1]);
    }

    proptest! {
        #[test]
        fn nobody_starves_and_no_room_is_wasted(
            wants in prop::collection::vec((1..3000_u32, 1..=100_u32), 1..64),
            max_tokens in 64..600_u32,
        ) {
            let wants: Vec<Want> = wants.into_iter().map(|(tokens, weight)| Want { tokens, weight }).collect();
            let gets = shares(max_tokens, &wants);
            let wanted: u32 = wants.iter().map(|want| want.tokens).sum();
            prop_assert_eq!(gets.iter().sum::<u32>(), wanted.min(max_tokens));
            let total: u32 = wants.iter().map(|want| want.weight).sum();
            let after_one_each = max_tokens - u32::try_from(wants.len()).expect("few");
            for (want, got) in wants.iter().zip(&gets) {
                let share = after_one_each * want.weight / total;
                prop_assert!((1..=want.tokens).contains(got));
                prop_assert!(*got >= want.tokens.min(1 + share), "{} of {}", got, share);
            }
        }
    }
}
