"""The name `metal-rpc` for `--distributed-executor-backend`.

vLLM takes any string there and reads it as a dotted path, once while it builds its configuration
and once more in the engine process. The name has to be understood in both places.
"""

from collections.abc import Callable
from typing import Any, Final

EXECUTOR: Final = "vllm_metal_rpc.executor.MetalRpcExecutor"
ALIASES: Final = ("metal-rpc", "metal_rpc")


def install() -> None:
    """Makes `Executor.get_class` understand the alias. Repeated calls do nothing.

    The field is rewritten to the dotted path, so nothing after it needs to know the alias.
    """
    from vllm.v1.executor.abstract import Executor

    original: Callable[..., Any] = Executor.get_class
    if getattr(original, "understands_metal_rpc", False):
        return

    def get_class(vllm_config: Any) -> Any:
        parallel = vllm_config.parallel_config
        if parallel.distributed_executor_backend in ALIASES:
            parallel.distributed_executor_backend = EXECUTOR
        return original(vllm_config)

    get_class.understands_metal_rpc = True  # type: ignore[attr-defined]
    Executor.get_class = staticmethod(get_class)


def install_in_parser(parser: Any) -> None:
    """Makes the command line (and a YAML `--config`) understand the alias."""
    for action in parser._actions:
        if "--distributed-executor-backend" in action.option_strings:
            action.type = _converter(action.type)


def _converter(original: Callable[[str], Any] | None) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text in ALIASES:
            return EXECUTOR
        return original(text) if original is not None else text

    return convert
