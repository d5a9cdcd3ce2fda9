//! What happened in worlds, for people and for the canary.

use std::fmt;

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) forwards: u64,
    pub(super) tokens: u64,
    pub(super) merged: u64,
    pub(super) cut: u64,
    pub(super) kills: u64,
    pub(super) duplicates: u64,
    pub(super) reorders: u64,
    pub(super) expired: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.forwards += other.forwards;
        self.tokens += other.tokens;
        self.merged += other.merged;
        self.cut += other.cut;
        self.kills += other.kills;
        self.duplicates += other.duplicates;
        self.reorders += other.reorders;
        self.expired += other.expired;
    }

    /// Panics if something never happened.
    pub(super) fn assert_that_everything_happened(&self) {
        let all = [
            self.forwards,
            self.merged,
            self.cut,
            self.kills,
            self.duplicates,
            self.reorders,
            self.expired,
        ];
        assert!(!all.contains(&0), "something never happened: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} forwards ({} merged) of {} tokens, {} steps cut, {} kills, {} duplicates, \
             {} reorders, {} leases run out",
            self.forwards,
            self.merged,
            self.tokens,
            self.cut,
            self.kills,
            self.duplicates,
            self.reorders,
            self.expired
        )
    }
}
