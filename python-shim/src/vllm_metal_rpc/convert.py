"""vLLM's dataclasses to wire messages and back. Pure: no I/O, no clock.

`StepEncoder` speaks the dialect of `VLLM_USE_V2_MODEL_RUNNER=1`: a request that is resumed after
a preemption arrives as a new one, with all its tokens.

# Invariants
- A handle names at most one request at a time, and is given back in the step that says so.
- A field of vLLM's that is not understood here is either at its default or an error.

Source: vllm/v1/core/sched/output.py and vllm/v1/outputs.py, at the version pinned in
pyproject.toml.
"""

import dataclasses
import heapq
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import torch
from vllm.v1.core.sched.output import (
    CachedRequestData,
    GrammarOutput,
    NewRequestData,
    SchedulerOutput,
)
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput

from vllm_metal_rpc import messages
from vllm_metal_rpc.errors import ProtocolViolation, UnsupportedFeature
from vllm_metal_rpc.sampling import ThinkingPhrases, sampling_params

_USED: Final = {
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "finished_req_ids",
    "preempted_req_ids",
    "has_structured_output_requests",
    "kv_cache_block_copies",
}
# Statistics, hints, and what only a speculator or a connector reads.
_IGNORED: Final = {
    "pending_structured_output_tokens",
    "scheduled_encoder_input_stats",
    "num_invalid_spec_tokens",
    "num_common_prefix_blocks",
    "skip_drafts",
}
_MUST_BE_EMPTY: Final = (
    "scheduled_spec_decode_tokens",
    "scheduled_encoder_inputs",
    "free_encoder_mm_hashes",
    "encoder_input_updates",
    "kv_connector_metadata",
    "has_sync_kv_loads",
    "aux_output_connector_metadata",
    "ec_connector_metadata",
    "ec_manager_metadata",
    "new_block_ids_to_zero",
    "kv_connector_block_state",
    "num_spec_tokens_to_schedule",
)
_NEW_REQUEST_USED: Final = {
    "req_id",
    "prompt_token_ids",
    "sampling_params",
    "block_ids",
    "num_computed_tokens",
    "prefill_token_ids",
}
_NEW_REQUEST_MUST_BE_EMPTY: Final = (
    "mm_features",
    "pooling_params",
    "lora_request",
    "prompt_embeds",
    "prompt_is_token_ids",
    "replay_start",
)
_CACHED_USED: Final = {"req_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens"}
_CACHED_MUST_BE_EMPTY: Final = ("resumed_req_ids", "new_token_ids", "all_token_ids")


def check_vllm_fields() -> None:
    """Checks that this vLLM's scheduler says nothing that we have not heard of.

    Raises:
        UnsupportedFeature: A dataclass has a field that this version does not know.
    """
    known: list[tuple[type, Collection[str]]] = [
        (SchedulerOutput, _USED | _IGNORED | set(_MUST_BE_EMPTY)),
        (NewRequestData, _NEW_REQUEST_USED | set(_NEW_REQUEST_MUST_BE_EMPTY)),
        (CachedRequestData, _CACHED_USED | set(_CACHED_MUST_BE_EMPTY)),
    ]
    for dataclass, names in known:
        unknown = {field.name for field in dataclasses.fields(dataclass)} - set(names)
        if unknown:
            raise UnsupportedFeature(
                f"this vLLM's {dataclass.__name__} has fields that vllm-metal-rpc does not know: "
                f"{', '.join(sorted(unknown))}; install the vLLM that it is made for"
            )


def create_cache(config: KVCacheConfig, layers: list[str]) -> messages.CreateCache:
    """Converts what vLLM has decided about the cache.

    Args:
        config: From the engine.
        layers: Names of the layers, in the daemon's order.

    Raises:
        UnsupportedFeature: Groups have blocks of different sizes.
    """
    sizes = {group.kv_cache_spec.block_size for group in config.kv_cache_groups}
    if len(sizes) != 1:
        raise UnsupportedFeature(
            "KV-cache groups must have one block size, but this model's layers differ so that "
            f"vLLM gives them {sorted(sizes)}; --disable-hybrid-kv-cache-manager makes one group"
        )
    index = {name: i for i, name in enumerate(layers)}
    groups = [[index[name] for name in group.layer_names] for group in config.kv_cache_groups]
    return messages.CreateCache(config.num_blocks, sizes.pop(), groups)


