"""The JSON lines of `scripts/gpu-bench` as a table: medians, and what is reached of mlx-lm's."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# Shape, requests of a frontend, frontends, decodes of a request.
Load = tuple[str, int, int, int]


def median(rate: float | list[float]) -> float:
    """The median of a rate: metald says it with the least and the most."""
    return rate[0] if isinstance(rate, list) else rate


def cells(load: Load, rows: dict[str, Row]) -> list[str]:
    """One row of the table."""
    shape, requests, frontends, decodes = load
    texts = [shape, f"{frontends} x {requests}" if frontends > 1 else str(requests), str(decodes)]
    for phase in ("prefill", "decode"):
        rates = {name: median(row[f"{phase}_tokens_per_s"]) for name, row in rows.items()}
        ours, theirs = rates.get("metald"), rates.get("mlx-lm")
        texts += [f"{rate:,.0f}" if rate else "-" for rate in (ours, theirs)]
        texts.append(f"{ours / theirs:.2f}" if ours and theirs else "-")
        if phase == "decode":
            texts.append(f"{1e3 * frontends * requests / ours:.2f}" if ours else "-")
    return texts


def main(path: str) -> None:
    """Prints the table."""
    by_load: dict[Load, dict[str, Row]] = defaultdict(dict)
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if "attention_us" in row:
            print(
                f"attention, {row['requests']} requests of {row['context']}: "
                f"{row['attention_us']:.0f} us a layer, {row['attention_gb_per_s']:.0f} GB/s, "
                f"{row['share']:.2f} of a copy's {row['copy_gb_per_s']:.0f} GB/s"
            )
            continue
        shape = Path(row["model"]).name
        load = (shape, row["concurrency"], row.get("frontends", 1), row["decode"])
        by_load[load][row.get("program", "metald")] = row
    heads = ["model", "requests", "decodes"]
    heads += ["prefill tok/s", "mlx-lm", "of it", "decode tok/s", "mlx-lm", "of it", "ms a step"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for load, rows in by_load.items():
        print("| " + " | ".join(cells(load, rows)) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
