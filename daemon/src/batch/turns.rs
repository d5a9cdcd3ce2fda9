//! Which model runs next: deficit round robin by tokens (Shreedhar and Varghese, 1995).
//!
//! Each round gives every model with work tokens in proportion to the weights of its sessions; a
//! model runs a forward at a time, longest unserved first, until it has used them up. The last
//! forward may overdraw, which the next rounds pay back ("surplus" round robin: a forward's tokens
//! need not be cut to fit).
//!
//! # Invariants
//! - No clock and no I/O: the same calls give the same turns.
//! - While two models both have work, what they were charged, divided by their weights, differs by
//!   at most what a round gives for one unit of weight, and a forward of each.

use std::collections::BTreeMap;

use crate::models::loaded::ModelKey;

/// The least that a forward is charged: reading the weights takes about as long as computing so
/// many tokens. Otherwise a model that decodes one request would run 32 forwards for each one of a
/// model that decodes 32.
pub const MIN_CHARGE_TOKENS: u32 = 32;

/// Whose turn it is.
#[derive(Debug)]
pub struct Turns {
    /// What a round gives for each unit of weight.
    round_tokens: u32,
    /// Longest unserved first.
    models: Vec<Account>,
}

#[derive(Debug)]
struct Account {
    model: ModelKey,
    /// Tokens that it may still run; negative if it has overdrawn.
    tokens: i64,
}

impl Turns {
    /// No model has had a turn. `round_tokens` is the size of a turn.
    #[must_use]
    pub fn new(round_tokens: u32) -> Self {
        assert!(round_tokens > 0, "a round gives something");
        Self {
            round_tokens,
            models: Vec::new(),
        }
    }

    /// The model whose turn it is, if any has work.
    ///
    /// `weights` has every model with a session: the weights of its sessions that have work.
    pub fn next(&mut self, weights: &BTreeMap<&ModelKey, u32>) -> Option<ModelKey> {
        self.models
            .retain(|account| weights.contains_key(&account.model));
        for model in weights.keys() {
            if !self.models.iter().any(|account| account.model == **model) {
                self.models.push(Account {
                    model: (*model).clone(),
                    tokens: 0,
                });
            }
        }
        for account in &mut self.models {
            // Who has no work saves nothing up.
            if weights[&account.model] == 0 {
                account.tokens = account.tokens.min(0);
            }
        }
        if weights.values().all(|weight| *weight == 0) {
            return None;
        }
        loop {
            let may_run = |account: &&Account| account.tokens > 0 && weights[&account.model] > 0;
            if let Some(account) = self.models.iter().find(may_run) {
                return Some(account.model.clone());
            }
            for account in &mut self.models {
                let weight = weights[&account.model];
                account.tokens += i64::from(self.round_tokens) * i64::from(weight);
            }
        }
    }

