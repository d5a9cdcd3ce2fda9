"""`metald bench` and `scripts/bench` measure, on next to no work. No number is judged."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from framework import paths


def bench(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of `metald bench`."""
    command = [str(paths.metald()), "bench", *arguments, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    command = [str(paths.metald()), "bench", "checkpoint", "tiny", str(folder)]
    subprocess.run(command, check=True, timeout=60)
    return str(folder)


def test_serve_counts_the_tokens_of_all_frontends(model: str) -> None:
    load = ["--concurrency", "1,3", "--prompt", "40", "--decode", "9", "--repeat", "2"]
    rows = bench("serve", "--model", model, "--frontends", "2", *load)
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        median, least, most = row["decode_tokens_per_s"]
        assert 0 < least <= median <= most
        assert 0 < row["step_ms_p50"] <= row["step_ms_p99"]


def test_prompts_longer_than_a_step_are_run_in_parts(model: str) -> None:
    load = ["--concurrency", "3", "--prompt", "100", "--decode", "2", "--repeat", "1"]
    (row,) = bench("serve", "--model", model, "--max-num-batched-tokens", "32", *load)
    assert row["prefill_tokens_per_s"][0] > 0


def test_boot_sees_that_an_empty_cache_takes_no_memory(model: str) -> None:
    (row,) = bench("boot", "--model", model, "--cache-mib", "1024", "--repeat", "1")
    assert row["cache_bytes"] > 1000 << 20
    assert row["resident_bytes"] - row["idle_resident_bytes"] < 100 << 20


def test_rpc_sees_a_step_with_its_parts() -> None:
    (row,) = bench("rpc", "--requests", "4", "--steps", "150", "--step-us", "3000")
    for part in ("encode", "decode", "reply_encode", "reply_decode"):
        assert row[f"{part}_us"] > 0
    # The model is not done before, however fast the rest is.
    assert row["run_us_p50"] > 2900
    assert row["step_us_p50"] >= 3000


def test_a_run_of_scripts_bench_leaves_records_and_a_table(tmp_path: Path) -> None:
    command = [str(paths.REPOSITORY / "scripts" / "bench"), "--quick", "--out", str(tmp_path)]
    command += ["--only", "engines", "boot", "--engine", "metal-rpc", "--bits", "16"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {"command", "start", "engine", "boot"} == {record["part"] for record in records}
    table = (tmp_path / "table.md").read_text()
    assert "| metal-rpc 0.1.0 | bfloat16 |" in table
    assert table == result.stdout.removesuffix("\n")
