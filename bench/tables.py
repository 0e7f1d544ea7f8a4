"""Series and reports as text, for people."""

from __future__ import annotations

import math
from typing import Any, Final

from bench.series import Report, Series, percentile


def table(rows: list[list[Any]]) -> str:
    """Rows of cells, the first the heading, as text in columns."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


PARTS: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def milliseconds(series: Series, *parts: str) -> list[float]:
    """These percentiles (names in ``PARTS``) of the latencies of the 2xx answers, in milliseconds."""
    ordered = sorted(series.latencies())
    return [round(percentile(ordered, PARTS[part]) * 1e3, 3) for part in parts]


def others(series: Series) -> str:
    """The outcomes that are not 2xx, as text; ``-`` if there are none."""
    found = sorted(series.outcomes().items())
    return ", ".join(f"{count} x {what}" for what, count in found if what[0] != "2") or "-"


def summary(report: Report) -> str:
    """The report as a table: milliseconds and counts."""
    rows: list[list[Any]] = [["load", "sent", "2xx", "2xx/s", *PARTS, "other"]]
    for name, each in sorted(report.series.items()):
        answers = len(each.latencies())
        rate = each.throughput(0.0, report.seconds)
        rows.append([name, len(each), answers, f"{rate:.0f}", *milliseconds(each, *PARTS), others(each)])
    late = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in report.late.items() if not math.isnan(value))
    cost = report.cpu / max(1, len(report.all())) * 1e6
    text = f"{table(rows)}\ngenerator: {report.cpu:.2f} s of CPU, {cost:.0f} µs a request"
    return f"{text}; late {late}" if late else text
