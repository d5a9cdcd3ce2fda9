"""`plot.py RECORDS.jsonl PLOT.png`: prefill and decode rates of all engines as bars."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "metal-rpc"
FIELDS = {"prefill_tokens_per_s": "prefill", "decode_tokens_per_s": "decode"}


def main() -> None:
    """Draws one row of panels per kind of work, one panel per number of requests."""
    records, target = Path(sys.argv[1]), Path(sys.argv[2])
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    measured = [line for line in lines if line["part"] == "engine"]
    if not measured:
        raise SystemExit("error: the records have no engine")
    counts = sorted({line["concurrency"] for line in measured})
    cells = sorted(
        {(line["bits"], line["engine"], line["weights"]) for line in measured},
        key=lambda cell: (cell[0], cell[1] == OURS, cell[1], cell[2]),
    )
    size = (4.2 * len(counts), 0.6 + 0.52 * len(cells))
    figure, panels = plt.subplots(2, len(counts), figsize=size, squeeze=False, sharey=True)
    for row, (field, title) in enumerate(FIELDS.items()):
        for panel, count in zip(panels[row], counts, strict=True):
            draw(panel, cells, [line for line in measured if line["concurrency"] == count], field)
            panel.set_title(f"{title}, {count} request{'s' if count > 1 else ''}", fontsize=9)
    machine = next((line for line in lines if line["part"] == "machine"), None)
    if machine is not None:
        about = f"{machine['at'][:10]}, {machine['cpu']}, {machine['cores']} cores"
        model = next(line["model"] for line in lines if line["part"] == "command")
        figure.suptitle(f"{model}, tokens/s: {about}", fontsize=10)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def draw(panel: Any, cells: list[Any], lines: list[dict[str, Any]], field: str) -> None:
    """Draws one panel."""
    rates = []
    for bits, engine, weights in cells:
        values = [
            line[field]
            for line in lines
            if (line["bits"], line["engine"], line["weights"]) == (bits, engine, weights)
        ]
        rates.append(statistics.median(values) if values else 0.0)
    names = [f"{engine}, {weights} ({bits} bits)" for bits, engine, weights in cells]
    colours = ["#c8501e" if engine == OURS else "#7f8c99" for _, engine, _ in cells]
    bars = panel.barh(names, rates, color=colours)
    labels = [f"{rate:.0f}" if rate else "" for rate in rates]
    panel.bar_label(bars, labels=labels, fontsize=7, padding=2)
    panel.margins(x=0.14)
    panel.tick_params(labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
