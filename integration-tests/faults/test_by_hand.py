"""Daemons that somebody else starts (`METAL_RPC_AUTOSTART=0`), and one that nobody starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework import models
from framework.daemon import Daemon
from framework.server import Server
from framework.streams import Streams

NUM_TOKENS = 200
BODIES: list[dict[str, Any]] = [
    {"prompt": [5 + index] * 20, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0.0}
    | {"logit_bias": {str(models.NAN_TOKEN): -100.0}}
    for index in range(4)
]


def test_streams_wait_for_a_daemon_that_is_started_by_hand(
    make_folder: Callable[[], Path], smollm2: Path
) -> None:
    folder = make_folder()
    model = models.tiny_with_tokenizer(make_folder() / "tiny", smollm2)
    flags = (
        "--dtype=float32",
        "--max-model-len=256",
        "--max-num-seqs=8",
        "--generation-config=vllm",
    )
    own = "--scheduler-cls=vllm.v1.core.sched.async_scheduler.AsyncScheduler"
    variables = {"METAL_RPC_AUTOSTART": "0", "METAL_RPC_RECOVERY_TIMEOUT_S": "20"}
    with Daemon(folder) as daemon, Server(model, folder, *flags, own, **variables) as server:
        expected = [choice["token_ids"] for choice in server.ask_all(BODIES)]
        with Streams(server, BODIES, expected) as streams:
            for end in (daemon.kill, daemon.stop):
                streams.wait_until_all_flow()
                end()
                daemon.start()
            streams.wait_until_all_flow()
        daemon.kill()
        refused = server.post("/v1/completions", **BODIES[0])
        assert refused.status_code == 500, refused.text
        server.wait_end()
        log = server.log_path.read_text()
    assert "Recomputing" in log
    for words in ("METAL_RPC_RECOVERY_TIMEOUT_S", "the last one was lost", "METAL_RPC_AUTOSTART=0"):
        assert words in log
