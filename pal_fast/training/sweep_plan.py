"""What a sweep runs: conditions, seeds, and the plan that combines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: The options of a run that a sweep sets.
VARIED: Final = ("attribution", "channels", "layer", "weight", "seed")


@dataclass(frozen=True)
class Condition:
    """One row of the table; the defaults are the baseline."""

    attribution: str = ""
    channels: str = ""
    layer: str = ""
    weight: float = 0.0

    @property
    def name(self) -> str:
        if not self.weight:
            return "baseline"
        return f"{self.layer}-{self.attribution}-{self.channels}-w{self.weight:g}"


@dataclass(frozen=True)
class Run:
    """A condition with a seed."""

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.condition.name}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is varied; every combination, and the baseline, is run with every seed."""

    attributions: Sequence[str] = ("grad_input", "grad")
    channels: Sequence[str] = ("mean", "half", "all")
    layers: Sequence[str] = ()
    weights: Sequence[float] = (1.0,)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not values and name != "layers":
                raise ValueError(f"{name} must hold at least one value, got none")
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must hold each value once, got {', '.join(map(str, values))}")
        if min(self.weights) <= 0:
            raise ValueError(f"weights must be above 0, got {min(self.weights):g}; the baseline is always run")

    def conditions(self, layers: Sequence[str]) -> list[Condition]:
        """The baseline first."""
        return [
            Condition(),
            *(
                Condition(attribution, channels, layer, weight)
                for layer in layers
                for attribution in self.attributions
                for channels in self.channels
                for weight in self.weights
            ),
        ]
