"""Measures metal-rpc beside other engines on this machine."""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmark import boot, contest, end_to_end, engines, environments, machine, paths, report, rpc
from benchmark.engines import Work
from benchmark.environments import MissingError
from benchmark.records import Records, say

PARTS: Final = ("machine", "engines", "serve", "boot", "rpc", "plot")


def main() -> None:
    """Runs the parts that the command line names, and writes what they measured."""
    arguments = _arguments()
    counts = tuple(arguments.concurrency)
    work = Work(32, 8, (1, 2)) if arguments.quick else Work(concurrency=counts)
    rounds = 1 if arguments.quick else arguments.rounds
    model = arguments.model
    chosen = [
        engine
        for engine in engines.of(model)
        if engine.name in arguments.engine and engine.bits in arguments.bits
    ]
    folder: Path = arguments.out
    records = Records(folder / "records.jsonl", append=arguments.append)
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    records.add("command", command=command, model=engines.MODELS[model])
    parts: dict[str, Callable[[], None]] = {
        "machine": lambda: machine.run(records),
        "engines": lambda: contest.run(records, chosen, work, rounds),
        "serve": lambda: end_to_end.run(records, engines.folder(model), work),
        "boot": lambda: boot.run(records, engines.folder(model), rounds),
        "rpc": lambda: rpc.run(records, quick=arguments.quick),
        "plot": lambda: _plot(records, folder / "plot.png"),
    }
    for part in arguments.only:
        say(f"== {part}")
        parts[part]()
    table = report.markdown(records)
    (folder / "table.md").write_text(table)
    print(table)
    say(f"records, table and plot are in {folder}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--model",
        choices=engines.MODELS,
        default=engines.DEFAULT_MODEL,
        help=f"one of {', '.join(engines.MODELS)} [default: {engines.DEFAULT_MODEL}]",
        metavar="X",
    )
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs")
    every = engines.of(engines.DEFAULT_MODEL)
    names = sorted({engine.name for engine in every})
    widths = sorted({engine.bits for engine in every})
    several: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    parser.add_argument(
        "--only", choices=PARTS, default=PARTS, help=f"parts of {', '.join(PARTS)}", **several
    )
    parser.add_argument(
        "--engine", choices=names, default=names, help=f"engines of {', '.join(names)}", **several
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=widths,
        default=widths,
        help=f"bits of the engines' weights, of {', '.join(map(str, widths))}",
        **several,
    )
    parser.add_argument(
        "--concurrency", type=int, default=Work().concurrency, help="requests at a time", **several
    )
    parser.add_argument("--append", action="store_true", help="add to the records in the folder")
    parser.add_argument("--rounds", type=int, default=3, help="times that a measurement is made")
    default = paths.cache() / "runs" / time.strftime("%Y-%m-%dT%H%M%S")
    parser.add_argument("--out", type=Path, default=default, help=f"folder [default: {default}]")
    return parser.parse_args()


def _plot(records: Records, target: Path) -> None:
    try:
        python = environments.PLOT.python()
    except MissingError as reason:
        say(f"no plot: {reason}")
        return
    command = [str(python), str(paths.WORKERS / "plot.py"), str(records.path), str(target)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