class StepEncoder:
    """Turns scheduler steps into `Exec` messages; remembers which handle names which request.

    Args:
        thinking: What the model begins and ends its thinking with, if the server knows it.
    """

    def __init__(self, thinking: ThinkingPhrases | None = None) -> None:
        self._thinking = thinking
        self._handles: dict[str, int] = {}
        self._free: list[int] = []
        self._num_handles = 0

    def reset(self) -> None:
        """Forgets all requests: for a daemon that knows none of them."""
        self.__init__(self._thinking)  # type: ignore[misc]

    def encode(self, output: SchedulerOutput) -> messages.Exec:
        """Converts one scheduling decision.

        Args:
            output: As `Executor.execute_model` receives it. Not kept, not changed.

        Raises:
            UnsupportedFeature: It uses something that the protocol has no field for.
        """
        _require_empty(output, _MUST_BE_EMPTY)
        finished = self._release(output.finished_req_ids)
        if output.preempted_req_ids:
            finished += self._release(output.preempted_req_ids)
        new_requests = []
        for new in output.scheduled_new_reqs:
            # vLLM sends a known request as new to replace all that is known of it.
            finished += self._release((new.req_id,))
            new_requests.append(self._new_request(new))
        _require_empty(output.scheduled_cached_reqs, _CACHED_MUST_BE_EMPTY)
        scheduled = output.num_scheduled_tokens
        req_ids = list(scheduled)
        all_decode = output.total_num_scheduled_tokens == len(req_ids)
        copies = output.kv_cache_block_copies
        return messages.Exec(
            sample_follows=output.has_structured_output_requests,
            finished=finished,
            new_requests=new_requests,
            handles=list(map(self._handles.__getitem__, req_ids)),
            num_computed_tokens=_num_computed_tokens(output, req_ids),
            num_scheduled_tokens=[] if all_decode else list(scheduled.values()),
            new_blocks=_new_blocks(output.scheduled_cached_reqs, req_ids),
            block_copies=[(c.src_block_id, c.dst_block_id) for c in copies] if copies else [],
            grammar=None,
        )

    def _new_request(self, new: NewRequestData) -> messages.NewRequest:
        _require_empty(new, _NEW_REQUEST_MUST_BE_EMPTY)
        prompt = new.prompt_token_ids
        if prompt is None or new.sampling_params is None:
            raise UnsupportedFeature(
                f"request {new.req_id} has no prompt tokens or sampling parameters"
            )
        tokens = prompt if new.prefill_token_ids is None else new.prefill_token_ids
        resumed = len(tokens) > len(prompt)
        return messages.NewRequest(
            handle=self._acquire(new.req_id),
            req_id=new.req_id,
            token_ids=np.asarray(tokens, dtype="<i4").tobytes(),
            num_prompt_tokens=len(prompt),
            block_ids=list(new.block_ids),
            sampling_params=sampling_params(new.sampling_params, self._thinking, resumed=resumed),
        )

    def _acquire(self, req_id: str) -> int:
        if self._free:
            handle = heapq.heappop(self._free)
        else:
            handle = self._num_handles
            self._num_handles += 1
        self._handles[req_id] = handle
        return handle

    def _release(self, req_ids: Collection[str]) -> list[int]:
        """Gives handles back; a request that was never scheduled has none."""
        released = []
        for req_id in req_ids:
            handle = self._handles.pop(req_id, None)
            if handle is not None:
                released.append(handle)
                heapq.heappush(self._free, handle)
        return released


def _num_computed_tokens(output: SchedulerOutput, req_ids: list[str]) -> list[int]:
    """By row."""
    cached = output.scheduled_cached_reqs
    if cached.req_ids == req_ids:
        # Steady decoding.
        return list(cached.num_computed_tokens)
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return [computed[req_id] for req_id in req_ids]


