"""What a step costs on this side, in microseconds: `python tests/bench_step.py`. Asserts nothing.

- encode: `SchedulerOutput` to `Exec` to bytes, for a steady decode step
- round trip: `submit` to the resolved future, against a daemon in another process that answers at
  once; most of it is the answering process
- send: the part of the round trip that the engine's thread spends in `submit`
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from vllm_metal_rpc import codec, convert, messages
from vllm_metal_rpc.link import Server
from vllm_metal_rpc.opening import Options
from vllm_metal_rpc.session import Session

NUM_RUNS = 3000


def decode_step(num_requests: int) -> tuple[convert.StepEncoder, SchedulerOutput]:
    encoder = convert.StepEncoder()
    names = [f"cmpl-{i:032x}-0" for i in range(num_requests)]
    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = [
        NewRequestData(name, [1, 2, 3], [], SamplingParams(), None, ([i],), 0, None)
        for i, name in enumerate(names)
    ]
    output.num_scheduled_tokens = dict.fromkeys(names, 3)
    output.total_num_scheduled_tokens = 3 * num_requests
    encoder.encode(output)
    cached = CachedRequestData.make_empty()
    cached.req_ids = names
    cached.num_computed_tokens = list(range(1000, 1000 + num_requests))
    # One request in sixteen enters a new block.
    cached.new_block_ids = [([i],) if i % 16 == 0 else None for i in range(num_requests)]
    step = SchedulerOutput.make_empty()
    step.scheduled_cached_reqs = cached
    step.num_scheduled_tokens = dict.fromkeys(names, 1)
    step.total_num_scheduled_tokens = num_requests
    return encoder, step


def answer(endpoint: str) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        while True:
            identity, frame = socket.recv_multipart()
            request, _, seq = codec.decode_request(frame)
            if isinstance(request, messages.Hello):
                reply: Any = messages.Welcome(1, "0", 1, 1, b"s" * 16, 1000, 10_000, "cpu")
            elif isinstance(request, messages.Exec):
                tokens = np.zeros(len(request.handles), "<i4").tobytes()
                reply = messages.StepResult(tokens, None, [], [], [], 0, 0)
            else:
                reply = messages.Pong()
            socket.send_multipart([identity, codec.encode_reply(reply, seq)])


def report(name: str, run: Callable[[], float]) -> None:
    times_us = sorted(1e6 * run() for _ in range(NUM_RUNS))
    median, high = statistics.median(times_us), times_us[int(0.99 * NUM_RUNS)]
    print(f"{name:28} median {median:7.1f} us   99 % {high:7.1f} us   min {times_us[0]:7.1f} us")


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    for num_requests in (1, 64, 256):
        encoder, step = decode_step(num_requests)
        frame = codec.encode_request(encoder.encode(step), b"s" * 16, 70_000)
        print(f"\n{num_requests} requests, {len(frame)} bytes")

        def encode(encoder: Any = encoder, step: Any = step) -> None:
            codec.encode_request(encoder.encode(step), b"s" * 16, 70_000)

        report("encode", lambda encode=encode: timed(encode))
    with tempfile.TemporaryDirectory() as folder:
        measure_round_trip(f"ipc://{Path(folder) / 'd.sock'}")


def measure_round_trip(endpoint: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(endpoint,))
    process.start()
    session = Session(Options(Server(endpoint), "0", "bench", 1, 60.0, None))
    session.open()
    encoder, step = decode_step(64)
    request = encoder.encode(step)
    names = list(step.num_scheduled_tokens)
    sends: list[float] = []

    def round_trip() -> None:
        start = time.perf_counter()
        sent = session.submit(request, 0, lambda r: convert.model_runner_output(r, names))
        sends.append(time.perf_counter() - start)
        sent.future.result()

    print("\nround trip of 64 requests")
    report("round trip", lambda: timed(round_trip))
    print(f"{'send, part of it':28} median {1e6 * statistics.median(sends):7.1f} us")
    session.close()
    process.kill()


if __name__ == "__main__":
    main()
