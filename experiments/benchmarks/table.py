"""Rows of numbers as one Markdown table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.measure import ratios, spread

HEADER = (
    "what", "precision", "unit", "ours", "diffusers / transformers", "ours ÷ theirs", "GFLOP a step",
    "share of matrix products", "peak memory, MB: ours", "theirs",
)  # fmt: skip
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One line of the table: rates, one a round, higher is better.

    operations: floating-point operations of one step.  product: operations a second of the matrix product, measured
    in the same rounds.  memory: the memory cases of our side and of theirs.
    """

    key: str
    what: str
    precision: str
    unit: str
    ours: list[float]
    theirs: list[float] | None = None
    operations: int | None = None
    product: list[float] | None = None
    memory: tuple[str | None, str | None] = (None, None)

    def summary(self, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
        """Everything that is known of it, ready for JSON; `peaks` holds what each memory case found."""
        found: dict[str, Any] = {"key": self.key, "what": self.what, "precision": self.precision, "unit": self.unit}
        found["ours"] = {**spread(self.ours), "rounds": self.ours}
        if self.theirs:
            each = ratios(self.ours, self.theirs)
            found["theirs"] = {**spread(self.theirs), "rounds": self.theirs}
            found["ratio"] = {**spread(each), "rounds": each}
        if self.operations and self.product:
            found["operations"] = self.operations
            for side, rates in (("share", self.ours), ("share_theirs", self.theirs)):
                if rates:
                    found[side] = spread([self.operations * r / p for r, p in zip(rates, self.product, strict=True)])
        for side, case in zip(("memory", "memory_theirs"), self.memory, strict=True):
            if case in peaks:
                found[side] = peaks[case]
        return found


def digits(value: float) -> str:
    """Three digits that matter, whole numbers from 100 on: 0.512, 3.14, 41.6, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def with_spread(values: dict[str, float] | None, times: float = 1.0, unit: str = "") -> str:
    """ "3.14 (3.02–3.20)": the median, and lowest and highest where they differ."""
    if values is None:
        return NOTHING
    median, low, high = (digits(times * values[name]) for name in ("median", "low", "high"))
    return f"{median}{unit}" if low == high else f"{median}{unit} ({low}–{high})"


def memory_cell(found: dict[str, float] | None) -> str:
    """ "812 (+240)": the process's peak in MB, and how much of it came with the work itself."""
    return NOTHING if found is None else f"{found['peak'] / 1e6:,.0f} (+{found['added'] / 1e6:,.0f})"


def cells(row: dict[str, Any]) -> list[str]:
    """The columns of one row's summary."""
    return [
        row["what"],
        row["precision"] or NOTHING,
        row["unit"],
        with_spread(row["ours"]),
        with_spread(row.get("theirs")),
        f"**{row['ratio']['median']:.2f}** ({row['ratio']['low']:.2f}–{row['ratio']['high']:.2f})"
        if "ratio" in row
        else NOTHING,
        digits(row["operations"] / 1e9) if "operations" in row else NOTHING,
        with_spread(row.get("share"), 100, " %"),
        memory_cell(row.get("memory")),
        memory_cell(row.get("memory_theirs")),
    ]


def markdown(results: dict[str, Any]) -> str:
    """The whole report: where and how it was measured, then the table."""
    machine, how = results["machine"], results["how"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['capability']}, "
        f"{machine['system']}; {versions}; profile {how['profile']}; {how['rounds']} rounds of {how['seconds']:g} s "
        f"turns, {how['minutes']:.1f} minutes in all; load before {how['load_before']:.1f}, "
        f"after {how['load_after']:.1f}.",
        "",
        "Median over the rounds (lowest–highest); higher is better; ratios and shares are taken round by round.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "| " + " | ".join(["---"] * 2 + ["---"] + ["---:"] * (len(HEADER) - 3)) + " |",
        *("| " + " | ".join(cells(row)) + " |" for row in results["rows"]),
    ]
    return "\n".join(lines) + "\n"
