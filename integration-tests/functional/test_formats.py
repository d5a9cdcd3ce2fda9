"""Real models in every format that people have them in, through vLLM.

What each format's numbers mean is compared exactly in `daemon/tests/models`; here vLLM has to take
the path as a user types it, and to answer: a whole server of its own for most, `LLM(...)` for those
that differ from one of these in the model alone.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from framework import models, offline
from framework.daemon import Daemon, daemon_log, stopped_at_the_end
from framework.quantise import quantise
from framework.reference import ReferenceModel
from framework.server import Server

# Rounding to bfloat16 moves logits of this size by some hundredths; a GGUF file was not rounded.
TIE = 0.1
QUESTION = "The capital of France is"
# Gemma 3 270M goes on in circles after the shorter one.
GEMMA_QUESTION = "Question: What is the capital of France? Answer:"
# One vLLM takes a core for its start.
AT_A_TIME = 2
FLAGS = ("--max-model-len=512", "--gpu-memory-utilization=0.1", "--max-num-seqs=8")


@pytest.fixture(scope="module")
def paths(smollm2: Path, make_folder: Callable[[], Path]) -> dict[str, Path]:
    """What is typed after `vllm serve`."""
    root = make_folder()
    gemma = models.real("gemma3-270m")
    return {
        "mlx": models.real("smollm2-135m-4bit"),
        "gguf": models.real("smollm2-135m-gguf") / "model.gguf",
        "awq": quantise(smollm2, root / "awq", "awq"),
        "gptq": quantise(smollm2, root / "gptq", "gptq"),
        "torch": with_torch_file(smollm2, root / "torch"),
        "mlx-8bit": models.real("smollm2-135m-8bit"),
        "mlx-mxfp4": quantise(smollm2, root / "mxfp4", "mxfp4"),
        "gemma-mlx": models.real("gemma3-270m-4bit"),
        "gemma-mlx-8bit": models.real("gemma3-270m-8bit"),
        "gemma-gguf": models.real("gemma3-270m-gguf") / "model.gguf",
        "gemma-awq": quantise(gemma, root / "gemma-awq", "awq"),
        "gemma-gptq": quantise(gemma, root / "gemma-gptq", "gptq"),
        "gemma-torch": with_torch_file(gemma, root / "gemma-torch"),
    }


def with_torch_file(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint with `pytorch_model.bin` instead of safetensors."""
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


# SmolLM2's, and Gemma 3's; each has a server.
FORMATS = ("mlx", "gguf", "awq", "gptq", "torch", "gemma-mlx", "gemma-mlx-8bit", "gemma-gguf")
# Those that run one after the other, without one.
OFFLINE = ("mlx-8bit", "mlx-mxfp4", "gemma-awq", "gemma-gptq", "gemma-torch")
NUM_TOKENS = 12


def model_of(name: str) -> str:
    return "gemma3-270m" if name.startswith("gemma") else "smollm2-135m"


def question(name: str) -> str:
    return GEMMA_QUESTION if name.startswith("gemma") else QUESTION


