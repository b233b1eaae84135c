"""What a benchmark's figures have to reach."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.output import table

__all__ = ["Bar", "bar_table"]


@dataclass(frozen=True)
class Bar:
    """One figure, and its bar."""

    name: str
    sense: Literal["at most", "at least"]
    limit: float
    measured: float | None
    """None where it could not be measured."""

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` (so is NaN) or ``not measured``."""
        if self.measured is None:
            return "not measured"
        most = self.sense == "at most"
        met = self.measured <= self.limit if most else self.measured >= self.limit
        return "met" if met else "missed"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict}


def bar_table(bars: Sequence[Bar]) -> str:
    """One line per bar."""
    rows = [
        [
            bar.name,
            f"{bar.sense} {bar.limit:g}",
            "-" if bar.measured is None else f"{bar.measured:.3g}",
            bar.verdict,
        ]
        for bar in bars
    ]
    return table(["", "bar", "measured", "verdict"], rows)
