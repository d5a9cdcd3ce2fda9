//! How much of the engine's queue a session may take.
//!
//! The queue is shared. Without a bound for each, a frontend that floods it would have the steps of
//! the others refused.

use std::sync::Arc;

use crate::limits::MAX_MESSAGES_QUEUED;

/// The tickets of one session.
#[derive(Debug, Default)]
pub struct Tickets(Arc<()>);

/// The right to one place in the engine's queue, until it is dropped.
#[derive(Debug, Default)]
pub struct Ticket(#[expect(dead_code, reason = "counted")] Arc<()>);

impl Tickets {
    /// A ticket, if one is left.
    #[must_use]
    pub fn take(&self) -> Option<Ticket> {
        let num_taken = Arc::strong_count(&self.0) - 1;
        (num_taken < MAX_MESSAGES_QUEUED).then(|| Ticket(Arc::clone(&self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_comes_back_when_it_is_dropped() {
        let tickets = Tickets::default();
        let mut taken: Vec<_> = (0..MAX_MESSAGES_QUEUED).map(|_| tickets.take()).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(tickets.take().is_none());
        assert!(Tickets::default().take().is_some(), "others have their own");
        taken.pop();
        assert!(tickets.take().is_some());
    }
}
