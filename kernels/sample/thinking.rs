//! When a request has thought long enough, and which token ends it.

/// What a row's `thinking` span holds: the budget, the lengths of three phrases, the phrases.
struct Thinking<'a> {
    max_tokens: usize,
    start: &'a [i32],
    natural_end: &'a [i32],
    end: &'a [i32],
}

impl<'a> Thinking<'a> {
    fn read(list: &'a [i32]) -> Option<Self> {
        let (&[max_tokens, start, natural_end, end], phrases) = list.split_first_chunk()?;
        let len = |value: i32| usize::try_from(value).expect("a count is never negative");
        let (start, phrases) = phrases.split_at(len(start));
        let (natural_end, phrases) = phrases.split_at(len(natural_end));
        Some(Self {
            max_tokens: len(max_tokens),
            start,
            natural_end,
            end: &phrases[..len(end)],
        })
    }

    /// Tokens since the phrase that began to think; `None` if none did, or an end came after it.
    fn num_thought(&self, tokens: &[i32]) -> Option<usize> {
        for (position, _) in tokens.iter().enumerate().rev() {
            let rest = &tokens[position..];
            if rest.starts_with(self.natural_end) {
                return None;
            }
            if rest.starts_with(self.start) {
                return Some(rest.len() - self.start.len());
            }
        }
        None
    }
}

/// The token that a row must be given next, if its budget is spent.
///
/// `list` is the row's `thinking` span and `tokens` are prompt and output. The phrase that ends
/// the thinking is written one token a step, from where the tokens already are in it.
///
/// # Source
/// vllm/v1/worker/gpu/sample/thinking_budget.py, `_thinking_budget_kernel`.
pub(super) fn forced_token(list: &[i32], tokens: &[i32]) -> Option<i32> {
    let thinking = Thinking::read(list)?;
    if thinking.num_thought(tokens)? < thinking.max_tokens {
        return None;
    }
    let written = (1..thinking.end.len())
        .rev()
        .find(|&len| tokens.ends_with(&thinking.end[..len]));
    thinking.end.get(written.unwrap_or(0)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thinking begins with 1 2, ends with 3 by itself and with 8 9 3 by force.
    fn check(max_tokens: i32, tokens: &[i32], expected: Option<i32>) {
        let list = [max_tokens, 2, 1, 3, 1, 2, 3, 8, 9, 3];
        assert_eq!(
            forced_token(&list, tokens),
            expected,
            "{max_tokens} {tokens:?}"
        );
    }

    #[test]
    fn a_spent_budget_forces_the_end_token_by_token() {
        check(2, &[5, 1, 2, 6], None);
        check(2, &[5, 1, 2, 6, 6], Some(8));
        check(2, &[5, 1, 2, 6, 6, 8], Some(9));
        check(2, &[5, 1, 2, 6, 6, 8, 9], Some(3));
        check(2, &[5, 1, 2, 6, 6, 8, 9, 3], None);
        check(0, &[1, 2], Some(8));
        // Begun on its own before the budget is spent, it is gone on with afterwards.
        check(1, &[1, 2, 8], Some(9));
    }

    #[test]
    fn only_the_last_thought_counts() {
        check(0, &[], None);
        check(0, &[1], None);
        check(0, &[4, 5], None);
        check(0, &[1, 2, 6, 3], None);
        check(1, &[1, 2, 6, 6, 3, 4, 1, 2], None);
        check(1, &[1, 2, 6, 6, 3, 4, 1, 2, 6], Some(8));
        check(3, &[1, 2, 6, 6, 6, 1, 2, 6], None);
    }

    #[test]
    fn a_row_without_a_budget_is_free() {
        assert_eq!(forced_token(&[], &[1, 2, 3]), None);
    }
}
