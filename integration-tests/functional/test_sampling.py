"""What a request gets does not depend on what is scheduled beside it, nor on how.

What each parameter does is in test_openai_sampling.py; test_daemon_killed.py asks the same
mixture while the daemon dies.
"""

from typing import Any

from framework import prompts
from framework.prompts import SAMPLED
from framework.server import Server


def test_a_mixture_is_the_same_alone_and_among_others_and_on_both_servers(
    server: Server, seen: dict[str, Any]
) -> None:
    """32 requests with all kinds of parameters, so many that they preempt each other."""
    prompt = prompts.VARIED[0]
    alone = [server.complete(prompt, **parameters) for parameters in SAMPLED]
    before = server.metric("vllm:num_preemptions_total")
    together = server.ask_all(
        [{"prompt": prompt} | parameters for parameters in SAMPLED]
        + [
            {"prompt": text, "temperature": 0.0, "ignore_eos": True, "max_tokens": 48}
            for text in prompts.many(32 - len(SAMPLED))
        ]
    )
    assert server.metric("vllm:num_preemptions_total") > before
    for one, other in zip(alone, together, strict=False):
        assert one["token_ids"] == other["token_ids"]
        assert one["logprobs"] == other["logprobs"]
    # The first server leaves its tokens for the second, which schedules in the other way.
    tokens = [one["token_ids"] for one in alone]
    assert seen.setdefault("mixture", tokens) == tokens
