"""The table of a run, in Markdown."""

import statistics
from collections.abc import Iterable
from typing import Any, Final

from benchmark.engines import OURS
from benchmark.records import Records

Line = dict[str, Any]
_PREFILL: Final = "prefill_tokens_per_s"
_DECODE: Final = "decode_tokens_per_s"


def markdown(records: Records) -> str:
    """All tables that the run has lines for."""
    sections = [_machine(records), _engines(records), _ratios(records), _end_to_end(records)]
    sections += [_boot(records), _rpc(records), _stages(records), _missing(records)]
    return "\n\n".join(section for section in sections if section) + "\n"


def median_of(records: Records, field: str, **which: Any) -> float | None:
    """The median of a field over the rounds of one cell."""
    values = [line[field] for line in records.of("engine", **which)]
    return statistics.median(values) if values else None


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _model(records: Records) -> str:
    name: str = records.of("command")[-1]["model"]
    return name


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _machine(records: Records) -> str:
    lines = records.of("machine")
    if not lines:
        return ""
    line = lines[-1]
    return (
        f"{line['at'][:10]}, {line['cpu']}, {line['cores']} cores, "
        f"{line['memory_bytes'] / 2**30:.0f} GiB, {line['system']}, commit {line['commit']}, load "
        f"average {line['load_average']:.1f} at the start. All cores read "
        f"{line['read_gb_per_s']:.1f} GB/s; the product of 512 rows and a 4096x4096 matrix runs at "
        f"{line['openblas_f32_gflop_per_s']:.0f} GFLOP/s in float32 (OpenBLAS of numpy), "
        f"{line['torch_bf16_gflop_per_s']:.0f} in bfloat16 (torch)."
    )


def _cells(records: Records) -> list[tuple[str, int, str]]:
    """Engine, bits and weights of each row, in the order in which they came."""
    cells = {(line["engine"], line["bits"], line["weights"]) for line in records.of("engine")}
    return sorted(cells, key=lambda cell: (-cell[1], cell[0] != OURS, cell[0], cell[2]))


def _engines(records: Records) -> str:
    cells = _cells(records)
    if not cells:
        return ""
    counts = sorted({line["concurrency"] for line in records.of("engine")})
    head = ["engine", "weights", *(f"prefill x{n}" for n in counts)]
    head += [*(f"decode x{n}" for n in counts), "first token"]
    rows = []
    for engine, bits, weights in cells:
        which: Line = {"engine": engine, "weights": weights, "bits": bits}
        start = records.of("start", engine=engine, weights=weights)
        row = [_versioned(engine, start), weights]
        for field in (_PREFILL, _DECODE):
            row += [_number(median_of(records, field, concurrency=n, **which)) for n in counts]
        rows.append([*row, f"{start[-1]['first_token_s']:.1f} s" if start else ""])
    lines = records.of("engine")
    longest = max((line["prompt"], line["decode"]) for line in lines)
    short = {(line["prompt"], line["decode"]) for line in lines} - {longest}
    note = f"{_model(records)}, tokens/s, prompt {longest[0]}, decode {longest[1]}, medians."
    for prompt, decode in sorted(short):
        slow = {n["engine"] for n in lines if (n["prompt"], n["decode"]) == (prompt, decode)}
        note += f" {', '.join(sorted(slow))}: prompt {prompt}, decode {decode}, as it is slow."
    return f"{note}\n\n{_table(head, rows)}"


def _versioned(engine: str, start: list[Line]) -> str:
    return f"{engine} {start[-1]['version']}" if start else engine


def _ratios(records: Records) -> str:
    """Ours over the best of the others at the same number of bits, and over each engine's best."""
    rows = []
    ours = [cell for cell in _cells(records) if cell[0] == OURS]
    counts = sorted({line["concurrency"] for line in records.of("engine")})
    for engine, bits, weights in ours:
        which: Line = {"engine": engine, "bits": bits, "weights": weights}
        for field, title in ((_PREFILL, "prefill"), (_DECODE, "decode")):
            for count in counts:
                mine = median_of(records, field, concurrency=count, **which)
                best = _best_of_others(records, field, count, bits)
                if mine is None or best is None:
                    continue
                rate, name = best
                what = f"{title} x{count}, {bits} bits"
                row = [what, _number(mine), f"{name}: {_number(rate)}", f"{mine / rate:.2f}"]
                rows.append(row)
    if not rows:
        return ""
    head = ["work", "metal-rpc", "the best of the others", "ratio"]
    return "Beside the fastest other engine, whose weights have as many bits or more:\n\n" + _table(
        head, rows
    )