    /// Says that `model` runs a forward of `num_tokens` tokens.
    pub fn charge(&mut self, model: &ModelKey, num_tokens: u32) {
        let index = self
            .models
            .iter()
            .position(|account| account.model == *model);
        let mut account = self.models.remove(index.expect("it had its turn"));
        // A frontend alone on the device may run more than a turn; nobody waited for it.
        let charged = num_tokens.clamp(MIN_CHARGE_TOKENS, self.round_tokens.max(MIN_CHARGE_TOKENS));
        account.tokens -= i64::from(charged);
        self.models.push(account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: u32 = 64;

    /// What the models are charged in `num_forwards` forwards of these `(weight, tokens)`.
    fn charged(models: &[(u32, u32)], num_forwards: usize) -> Vec<u64> {
        let keys: Vec<ModelKey> = (0..models.len())
            .map(|i| ModelKey::for_tests(&i.to_string()))
            .collect();
        let weights = keys
            .iter()
            .zip(models.iter().map(|(weight, _)| *weight))
            .collect();
        let mut turns = Turns::new(ROUND);
        let mut charged = vec![0; models.len()];
        for _ in 0..num_forwards {
            let model = turns.next(&weights).expect("all have work");
            let index = keys
                .iter()
                .position(|key| *key == model)
                .expect("one of them");
            turns.charge(&model, models[index].1);
            charged[index] += u64::from(models[index].1.max(MIN_CHARGE_TOKENS));
        }
        charged
    }

    #[test]
    fn models_take_turns_and_get_the_same_tokens() {
        assert_eq!(charged(&[(1, 64), (1, 64)], 10), [320, 320]);
        // Two forwards of half a turn for each whole one.
        assert_eq!(charged(&[(1, 32), (1, 64)], 9), [192, 192]);
        // A single token costs as much as reading the weights does.
        assert_eq!(charged(&[(1, 1), (1, 32)], 10), [160, 160]);
    }

    #[test]
    fn weights_divide_the_tokens() {
        assert_eq!(charged(&[(3, 64), (1, 64)], 8), [6 * 64, 2 * 64]);
        assert_eq!(charged(&[(100, 64), (1, 64)], 202), [200 * 64, 2 * 64]);
    }

    #[test]
    fn who_comes_back_has_saved_nothing_and_still_owes() {
        let (a, b) = (ModelKey::for_tests("a"), ModelKey::for_tests("b"));
        let both = BTreeMap::from([(&a, 1), (&b, 1)]);
        let mut turns = Turns::new(ROUND);
        let only_b = BTreeMap::from([(&a, 0), (&b, 1)]);
        for _ in 0..10 {
            assert_eq!(turns.next(&only_b), Some(b.clone()));
            turns.charge(&b, ROUND);
        }
        let order: Vec<ModelKey> = (0..4)
            .map(|_| {
                let model = turns.next(&both).expect("both have work");
                turns.charge(&model, ROUND);
                model
            })
            .collect();
        assert_eq!(order, [a.clone(), b.clone(), a.clone(), b.clone()]);
        assert_eq!(turns.next(&BTreeMap::from([(&a, 0), (&b, 0)])), None);
        assert_eq!(turns.next(&BTreeMap::new()), None);
    }

    // Goal: the bound of the module's header. Method: models with weights and forwards of any size,
    // all of which have work; each pair is compared after each forward.
    #[test]
    fn served_tokens_stay_within_the_bound() {
        let seed = std::env::var("METAL_RPC_TURNS_SEED").ok();
        let seed = seed.map_or(0x5eed, |seed| seed.parse().expect("a number"));
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let keys: Vec<ModelKey> = (0..rng.usize(2..5))
                .map(|i| ModelKey::for_tests(&i.to_string()))
                .collect();
            let weights: Vec<u32> = keys.iter().map(|_| rng.u32(1..=8)).collect();
            let mut turns = Turns::new(ROUND);
            let mut served = vec![0.0; keys.len()];
            for _ in 0..200 {
                let all = keys.iter().zip(weights.iter().copied()).collect();
                let model = turns.next(&all).expect("all have work");
                let index = keys
                    .iter()
                    .position(|key| *key == model)
                    .expect("one of them");
                let tokens = rng.u32(1..=ROUND);
                turns.charge(&model, tokens);
                served[index] +=
                    f64::from(tokens.max(MIN_CHARGE_TOKENS)) / f64::from(weights[index]);
                let pairs = (0..keys.len()).flat_map(|i| (0..keys.len()).map(move |j| (i, j)));
                for (i, j) in pairs {
                    let per_weight = |i: usize| 1.0 / f64::from(weights[i]);
                    let bound = f64::from(ROUND) * (1.0 + per_weight(i) + per_weight(j));
                    let difference: f64 = served[i] - served[j];
                    assert!(
                        difference.abs() <= bound,
                        "seed {seed}: {served:?} of weights {weights:?}"
                    );
                }
            }
        }
    }
}
