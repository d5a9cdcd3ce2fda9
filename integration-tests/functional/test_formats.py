"""Real models in every format that people have them in, through `vllm serve`.

What each format's numbers mean is compared exactly in `daemon/tests/models`; here a whole server
has to take the path as a user types it, and to answer.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from framework import models
from framework.daemon import stopped_at_the_end
from framework.quantise import quantise
from framework.reference import ReferenceModel
from framework.server import Server

# Rounding to bfloat16 moves logits of this size by some hundredths; a GGUF file was not rounded.
TIE = 0.1
QUESTION = "The capital of France is"
# One vLLM takes a core for its start.
AT_A_TIME = 2
FLAGS = ("--max-model-len=512", "--gpu-memory-utilization=0.1", "--max-num-seqs=8")


@pytest.fixture(scope="module")
def paths(smollm2: Path, make_folder: Callable[[], Path]) -> dict[str, Path]:
    """What is typed after `vllm serve`."""
    root = make_folder()
    torch_folder = root / "torch"
    torch_folder.mkdir()
    for path in smollm2.iterdir():
        if path.suffix != ".safetensors":
            (torch_folder / path.name).symlink_to(path.resolve())
    torch.save(load_file(smollm2 / "model.safetensors"), torch_folder / "pytorch_model.bin")
    return {
        "mlx": models.real("smollm2-135m-4bit"),
        "gguf": models.real("smollm2-135m-gguf") / "model.gguf",
        "awq": quantise(smollm2, root / "awq", "awq"),
        "gptq": quantise(smollm2, root / "gptq", "gptq"),
        "torch": torch_folder,
    }


FORMATS = ("mlx", "gguf", "awq", "gptq", "torch")


@pytest.fixture(scope="module")
def answers(make_folder: Callable[[], Path], paths: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """What each server has to say, and its log; each has a daemon, and runs until it is asked."""

    def ask(name: str) -> dict[str, Any]:
        folder = make_folder()
        server = Server(paths[name], folder, *FLAGS, METAL_RPC_CACHE_DIR=str(folder / "cache"))
        with stopped_at_the_end(folder), server:
            answer = server.complete(QUESTION, max_tokens=12, temperature=0.0, ignore_eos=True)
            return answer | {"log": server.log_path.read_text()}

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        yield dict(zip(FORMATS, threads.map(ask, FORMATS), strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FORMATS)
def test_smollm2_answers_in_every_format(answers: dict[str, Any], name: str) -> None:
    assert "Paris" in answers[name]["text"], answers[name]["text"]
    assert "of weights" in answers[name]["log"]


def test_a_gguf_file_is_the_model_that_it_was_made_of(
    answers: dict[str, Any], reference: ReferenceModel, tokenizer: Any
) -> None:
    """The same file as bfloat16 safetensors, made by the `gguf` package and run by transformers."""
    prompt = tokenizer(QUESTION)["input_ids"]
    assert answers["gguf"]["prompt_token_ids"] == prompt
    reference.assert_greedy(prompt, answers["gguf"]["token_ids"], tie=TIE)


def test_converted_weights_are_the_same(answers: dict[str, Any], baseline: Any) -> None:
    prompt = answers["torch"]["prompt_token_ids"]
    assert baseline.greedy([prompt], 12) == [answers["torch"]["token_ids"]]


def test_quantised_weights_take_less_memory(answers: dict[str, Any]) -> None:
    gibibytes = {
        name: float(answer["log"].split(" GiB of weights")[0].rpartition(" ")[2])
        for name, answer in answers.items()
    }
    assert all(gibibytes[name] < 0.6 * gibibytes["torch"] for name in ("mlx", "gguf")), gibibytes
