"""What a model card says of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One line of the card: what was measured, and the bar it must reach (None: no bar)."""

    what: str
    value: float
    bar: float | None

    @property
    def holds(self) -> bool:
        """Whether the bar is reached."""
        return self.bar is None or self.value >= self.bar
