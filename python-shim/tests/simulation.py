"""A scheduler in small: vLLM's own dataclasses, decided at random, with a paged cache of one group.

It does what vLLM's does to a worker: chunked prefill, decode, preemption, resumption as a new
request, reuse of blocks in the step that frees them, aborts before and after the first step.
"""

from dataclasses import dataclass, field

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

BLOCK_SIZE = 4


@dataclass
class SimRequest:
    req_id: str
    prompt: list[int]
    outputs: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    running: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.outputs


class Simulation:
    def __init__(self, seed: int, num_blocks: int = 24) -> None:
        self.rng = np.random.default_rng(seed)
        self.free = list(range(1, num_blocks))
        self.requests: dict[str, SimRequest] = {}
        self.finished: set[str] = set()
        self.preempted: set[str] = set()
        self.num_created = 0
        self.num_preemptions = 0

    def schedule(self) -> SchedulerOutput:
        self._arrive_and_leave()
        scheduled: dict[str, int] = {}
        new: list[NewRequestData] = []
        cached = CachedRequestData.make_empty()
        for request in list(self.requests.values()):
            if self.rng.random() < 0.2:
                continue
            if request.running and self.rng.random() < 0.08:
                self._preempt(request)
                # As after a reset: resumed in the same step, half of the time.
                if self.rng.random() < 0.5:
                    continue
            count = self._chunk(request)
            blocks = self._grow(request, request.computed + count)
            if blocks is None:
                continue
            scheduled[request.req_id] = count
            if request.running:
                cached.req_ids.append(request.req_id)
                cached.new_block_ids.append((blocks,) if blocks else None)
                cached.num_computed_tokens.append(request.computed)
                cached.num_output_tokens.append(len(request.outputs))
            else:
                request.running = True
                new.append(self._as_new(request))
            request.computed += count
        output = SchedulerOutput(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids=self.finished,
            free_encoder_mm_hashes=[],
            preempted_req_ids=self.preempted,
        )
        self.finished, self.preempted = set(), set()
        return output

    def update(self, tokens: dict[str, list[int]]) -> None:
        for req_id, sampled in tokens.items():
            request = self.requests[req_id]
            complete = request.computed >= len(request.tokens)
            assert bool(sampled) == complete
            request.outputs += sampled

    def _arrive_and_leave(self) -> None:
        for request in list(self.requests.values()):
            if len(request.outputs) > 12 or self.rng.random() < 0.03:
                self.free += request.blocks
                del self.requests[request.req_id]
                self.finished.add(request.req_id)
        while len(self.requests) < 6 and self.rng.random() < 0.5:
            # Half of the ids come again, as when a client retries.
            number = self.rng.integers(0, self.num_created + 1) if self.rng.random() < 0.5 else 0
            req_id = f"r{number or self.num_created}"
            if req_id in self.requests:
                continue
            self.num_created += 1
            prompt = self.rng.integers(0, 1000, self.rng.integers(1, 20)).tolist()
            self.requests[req_id] = SimRequest(req_id, prompt)

    def _chunk(self, request: SimRequest) -> int:
        missing = len(request.tokens) - request.computed
        return int(self.rng.integers(1, missing + 1)) if missing > 1 else missing

    def _grow(self, request: SimRequest, num_tokens: int) -> list[int] | None:
        count = -(-num_tokens // BLOCK_SIZE) - len(request.blocks)
        if count > len(self.free):
            return None
        blocks = [self.free.pop(0) for _ in range(max(0, count))]
        request.blocks += blocks
        return blocks

    def _preempt(self, request: SimRequest) -> None:
        self.num_preemptions += 1
        self.free = request.blocks + self.free
        request.blocks, request.computed, request.running = [], 0, False
        self.preempted.add(request.req_id)

    def _as_new(self, request: SimRequest) -> NewRequestData:
        return NewRequestData(
            req_id=request.req_id,
            prompt_token_ids=request.prompt,
            mm_features=[],
            sampling_params=SamplingParams(temperature=0.0),
            pooling_params=None,
            block_ids=(list(request.blocks),),
            num_computed_tokens=request.computed,
            lora_request=None,
            prefill_token_ids=request.tokens,
        )
