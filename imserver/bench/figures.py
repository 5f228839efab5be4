"""What a load test found: latencies, rows, and the table that people read. No I/O."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

_STEP = math.log(1.02)
CPU = "_us"
"""Ends the name of a column with the CPU time of one process for one message, in microseconds."""
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Value = str | int | float | None
Row = dict[str, Value]


class Latencies:
    """Durations counted in buckets 2 % wide: small however many there are, and those of several processes add up."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: Counter[int] = Counter({int(name): count for name, count in (counts or {}).items()})

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[int(math.log(max(seconds * 1e6, 1.0)) / _STEP)] += 1

    def merge(self, other: Latencies) -> None:
        """Count those of another process, too."""
        self._counts.update(other._counts)

    @property
    def counts(self) -> dict[str, int]:
        """What `__init__` takes, fit for JSON."""
        return {str(bucket): count for bucket, count in self._counts.items()}

    def __len__(self) -> int:
        return self._counts.total()

    def quantile_ms(self, share: float) -> float | None:
        """The duration in milliseconds that this share of them does not exceed, None if there are none."""
        wanted = share * self._counts.total()
        seen = 0
        for bucket, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                return math.exp((bucket + 0.5) * _STEP) / 1000
        return None

    def columns(self, name: str = "") -> Row:
        """The usual quantiles as columns of a row, in milliseconds."""
        return {f"{name}{title}_ms": _rounded(self.quantile_ms(share)) for title, share in QUANTILES.items()}


class Report(msgspec.Struct, kw_only=True):
    """What one scenario found."""

    bench: str
    parameters: dict[str, Any] = {}
    rows: list[Row] = []
    notes: list[str] = []
    """How to read the figures, such as that the clients were the limit."""
    problems: list[str] = []
    """What must not be, such as messages that were lost."""

    def row(self, phase: str, **columns: Value) -> Row:
        """Add a row; floats are rounded to what they are worth."""
        made: Row = {"phase": phase}
        self.rows.append(made)
        return self.add(made, **columns)

    def add(self, row: Row, **columns: Value) -> Row:
        """Add columns to a row, rounded likewise; None is left out."""
        row.update({name: _rounded(value) for name, value in columns.items() if value is not None})
        return row

    def expect(self, what: str, accepted: int, delivered: int) -> None:
        """Every accepted message has to be delivered, and nothing else (contract: Nothing accepted is lost)."""
        if accepted != delivered:
            self.problems.append(f"{what}: {accepted} accepted, but {delivered} delivered")


def ratio(value: float | None, base: float | None) -> float | None:
    """How many times `base` it is."""
    return None if value is None or not base else value / base


def machine() -> dict[str, Any]:
    """Where it was measured, and how busy that was before."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def text(report: Report) -> str:
    """A report for people."""
    parameters = ", ".join(f"{name} {value}" for name, value in report.parameters.items())
    cost = [_only(row, lambda name: name == "phase" or name.endswith(CPU)) for row in report.rows]
    rest = [_only(row, lambda name: not name.endswith(CPU)) for row in report.rows]
    lines = [f"{report.bench}: {parameters}", "", *_table(rest)]
    if any(len(row) > 1 for row in cost):
        lines += ["", "microseconds of CPU for each message", "", *_table(cost)]
    lines += ["", *(f"  {note}" for note in report.notes)] if report.notes else []
    lines += ["", *(f"  PROBLEM: {problem}" for problem in report.problems)] if report.problems else []
    return "\n".join(lines)


def _only(row: Row, wanted: Callable[[str], bool]) -> Row:
    return {name: value for name, value in row.items() if wanted(name)}


def _table(rows: Sequence[Row]) -> list[str]:
    """Rows as aligned columns; a column that only some of them have is empty in the others."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return [
        "  ".join(
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _shown(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    """Three digits that count; more would say more than was measured."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return value
    digits = 2 - math.floor(math.log10(abs(value)))
    return round(value, digits) if digits > 0 else float(round(value))
