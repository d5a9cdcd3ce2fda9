"""What vLLM asks of a device, answered for a device that lives in another process."""

import logging
import os
from importlib import import_module
from typing import Any, Final

import psutil
import torch
from vllm.platforms.interface import Platform, PlatformEnum

from vllm_metal_rpc import alias, envs, folders

logger = logging.getLogger("vllm.metal_rpc")

_DTYPES: Final = [torch.bfloat16, torch.float16, torch.float32]


class MetalRpcPlatform(Platform):
    """The platform `metal-rpc`.

    Everything that runs inside vLLM's processes is CPU code, hence `device_type`.
    """

    _enum = PlatformEnum.OOT
    device_name = "metal-rpc"
    device_type = "cpu"
    dispatch_key = "CPU"
    simple_compile_backend = "eager"
    dist_backend = "gloo"

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Dtypes of weights and KV cache; the first is the fallback."""
        return _DTYPES

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """Runs before any configuration is built: on the command line, and in `LLM(...)`."""
        # The scheduler's dialect; read from the environment by every process of vLLM.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
        envs.check_mlx()
        if envs.debug():
            logger.setLevel(logging.DEBUG)
        if parser is not None:
            alias.install_in_parser(parser)
        alias.install()
        folders.install()
        # It registers itself; vLLM's own methods need a platform to be imported.
        import_module("vllm_metal_rpc.quantization")

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: Any) -> None:
        """Turns off what prepares a torch model, because there is none."""
        from vllm.config import CompilationMode, CUDAGraphMode

        vllm_config.compilation_config.mode = CompilationMode.NONE
        vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Chooses executor, scheduler and block size; refuses what is not supported.

        Raises:
            ValueError: Names the option that is not supported.
        """
        from vllm_metal_rpc.scheduler import extended_path
        from vllm_metal_rpc.validate import check_config, check_vllm_sampling_params

        cls.apply_config_platform_defaults(vllm_config)
        check_vllm_sampling_params()
        check_config(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.distributed_executor_backend in (None, "uni", *alias.ALIASES):
            parallel.distributed_executor_backend = alias.EXECUTOR
        if parallel.distributed_executor_backend != alias.EXECUTOR:
            raise ValueError(
                f"--distributed-executor-backend {parallel.distributed_executor_backend} is not "
                "supported while vllm-metal-rpc is installed: use metal-rpc, or leave it out"
            )
        scheduler = vllm_config.scheduler_config
        scheduler.scheduler_cls = extended_path(
            scheduler.scheduler_cls, asynchronous=bool(scheduler.async_scheduling)
        )
        cache = vllm_config.cache_config
        if not cache.user_specified_block_size:
            cache.block_size = envs.block_size()

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Refuses to quantise while loading: whatever a checkpoint needs has our own name.

        Raises:
            ValueError: Names the method, and what is known.
        """
        from vllm_metal_rpc import quantization

        if quant != quantization.NAME:
            raise quantization.unsupported(quant)

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuses a request that the daemon cannot serve (HTTP 400)."""
        from vllm_metal_rpc.validate import check_request

        check_request(params, processed_inputs)

    @classmethod
    def validate_environ(cls, hard_fail: bool) -> None:
        """Checks `VLLM_*` variables as vLLM does, knowing ours as well."""
        from vllm import envs as vllm_envs

        for name in os.environ:
            if (
                name.startswith("VLLM_")
                and not name.startswith(envs.PREFIXES)
                and name not in vllm_envs.environment_variables
            ):
                if hard_fail:
                    raise ValueError(f"Unknown vLLM environment variable detected: {name}")
                logger.warning("Unknown vLLM environment variable detected: %s", name)

    # ---- The device ----

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The name of the device."""
        return "metal-rpc"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Bytes of memory, which host and device share."""
        return int(psutil.virtual_memory().total)

    @classmethod
    def get_current_memory_usage(cls, device: Any = None) -> float:
        """Bytes that this process uses of the device: none, they are the daemon's."""
        return 0.0

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """There is one device, and it is the daemon's."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Draws are keyed by the request's seed, in the daemon."""

    @classmethod
    def inference_mode(cls) -> Any:
        """No torch model runs here."""
        return torch.no_grad()

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        """Refuses dtypes that the daemon does not hold weights in."""
        if dtype not in _DTYPES:
            raise ValueError(f"--dtype {dtype} is not supported by metal-rpc")

    # ---- Features ----

    @classmethod
    def import_kernels(cls) -> None:
        """Loads none of vLLM's kernels: the device is not in this process."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """Loads none of vLLM's kernels: the device is not in this process."""

    def is_sleep_mode_available(self) -> bool:
        """The daemon has no sleep mode."""
        return False

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Nothing is copied to a device from here."""
        return False

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """The daemon keeps a block table for each KV-cache group."""
        return True