def _new_blocks(cached: CachedRequestData, req_ids: list[str]) -> list[messages.NewBlocks]:
    growing = [
        (req_id, blocks)
        for req_id, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True)
        if blocks is not None
    ]
    if not growing:
        return []
    rows = {req_id: row for row, req_id in enumerate(req_ids)}
    return [messages.NewBlocks(rows[req_id], list(blocks)) for req_id, blocks in growing]


def _require_empty(data: Any, names: Collection[str]) -> None:
    fields = vars(data)
    for name in names:
        value = fields.get(name)
        # A tensor has no truth value, and is never empty.
        if value is not None and (isinstance(value, torch.Tensor) or value):
            raise UnsupportedFeature(
                f"{type(data).__name__}.{name} is set, which metal-rpc does not support"
            )


def grammar_bitmask(
    grammar: GrammarOutput | None, req_ids: list[str]
) -> messages.GrammarBitmask | None:
    """Converts the grammar of a step.

    Args:
        grammar: From the scheduler, which reuses the bitmask's memory: it is copied here.
        req_ids: The requests of the step in the order of its rows.
    """
    if grammar is None:
        return None
    rows = {req_id: row for row, req_id in enumerate(req_ids)}
    return messages.GrammarBitmask(
        rows=[rows[req_id] for req_id in grammar.structured_output_request_ids],
        bitmask=np.ascontiguousarray(grammar.grammar_bitmask, dtype="<i4").tobytes(),
    )


def model_runner_output(
    result: messages.StepResult, req_ids: list[str]
) -> tuple[ModelRunnerOutput, dict[str, str]]:
    """Converts the result of a step.

    Args:
        result: From the daemon.
        req_ids: The requests of the step in the order of its rows.

    Returns:
        What the scheduler expects, and the messages of the requests that could not be sampled.

    Raises:
        ProtocolViolation: The result does not belong to a step of these requests.
    """
    tokens = np.frombuffer(result.token_ids, dtype="<i4").tolist()
    if len(tokens) != len(req_ids):
        raise ProtocolViolation(f"{len(tokens)} rows answer a step of {len(req_ids)} requests")
    output = ModelRunnerOutput(
        req_ids=req_ids,
        req_id_to_index=dict(zip(req_ids, range(len(req_ids)), strict=True)),
        sampled_token_ids=[[token] if token >= 0 else [] for token in tokens],
    )
    if result.logprobs is not None:
        output.logprobs = LogprobsLists(*_tables(result.logprobs))
    for prompt in result.prompt_logprobs:
        if tokens[prompt.row] < 0:
            # The scheduler takes them with the first token only.
            continue
        tensors = (torch.from_numpy(table.copy()) for table in _tables(prompt.logprobs))
        output.prompt_logprobs_dict[req_ids[prompt.row]] = LogprobsTensors(*tensors)
    for scores in result.prompt_token_id_logprobs:
        if tokens[scores.row] >= 0:
            table = np.frombuffer(scores.logprobs, dtype="<f4").reshape(-1, scores.num_columns)
            tensor = torch.from_numpy(table.copy())
            output.prompt_token_id_logprobs_dict[req_ids[scores.row]] = tensor
    errors = {req_ids[error.row]: error.message for error in result.row_errors}
    return output, errors


def lost_output(req_ids: list[str]) -> ModelRunnerOutput:
    """The result of a step that the daemon has lost: no tokens for anybody."""
    return ModelRunnerOutput(
        req_ids=req_ids,
        req_id_to_index={req_id: row for row, req_id in enumerate(req_ids)},
        sampled_token_ids=[[] for _ in req_ids],
    )


def _tables(logprobs: messages.Logprobs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids and values as `[num_rows, num_columns]`, ranks as `[num_rows]`."""
    columns = logprobs.num_columns
    token_ids = np.frombuffer(logprobs.token_ids, dtype="<i4").reshape(-1, columns)
    values = np.frombuffer(logprobs.logprobs, dtype="<f4").reshape(-1, columns)
    return token_ids, values, np.frombuffer(logprobs.ranks, dtype="<i4")
