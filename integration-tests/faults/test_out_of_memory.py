"""Memory runs out: the frontend that needed it is told so, others do not notice."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from framework.bystander import Bystander
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend

MEBIBYTE = 1 << 20
# What the daemon takes with a tiny model, and less than it takes with SmolLM2.
SMALL_BYTES = 200 * MEBIBYTE


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


def _memory_bytes() -> int:
    """As the daemon counts it: this machine's, or the control group's."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    total = psutil.virtual_memory().total
    return total if text == "max" else min(total, int(text))
