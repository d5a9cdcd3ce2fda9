"""The names and the policy, against vLLM's real parser and configuration."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_metal_rpc import alias
from vllm_metal_rpc.errors import MetalRpcError
from vllm_metal_rpc.executor import MetalRpcExecutor
from vllm_metal_rpc.platform import MetalRpcPlatform


def config_of(folder: Path, **arguments: Any) -> Any:
    return EngineArgs(model=str(folder), max_model_len=128, **arguments).create_engine_config()


def parser() -> FlexibleArgumentParser:
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())


def test_vllm_has_found_the_platform() -> None:
    assert isinstance(current_platform, MetalRpcPlatform)
    assert current_platform.is_out_of_tree()


@pytest.mark.parametrize("name", alias.ALIASES)
def test_the_command_line_understands_the_name(name: str) -> None:
    arguments = parser().parse_args(["--distributed-executor-backend", name])
    assert arguments.distributed_executor_backend == alias.EXECUTOR


def test_other_names_reach_vllm() -> None:
    arguments = parser().parse_args(["--distributed-executor-backend", "mp"])
    assert arguments.distributed_executor_backend == "mp"


def test_a_yaml_file_understands_the_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("distributed-executor-backend: metal-rpc\n")
    arguments = parser().parse_args(["--config", str(config)])
    assert arguments.distributed_executor_backend == alias.EXECUTOR


@pytest.mark.parametrize("name", [None, "uni", "metal-rpc", "metal_rpc", alias.EXECUTOR])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_every_way_leads_to_our_executor(
    model_folder: Path, name: str | None, asynchronous: bool
) -> None:
    config = config_of(
        model_folder, distributed_executor_backend=name, async_scheduling=asynchronous
    )
    from vllm.v1.executor.abstract import Executor

    assert Executor.get_class(config) is MetalRpcExecutor
    scheduler = "MetalRpcAsyncScheduler" if asynchronous else "MetalRpcScheduler"
    assert config.scheduler_config.get_scheduler_cls().__name__ == scheduler
    # The engine's process receives the configuration by pickle, and completes it once more.
    pickle.loads(pickle.dumps(config)).__post_init__()


def test_steps_overlap_by_default(model_folder: Path) -> None:
    assert config_of(model_folder).scheduler_config.async_scheduling is True


def test_the_alias_is_installed_once(model_folder: Path) -> None:
    from vllm.v1.executor.abstract import Executor

    before = Executor.get_class
    alias.install()
    assert Executor.get_class is before


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("tensor-parallel-size", {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}),
    ("kv-cache-dtype", {"kv_cache_dtype": "fp8"}),
    ("enable-lora", {"enable_lora": True}),
    ("load-format", {"load_format": "dummy"}),
    ("hf-overrides", {"hf_overrides": {"rope_theta": 1.0}}),
    ("enable-prompt-embeds", {"enable_prompt_embeds": True}),
    ("logits-processors", {"logits_processors": ["a.B"]}),
    (
        "speculative-config",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ),
    ("distributed-executor-backend mp", {"distributed_executor_backend": "mp"}),
    ("pooling", {"runner": "pooling"}),
    ("scheduler-cls", {"scheduler_cls": "builtins.dict"}),
    ("[Ss]leep mode", {"enable_sleep_mode": True}),
]


@pytest.mark.parametrize(("text", "arguments"), REFUSED, ids=[text for text, _ in REFUSED])
def test_an_option_that_would_be_ignored_is_refused_by_name(
    model_folder: Path, text: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=text):
        config_of(model_folder, **arguments)


def test_the_first_model_runners_dialect_is_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        config_of(model_folder)


def test_the_second_model_runners_dialect_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    current_platform.pre_register_and_update()
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"


def test_another_lowering_path_is_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    with pytest.raises(MetalRpcError, match="VLLM_METAL_USE_MLX=0"):
        config_of(model_folder)


@pytest.mark.parametrize(
    ("variable", "option", "expected"), [(None, None, 16), ("32", None, 32), ("32", 8, 8)]
)
def test_block_size(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    option: int | None,
    expected: int,
) -> None:
    if variable is not None:
        monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", variable)
    config = config_of(model_folder, **({"block_size": option} if option else {}))
    assert config.cache_config.block_size == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(model_folder: Path, dtype: str) -> None:
    assert config_of(model_folder, dtype=dtype).model_config.dtype == getattr(torch, dtype)


def test_our_variables_are_known_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VLLM_TEST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_METAL_DEBUG", "1")
    current_platform.validate_environ(hard_fail=True)
    monkeypatch.setenv("VLLM_METTLE_DEBUG", "1")
    with pytest.raises(ValueError, match="VLLM_METTLE_DEBUG"):
        current_platform.validate_environ(hard_fail=True)


def test_memory_is_that_of_the_machine() -> None:
    assert current_platform.get_device_total_memory() > 1 << 28
