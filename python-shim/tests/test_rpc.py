"""Calls by name."""

import re
from pathlib import Path

import pytest
import vllm

from vllm_metal_rpc.executor import MetalRpcExecutor
from vllm_metal_rpc.rpc import ANSWERS, REFUSALS, answer_rpc


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_given(name: str) -> None:
    assert answer_rpc(name) == ANSWERS[name]


@pytest.mark.parametrize("name", [*REFUSALS, "anything_else"])
def test_refusals_name_the_call(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} is not supported by metal-rpc: ."):
        answer_rpc(name)


def test_a_function_cannot_be_shipped() -> None:
    def look_at(worker: object) -> None: ...

    with pytest.raises(NotImplementedError, match="look_at"):
        answer_rpc(look_at)


def test_every_name_that_vllm_calls_is_known() -> None:
    root = Path(vllm.__file__).parent
    sources = [root / "v1" / "engine" / "core.py", root / "v1" / "executor" / "abstract.py"]
    sources += [root / "v1" / "engine" / "async_llm.py", root / "v1" / "engine" / "llm_engine.py"]
    sources += [root / "entrypoints" / "llm.py"]
    names: set[str] = set()
    for source in sources:
        names |= set(re.findall(r"collective_rpc\(\s*\"(\w+)\"", source.read_text()))
    assert "add_lora" in names, "the search finds nothing"
    unknown = {
        name
        for name in names - set(ANSWERS) - set(REFUSALS)
        if name not in vars(MetalRpcExecutor) and f"{name}s" not in vars(MetalRpcExecutor)
    }
    assert not unknown
