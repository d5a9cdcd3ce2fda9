"""What transformers says in float32: what every answer is measured against."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class ReferenceModel:
    """A checkpoint in float32, whatever dtype it is stored in."""

    def __init__(self, folder: Path) -> None:
        # More threads wait for each other in a spin, which takes the daemon's cores.
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()

    @torch.inference_mode()
    def assert_greedy(self, prompt: Sequence[int], answer: Sequence[int], tie: float) -> None:
        """Asserts that `answer` is what greedy decoding gives after `prompt`.

        One forward over prompt and answer tells the most likely token after each prefix. Up to the
        first difference that is what decoding one by one would give; after one there is nothing
        left to compare.

        Args:
            prompt: token ids.
            answer: token ids under test.
            tie: by how much, in log probability, the reference may prefer another token at the
                first difference.
        """
        logprobs = self.logprobs(prompt, answer)
        best, best_ids = logprobs.max(dim=-1)
        for position, token in enumerate(answer):
            expected = int(best_ids[position])
            if token != expected:
                behind = float(best[position] - logprobs[position, token])
                assert behind <= tie, (
                    f"position {position}: token {token} instead of {expected}, which the "
                    f"reference prefers by {behind:.4f}; the answer is {list(answer)}"
                )
                return

    @torch.inference_mode()
    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Log probabilities of all tokens at each place of the answer: `[len(answer), vocab]`."""
        return torch.log_softmax(self.logits(prompt, answer), dim=-1)

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Logits of all tokens at each place of the answer: `[len(answer), vocab]`."""
        sequence = torch.tensor([[*prompt, *answer]])
        # All logits of a long prompt would take gigabytes.
        logits: torch.Tensor = self._model(sequence, logits_to_keep=len(answer) + 1).logits[0, :-1]
        return logits