def _best_of_others(
    records: Records, field: str, count: int, bits: int
) -> tuple[float, str] | None:
    found: list[tuple[float, str]] = []
    for engine, others_bits, weights in _cells(records):
        # More bits are no help to decode, but some engines are fastest with them.
        if engine == OURS or others_bits < bits:
            continue
        which: Line = {"engine": engine, "bits": others_bits, "weights": weights}
        rate = median_of(records, field, concurrency=count, **which)
        if rate is not None:
            found.append((rate, f"{engine} {weights}"))
    return max(found) if found else None


def _end_to_end(records: Records) -> str:
    lines = records.of("end_to_end")
    if not lines:
        return ""
    head = ["requests", "TTFT p50, p99", "TPOT p50, p99", "tokens/s", "of the daemon's time"]
    head += ["of its decode rate"]
    rows = [
        [
            f"{line['concurrency']}",
            "{:.0f}, {:.0f} ms".format(*line["ttft_ms"]),
            "{:.1f}, {:.1f} ms".format(*line["tpot_ms"]),
            _number(line["output_tokens_per_s"]),
            f"{line['ratio_of_durations']:.2f}",
            f"{line['ratio_of_decode']:.2f}",
        ]
        for line in lines
    ]
    title = "`vllm serve` under `vllm bench serve`, bfloat16, all requests at once, and the same "
    return f"{title}work sent to the daemon by `metald bench serve`:\n\n{_table(head, rows)}"


def _boot(records: Records) -> str:
    lines = records.of("boot")
    if not lines:
        return ""
    line = lines[-1]
    over = (line["resident_bytes"] - line["weights_bytes"]) / 1e6
    return (
        f"`metald serve` answers after {line['start_ms']:.0f} ms, {_model(records)} in bfloat16 is "
        f"loaded {line['load_ms']:.0f} ms after it was asked for (files in the page cache), and "
        f"the daemon then takes its weights and {over:.0f} MB, an empty cache of "
        f"{line['cache_bytes'] / 2**30:.1f} GiB included."
    )


def _rpc(records: Records) -> str:
    lines = records.of("rpc")
    if not lines:
        return ""
    head = ["executor", "scheduling", "model", "requests", "p50, p99", "mean", "p50, p99 of all"]
    rows = [
        [
            line["executor"],
            line["scheduling"],
            f"{line['model_ms']:g} ms",
            f"{line['requests']}",
            f"{line['quickest_us_p50']:.0f}, {line['quickest_us_p99']:.0f}",
            f"{line['quickest_us_mean']:.0f}",
            f"{line['step_us_p50']:.0f}, {line['step_us_p99']:.0f}",
        ]
        for line in lines
    ]
    title = "A step of vLLM's EngineCore, in us, in the quickest turn of each executor:"
    return f"{title}\n\n{_table(head, rows)}"


def _stages(records: Records) -> str:
    lines = records.of("rpc_stages", model_ms=0)
    if not lines:
        return ""
    columns = {
        "encode": "encode_us",
        "decode": "decode_us",
        "waits for the engine": "queue_us_p50",
        "checked, built, sampled": "run_us_p50",
        "reply encoded": "reply_encode_us",
        "reply decoded": "reply_decode_us",
        "sockets and dispatch (ping)": "ping_us_p50",
        "whole step": "step_us_p50",
    }
    rows = [
        [f"{line['requests']}", *(f"{line[name]:.1f}" for name in columns.values())]
        for line in lines
    ]
    title = "Where the time of such a step goes, seen by `metald bench rpc`, medians in us:"
    return f"{title}\n\n{_table(['requests', *columns], rows)}"


def _missing(records: Records) -> str:
    lines = records.of("missing")
    if not lines:
        return ""
    listed = "\n".join(
        f"- {line['engine']}, {line['weights']}: {line['why']}".replace("\n", " ") for line in lines
    )
    return f"Not measured:\n\n{listed}"