@pytest.fixture(scope="module")
def answers(make_folder: Callable[[], Path], paths: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """What each server has to say, and its log; each has a daemon, and runs until it is asked."""

    def ask(name: str) -> dict[str, Any]:
        folder = make_folder()
        server = Server(paths[name], folder, *FLAGS, METAL_RPC_CACHE_DIR=str(folder / "cache"))
        with stopped_at_the_end(folder), server:
            answer = server.complete(
                question(name), max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True
            )
            logs = {"log": server.log_path.read_text(), "daemon": daemon_log(folder).read_text()}
            return answer | logs

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        yield dict(zip(FORMATS, threads.map(ask, FORMATS), strict=True))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """By the model that a format is of; slow to read."""
    names = ("smollm2-135m", "gemma3-270m")
    return {name: AutoTokenizer.from_pretrained(models.real(name)) for name in names}


@pytest.fixture(scope="module")
def offline_results(
    daemon: Daemon, paths: dict[str, Path], tokenizers: dict[str, Any]
) -> dict[str, list[int]]:
    """The tokens of the others."""
    prompts = {name: tokenizers[model_of(name)](question(name))["input_ids"] for name in OFFLINE}
    jobs = [
        offline.Job(str(paths[name]), prompt, NUM_TOKENS, dtype="bfloat16")
        for name, prompt in prompts.items()
    ]
    results = offline.run(daemon, jobs, METAL_RPC_CACHE_DIR=str(daemon.folder / "cache"))
    return {name: result.token_ids[0] for name, result in zip(OFFLINE, results, strict=True)}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", OFFLINE)
def test_real_models_answer_without_a_server(
    offline_results: dict[str, list[int]], tokenizers: dict[str, Any], name: str
) -> None:
    text = tokenizers[model_of(name)].decode(offline_results[name])
    assert "Paris" in text, text


def test_converted_weights_of_gemma_are_the_same(
    offline_results: dict[str, list[int]], tokenizers: dict[str, Any]
) -> None:
    prompt = tokenizers["gemma3-270m"](GEMMA_QUESTION)["input_ids"]
    reference = ReferenceModel(models.real("gemma3-270m"))
    reference.assert_greedy(prompt, offline_results["gemma-torch"], tie=TIE)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", FORMATS)
def test_real_models_answer_in_every_format(answers: dict[str, Any], name: str) -> None:
    assert "Paris" in answers[name]["text"], answers[name]["text"]
    assert "of weights" in answers[name]["log"]


@pytest.mark.parametrize("name", FORMATS)
def test_both_logs_tell_of_the_load(answers: dict[str, Any], name: str) -> None:
    """Bytes and seconds, however quick it is."""
    assert re.search(r"Loading /\S+: 100 % of \d+\.\d\d GiB, \d+\.\d s", answers[name]["log"])
    told = re.search(
        r"loaded path=/\S+ read_bytes=(\d+) weights_bytes=(\d+) seconds=\d", answers[name]["daemon"]
    )
    assert told is not None, answers[name]["daemon"]
    assert all(int(size) > 50_000_000 for size in told.groups())


@pytest.mark.parametrize("name", ["gguf", "gemma-gguf"])
def test_a_gguf_file_is_the_model_that_it_was_made_of(
    answers: dict[str, Any], tokenizers: dict[str, Any], name: str
) -> None:
    """The same file as bfloat16 safetensors, made by the `gguf` package and run by transformers."""
    prompt = tokenizers[model_of(name)](question(name))["input_ids"]
    assert answers[name]["prompt_token_ids"] == prompt
    ReferenceModel(models.real(model_of(name))).assert_greedy(
        prompt, answers[name]["token_ids"], tie=TIE
    )


def test_the_log_says_what_a_conversion_costs(answers: dict[str, Any]) -> None:
    (line,) = re.findall(r'weights were converted from="Q6_K".*', answers["gemma-gguf"]["daemon"])
    told = re.search(r"stored_bytes=(\d+) held_bytes=(\d+) precision=\"weights are rounded", line)
    assert told is not None, line
    stored, held = map(int, told.groups())
    # From 6.6 bits a weight to 9.
    assert held / stored == pytest.approx(9 / (210 * 8 / 256), rel=1e-3)


def test_converted_weights_are_the_same(answers: dict[str, Any], baseline: Any) -> None:
    prompt = answers["torch"]["prompt_token_ids"]
    assert baseline.greedy([prompt], NUM_TOKENS) == [answers["torch"]["token_ids"]]


def test_quantised_weights_take_less_memory(answers: dict[str, Any]) -> None:
    gibibytes = {
        name: float(answer["log"].split(" GiB of weights")[0].rpartition(" ")[2])
        for name, answer in answers.items()
    }
    assert all(gibibytes[name] < 0.6 * gibibytes["torch"] for name in ("mlx", "gguf")), gibibytes
    assert gibibytes["gemma-mlx"] < 0.6 * gibibytes["gemma-mlx-8bit"], gibibytes
