"""Greedy tokens from transformers in float32: what every answer is measured against."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM


class Reference(NamedTuple):
    """Greedy tokens of one prompt."""

    token_ids: list[int]
    # How far the best token is ahead of the second, in log probability, per position.
    margins: list[float]


class ReferenceModel:
    """A checkpoint in float32, whatever dtype it is stored in."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], num_tokens: int) -> Reference:
        """The most likely tokens after a prompt, end of sequence ignored."""
        tokens, margins = [], []
        step = self._model(torch.tensor([list(prompt)]), use_cache=True)
        for _ in range(num_tokens):
            logprobs = torch.log_softmax(step.logits[0, -1], dim=-1)
            best = torch.topk(logprobs, 2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            step = self._model(
                torch.tensor([[tokens[-1]]]), past_key_values=step.past_key_values, use_cache=True
            )
        return Reference(tokens, margins)


def assert_same_or_tied(actual: Sequence[int], reference: Reference, tie: float) -> None:
    """Asserts that the first difference, if any, is where the reference itself hardly decides.

    Args:
        actual: tokens under test.
        reference: of the same prompt.
        tie: largest margin, in log probability, that counts as undecided.
    """
    assert len(actual) == len(reference.token_ids)
    for position, (token, expected) in enumerate(zip(actual, reference.token_ids, strict=True)):
        if token != expected:
            margin = reference.margins[position]
            assert margin <= tie, (
                f"position {position}: token {token} instead of {expected}, which the reference "
                f"prefers by {margin:.3f}"
            )
            return
