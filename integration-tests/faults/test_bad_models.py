"""A model that cannot be served ends `vllm serve` with the cause; the daemon serves others on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from framework import models
from framework.bystander import Bystander
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend
from framework.server import Server

NORM = "model.norm.weight"
# One vLLM takes a core for its start.
AT_A_TIME = 2


def _shorten_norm(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = weights[NORM][:3].clone()


def _remove_norm(weights: dict[str, torch.Tensor]) -> None:
    del weights[NORM]


@pytest.fixture(scope="module")
def folders(smollm2: Path, make_folder: Callable[[], Path]) -> dict[str, Path]:
    root = make_folder()
    bloom = {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
    return {
        "missing folder": root / "nowhere",
        "unknown model_type": models.with_config(smollm2, root / "bloom", **bloom),
        "truncated weights": models.truncated(smollm2, root / "truncated"),
        "wrong shape": models.with_weights(smollm2, root / "shape", _shorten_norm),
        "missing tensor": models.with_weights(smollm2, root / "tensor", _remove_norm),
        "too little memory": smollm2,
    }


CAUSES: dict[str, tuple[str, ...]] = {
    "missing folder": ("nowhere",),
    "unknown model_type": ("model_type", "bloom"),
    "truncated weights": ("model.safetensors must have",),
    "wrong shape": (NORM, "must have shape [576]", "[3]"),
    "too little memory": ("no memory is left", "gpu-memory-utilization"),
}
FLAGS = {"too little memory": ("--gpu-memory-utilization=0.005",)}


@pytest.fixture(scope="module")
def ended(daemon: Daemon, tiny: Callable[[str], Path], folders: dict[str, Path]) -> Iterator[dict]:
    """How each `vllm serve` ended, while a session of another model went on."""

    def run(case: str) -> tuple[int, str]:
        flags = ("--max-model-len=1024", *FLAGS.get(case, ()))
        server = Server(folders[case], daemon.folder, *flags)
        server.start()
        return server.wait_end(), server.log_path.read_text()

    with Bystander(daemon.endpoint, tiny("gqa")) as bystander:
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            results = dict(zip(CAUSES, threads.map(run, CAUSES), strict=True))
        assert bystander.num_rounds > 0
    yield results
    assert daemon.is_running()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CAUSES)
def test_vllm_serve_ends_with_the_cause(ended: dict[str, tuple[int, str]], case: str) -> None:
    code, log = ended[case]
    assert code != 0
    for part in CAUSES[case]:
        assert part in log, log[-4000:]


CODES = {
    "missing folder": "ModelNotFound",
    "unknown model_type": "UnsupportedModel",
    "truncated weights": "InvalidModel",
    "wrong shape": "InvalidModel",
    "missing tensor": "InvalidModel",
}


@pytest.mark.parametrize("case", CODES)
def test_the_daemon_refuses_a_bad_model(
    daemon: Daemon, folders: dict[str, Path], case: str
) -> None:
    with Frontend(daemon.endpoint) as frontend:
        frontend.hello()
        with pytest.raises(DaemonError) as caught:
            frontend.load_model(folders[case])
        assert (caught.value.code, caught.value.scope) == (CODES[case], "request")
        # The session can still load another one.
        frontend.load_model(folders["too little memory"])


@pytest.mark.parametrize("field", ["dtype", "max_num_seqs", "max_num_batched_tokens"])
def test_the_daemon_refuses_a_bad_load(daemon: Daemon, smollm2: Path, field: str) -> None:
    wrong = {"dtype": "int3"}.get(field, 1 << 30)
    with Frontend(daemon.endpoint) as frontend:
        frontend.hello()
        with pytest.raises(DaemonError, match=field) as caught:
            frontend.load_model(smollm2, **{field: wrong})  # type: ignore[arg-type]
        assert caught.value.code == "BadMessage"
