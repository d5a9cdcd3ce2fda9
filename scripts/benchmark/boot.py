"""Start times and memory of the daemon, by `metald bench boot`."""

import json
import statistics
import subprocess
from pathlib import Path

from benchmark import paths
from benchmark.records import Records, say


def run(records: Records, model: Path, rounds: int) -> None:
    """Measures and records. The model's files are in the page cache from the second start on."""
    command = [str(paths.METALD), "bench", "boot", "--json", "--model", str(model)]
    command += ["--cache-mib", "1024", "--repeat", str(rounds + 1)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"error: metald bench boot: {result.stderr}")
    boots = [json.loads(line) for line in result.stdout.splitlines()][1:]
    medians = {name: statistics.median(boot[name] for boot in boots) for name in boots[0]}
    line = records.add("boot", rounds=rounds, command=" ".join(command), **medians)
    over = line["resident_bytes"] - line["weights_bytes"]
    say(
        f"start {line['start_ms']:.0f} ms, load {line['load_ms']:.0f} ms, resident weights + "
        f"{over / 1e6:.0f} MB with an empty cache of {line['cache_bytes'] / 2**30:.2f} GiB"
    )
