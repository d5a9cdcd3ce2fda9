"""Memory runs out: the frontend that needed it is told so, others do not notice."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from framework import models
from framework.bystander import Bystander
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend, ready_frontend
from framework.greedy import generate
from framework.memory_limit import needs_memory_limit, no_more_memory

MEBIBYTE = 1 << 20
# What the daemon takes with a tiny model, and less than it takes with SmolLM2.
SMALL_BYTES = 200 * MEBIBYTE
VOCAB_SIZE = 100_000
# Enough for steps that decode, and less than 256 rows of logits take.
SPARE_BYTES = 48 * MEBIBYTE
SHORT = [5, 17, 200, 31, 8, 9]
LONG = [(7 * position) % 1000 + 5 for position in range(300)]


def test_a_model_that_does_not_fit_is_refused_and_others_go_on(
    make_folder: Callable[[], Path], tiny: Callable[[str], Path], smollm2: Path
) -> None:
    fraction = SMALL_BYTES / _memory_bytes()
    with (
        Daemon(make_folder(), VLLM_METAL_MEMORY_FRACTION=f"{fraction:.6f}") as daemon,
        Bystander(daemon.endpoint, tiny("gqa")) as bystander,
        Frontend(daemon.endpoint) as frontend,
    ):
        frontend.hello()
        before = bystander.num_rounds
        with pytest.raises(DaemonError) as caught:
            frontend.load_model(smollm2, dtype="float32")
        assert (caught.value.code, caught.value.scope) == ("OutOfMemory", "request")
        bystander.wait_for_rounds(before + 2)
        # The session is as if it had not asked.
        frontend.load_model(tiny("gqa"))


@needs_memory_limit
def test_a_step_without_memory_ends_its_session_alone(make_folder: Callable[[], Path]) -> None:
    """The scores of a prompt need the logits of all its positions at once."""
    model = models.tiny_llama("mha-tied", make_folder() / "wide", vocab_size=VOCAB_SIZE)
    with (
        Daemon(make_folder(), "--turn-tokens=512") as daemon,
        ready_frontend(daemon.endpoint, model, num_blocks=64) as large,
        ready_frontend(daemon.endpoint, model, num_blocks=64) as small,
    ):
        pid = daemon.pid
        expected_large = generate(large, [LONG], 4, prompt_logprobs=1)
        expected_small = generate(small, [SHORT], 8)
        with no_more_memory(pid, SPARE_BYTES):
            assert generate(small, [SHORT], 8) == expected_small
            with pytest.raises(DaemonError) as caught:
                generate(large, [LONG], 4, prompt_logprobs=1)
            assert (caught.value.code, caught.value.scope) == ("OutOfMemory", "session")
            assert "Unable to allocate" in caught.value.message
            assert generate(small, [SHORT], 8) == expected_small
        large.session = b""
        large.hello()
        large.load_model(model)
        large.create_cache(64)
        assert generate(large, [LONG], 4, prompt_logprobs=1) == expected_large
        assert generate(small, [SHORT], 8) == expected_small
        assert daemon.status()["pid"] == pid


def _memory_bytes() -> int:
    """As the daemon counts it: this machine's, or the control group's."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    total = psutil.virtual_memory().total
    return total if text == "max" else min(total, int(text))
