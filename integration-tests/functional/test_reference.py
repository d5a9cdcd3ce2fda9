"""The daemon's tokens against transformers in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import models, prompts
from framework.baseline import Baseline
from framework.daemon import Daemon
from framework.frontend import new_request, ready_frontend
from framework.greedy import generate
from framework.reference import ReferenceModel

NUM_TOKENS = 48
# Rounding to bfloat16 moves logits of this size by some hundredths.
BFLOAT16_TIE = 0.05
# Sums of some hundred products in another order.
FLOAT32_TIE = 1e-4
NUM_TOP = 5
NUM_SCORED = 5
LOGPROB_TOLERANCE = 1e-3
# Around the ends of blocks and chunks.
PROMPT_LENGTHS = (1, 15, 16, 17, 33, 100)


@pytest.fixture(scope="module")
def varied(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in prompts.VARIED]


def test_smollm2_in_float32(
    daemon: Daemon, smollm2: Path, reference: ReferenceModel, varied: list[list[int]]
) -> None:
    with ready_frontend(daemon.endpoint, smollm2, dtype="float32") as frontend:
        answers = generate(frontend, varied, NUM_TOKENS, pipelined=True)
    for answer, prompt in zip(answers, varied, strict=True):
        reference.assert_greedy(prompt, answer, tie=FLOAT32_TIE)


def test_smollm2_in_bfloat16(
    baseline: Baseline, reference: ReferenceModel, varied: list[list[int]]
) -> None:
    answers = baseline.greedy(varied, NUM_TOKENS)
    for answer, prompt in zip(answers, varied, strict=True):
        reference.assert_greedy(prompt, answer, tie=BFLOAT16_TIE)


def test_logprobs_of_smollm2_in_float32(
    daemon: Daemon, smollm2: Path, reference: ReferenceModel, varied: list[list[int]]
) -> None:
    """The five most likely tokens at each place of eight prompts and of what follows them."""
    asks = {"logprobs": NUM_TOP, "prompt_logprobs": NUM_TOP}
    rows = list(range(len(varied)))
    lens = [len(prompt) for prompt in varied]
    new = [
        new_request(row, prompt, list(range(1 + 8 * row, 9 + 8 * row)), **asks)
        for row, prompt in enumerate(varied)
    ]
    with ready_frontend(daemon.endpoint, smollm2, dtype="float32") as frontend:
        results = [
            frontend.step(
                new_requests=new,
                handles=rows,
                num_computed_tokens=[0] * len(rows),
                num_scheduled_tokens=lens,
            )
        ]
        for step in range(NUM_SCORED - 1):
            computed = [length + step for length in lens]
            results.append(frontend.step(handles=rows, num_computed_tokens=computed))
    assert [told["row"] for told in results[0]["prompt_logprobs"]] == rows
    for row, prompt in enumerate(varied):
        answer = [result["token_ids"][row] for result in results]
        expected = reference.logprobs(prompt[:1], prompt[1:] + answer)
        told = _scores(results[0]["prompt_logprobs"][row]["logprobs"])
        told += [_scores(result["logprobs"])[row] for result in results]
        assert len(told) == len(expected)
        for place, (token_ids, logprobs) in enumerate(told):
            what = f"prompt {row}, place {place}"
            assert token_ids[0] == (prompt[1:] + answer)[place], what
            theirs = expected[place, torch.tensor(token_ids)].tolist()
            assert logprobs == pytest.approx(theirs, abs=LOGPROB_TOLERANCE), what
            top = expected[place].topk(NUM_TOP).values.tolist()
            assert logprobs[1:] == pytest.approx(top, abs=LOGPROB_TOLERANCE), what


def _scores(table: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    """The rows of a table: its own token and the most likely ones, and what they score."""
    columns = table["num_columns"]
    cells = range(0, len(table["logprobs"]), columns)
    return [
        (table["token_ids"][i : i + columns], table["logprobs"][i : i + columns]) for i in cells
    ]


@pytest.mark.parametrize("name", models.TINY_LLAMAS)
def test_shapes_of_llama(daemon: Daemon, tiny: Callable[[str], Path], name: str) -> None:
    _check_float32(daemon, tiny(name), tiny(name))


def test_weights_in_several_files(daemon: Daemon, tmp_path: Path) -> None:
    folder = models.tiny_llama("gqa", tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    _check_float32(daemon, folder, folder)


def test_config_as_older_checkpoints_write_it(
    daemon: Daemon, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = models.with_legacy_rope(tiny("llama3-rope"), tmp_path / "legacy")
    _check_float32(daemon, folder, tiny("llama3-rope"))


def test_the_reference_tells_a_wrong_token(
    reference: ReferenceModel, varied: list[list[int]]
) -> None:
    """The canary: a test that cannot fail shows nothing."""
    with pytest.raises(AssertionError, match="position 1"):
        # " Paris" is right, " the" after it is not.
        reference.assert_greedy(varied[0], [7042, 260], tie=BFLOAT16_TIE)


def test_chunks_and_companions_change_no_token(
    daemon: Daemon, smollm2: Path, baseline: Baseline, varied: list[list[int]]
) -> None:
    expected = baseline.greedy(varied, NUM_TOKENS)
    with ready_frontend(daemon.endpoint, smollm2, dtype="bfloat16") as frontend:
        for chunk in (1, 7, 16):
            tokens = generate(frontend, varied, NUM_TOKENS // 4, chunk=chunk, pipelined=True)
            assert tokens == [row[: NUM_TOKENS // 4] for row in expected], f"chunks of {chunk}"


def _check_float32(daemon: Daemon, folder: Path, reference_folder: Path) -> None:
    # A fixed walk through the vocabulary.
    asked = [[(7 * length + 31 * i) % 300 for i in range(length)] for length in PROMPT_LENGTHS]
    reference = ReferenceModel(reference_folder)
    with ready_frontend(daemon.endpoint, folder) as frontend:
        answers = generate(frontend, asked, NUM_TOKENS, chunk=32)
    for answer, prompt in zip(answers, asked, strict=True):
        reference.assert_greedy(prompt, answer, tie=FLOAT32_TIE)
