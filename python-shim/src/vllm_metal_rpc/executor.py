"""vLLM's `Executor`: each method becomes a message to the daemon, or is answered here.

A step leaves as an `Exec` in `execute_model`, and its result is the future that `sample_tokens`
returns. If requests of the step are bound by a grammar, the `Exec` waits for its bitmask, which the
engine computes next, and takes it along. Only when the bitmask depends on the tokens of the step
before does the forward start without it, and it follows as a `Sample`.

Source: vllm/v1/executor/abstract.py, at the version pinned in pyproject.toml.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import vllm
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from vllm_metal_rpc import convert, envs, messages
from vllm_metal_rpc.autostart import Autostart
from vllm_metal_rpc.folders import model_folder
from vllm_metal_rpc.link import Server
from vllm_metal_rpc.opening import Options
from vllm_metal_rpc.rpc import answer_rpc
from vllm_metal_rpc.sampling import thinking_phrases
from vllm_metal_rpc.scheduler import generation_of, mark_lost, mark_row_errors
from vllm_metal_rpc.session import Lost, Session, Step, StepReply

logger = logging.getLogger("vllm.metal_rpc")

# [layers, blocks, tokens, heads, channels]: the daemon's own layout, whatever vLLM calls it.
_LAYOUT: Final = "LBNHC"


@dataclass
class _Pending:
    """A step between `execute_model` and `sample_tokens`.

    Attributes:
        request: The message.
        generation: The generation in which it was scheduled.
        req_ids: Its requests in the order of its rows.
        step: What was sent; None while it waits for its grammar.
    """

    request: messages.Exec
    generation: int
    req_ids: list[str]
    step: Step | None = None


class MetalRpcExecutor(Executor):
    """Forwards one engine's steps to the daemon, in one session."""

    uses_ray = False
    supports_pp = False

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """The daemon runs a step that builds on the unread result of the last."""
        return True

    # ---- Start-up, in vLLM's order ----

    def _init_executor(self) -> None:
        convert.check_vllm_fields()
        phrases = thinking_phrases(self.vllm_config.reasoning_config)
        self._encoder = convert.StepEncoder(phrases)
        self._generation = 0
        self._pending: _Pending | None = None
        server = Server(envs.endpoint(), envs.token_file())
        self._session = Session(
            Options(
                server=server,
                vllm_version=vllm.__version__,
                frontend=self._frontend_name(),
                weight=envs.weight(),
                recovery_timeout_s=envs.recovery_timeout_s(),
                autostart=Autostart(server.endpoint) if envs.autostart() else None,
            )
        )
        try:
            welcome = self._session.open()
            logger.info(
                "Connected to metald %s (pid %d, device %s) on %s",
                welcome.daemon_version,
                welcome.pid,
                welcome.device,
                server.endpoint,
            )
            self._model = self._session.set_up(self._load_model(), messages.ModelLoaded)
        except BaseException:
            self._session.close()
            raise
        logger.info(
            "Model ready: %s, %.2f GiB of weights, %d ms",
            self._model.model_type,
            self._model.weights_bytes / 2**30,
            self._model.load_ms,
        )

    def _frontend_name(self) -> str:
        """Which frontend this is, for people: model and rank."""
        name = Path(str(self.model_config.served_model_name or self.model_config.model)).name
        rank = self.parallel_config.data_parallel_index
        return f"{name}/{rank}" if self.parallel_config.data_parallel_size > 1 else name

    def _load_model(self) -> messages.LoadModel:
        return messages.LoadModel(
            path=model_folder(self.model_config, self.load_config),
            dtype=str(self.model_config.dtype).removeprefix("torch."),
            max_model_len=self.model_config.max_model_len,
            max_num_seqs=self.scheduler_config.max_num_seqs,
            max_num_batched_tokens=self.scheduler_config.max_num_batched_tokens,
            logprobs_mode=str(self.model_config.logprobs_mode),
        )

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Sets what ends the engine when the daemon does not come back."""
        self._session.on_failure(callback)

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """The format of each layer's cache, as the daemon has told with the model."""
        block_size = self.cache_config.block_size
        specs: dict[str, KVCacheSpec] = {}
        for spec in self._model.kv_cache_specs:
            common: dict[str, Any] = {
                "block_size": block_size,
                "num_kv_heads": spec.num_kv_heads,
                "head_size": spec.head_dim,
                "dtype": getattr(torch, spec.dtype),
            }
            specs[spec.layer_name] = (
                FullAttentionSpec(**common)
                if spec.sliding_window is None
                else SlidingWindowSpec(**common, sliding_window=spec.sliding_window)
            )
        return [specs]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """One layout, which nobody on this side looks at."""
        return [[_LAYOUT]]

    def set_kv_cache_layout(self, layout_name: str, cp_kv_cache_interleave_size: int) -> None:
        """The layout of the cache is the daemon's."""

    def determine_available_memory(self) -> list[int]:
        """Reserves this frontend's share of the daemon's memory.

        Raises:
            OutOfMemory: Others hold too much of it; the message says who.
            ValueError: `--kv-cache-memory-bytes` asks for more than the share.
        """
        fraction = envs.memory_fraction()
        if fraction is None:
            fraction = self.cache_config.gpu_memory_utilization
        reply = self._session.set_up(
            messages.ReserveMemory(memory_fraction=float(fraction)), messages.MemoryReserved
        )
        wanted = self.cache_config.kv_cache_memory_bytes
        if wanted is None:
            return [reply.available_bytes]
        if wanted > reply.available_bytes:
            raise ValueError(
                f"--kv-cache-memory-bytes {wanted} is more than the {reply.available_bytes} bytes "
                f"that the daemon has for this frontend at a memory fraction of {fraction}"
            )
        return [wanted]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """Creates the cache, in the groups into which vLLM has put the layers."""
        (config,) = kv_cache_configs
        layers = [spec.layer_name for spec in self._model.kv_cache_specs]
        request = convert.create_cache(config, layers)
        reply = self._session.set_up(request, messages.CacheCreated)
        logger.info(
            "KV cache: %d blocks of %d tokens for %d groups of layers, %.2f GiB at most",
            reply.num_blocks,
            request.block_size,
            len(request.groups),
            reply.num_blocks * reply.block_bytes / 2**30,
        )

    def compile_or_warm_up_model(self) -> None:
        """Nothing to compile: the kernels are built with the daemon."""

    # ---- Steps ----

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """Sends a step, unless its grammar is about to be known and can travel with it.

        Returns:
            A future of None, which tells the engine to call `sample_tokens`. If the step has no
            tokens, a future of the empty output. Their values, if `non_block` is false.
        """
        pending = self._encode(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            request = pending.request
            # Nothing that the daemon needs to know.
            if not request.finished:
                return _done(EMPTY_MODEL_RUNNER_OUTPUT) if non_block else EMPTY_MODEL_RUNNER_OUTPUT
            future = self._submit(pending).future
            return future if non_block else future.result()
        # A grammar that needs the tokens of the step before comes late; any other, at once.
        grammar_is_next = (
            scheduler_output.has_structured_output_requests
            and not scheduler_output.pending_structured_output_tokens
        )
        if not grammar_is_next:
            pending.step = self._submit(pending)
        self._pending = pending
        return _NOTHING if non_block else None

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:
        """Sends the step's grammar if it has one, and the step with it if it still waits.

        Returns:
            The future of the step's `ModelRunnerOutput`, or its value if `non_block` is false.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            raise RuntimeError("sample_tokens() was called without execute_model()")
        grammar = convert.grammar_bitmask(grammar_output, pending.req_ids)
        if pending.step is None:
            pending.request.sample_follows = False
            pending.request.grammar = grammar
            pending.step = self._submit(pending)
        elif pending.request.sample_follows:
            self._session.sample(pending.step, grammar)
        future = pending.step.future
        return future if non_block else future.result()

    def _encode(self, output: SchedulerOutput) -> _Pending:
        generation = generation_of(output)
        if generation != self._generation:
            self._encoder.reset()
            self._generation = generation
        return _Pending(self._encoder.encode(output), generation, list(output.num_scheduled_tokens))

    def _submit(self, pending: _Pending) -> Step:
        req_ids = pending.req_ids
        return self._session.submit(
            pending.request, pending.generation, lambda reply: _finish(reply, req_ids)
        )

    def execute_dummy_batch(self) -> None:
        """Nothing to keep in step with: the ranks of data parallelism do not share layers."""

    # ---- Everything else ----

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Answers vLLM's calls by name; see `rpc.py` for all of them.

        Raises:
            NotImplementedError: The call needs a torch model in this process.
        """
        result = [answer_rpc(method)]
        return _done(result) if non_block else result

    def profile(self, is_start: bool = True, profile_prefix: str | None = None, **_: Any) -> None:
        """Refused.

        Raises:
            NotImplementedError: Always.
        """
        answer_rpc("profile")

    def check_health(self) -> None:
        """A session that cannot recover has already told the engine."""

    def shutdown(self) -> None:
        """Closes the session; the daemon goes on."""
        self._session.close()


def _finish(reply: StepReply, req_ids: list[str]) -> ModelRunnerOutput:
    """Turns the daemon's answer into the future's result, in the I/O thread."""
    if isinstance(reply, Lost):
        return mark_lost(convert.lost_output(req_ids), reply.generation, reply.crash)
    output, errors = convert.model_runner_output(reply, req_ids)
    for req_id, message in errors.items():
        logger.error("Request %s ends: %s", req_id, message)
    return mark_row_errors(output, errors) if errors else output


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


_NOTHING: Final = _done(None)
