"""What the report tells: the funnel from the photo to the sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class FunnelStep(NamedTuple):
    """Pictures of one stage, and how many of them the classifier recognises."""

    name: str
    share: float  # of the pictures
    low: float  # of the 95 % interval
    high: float
    num_pictures: int


@dataclass(frozen=True)
class Funnel:
    """From the photo to the sample: which stage loses the subject."""

    steps: Sequence[FunnelStep]  # may be empty; then the sentence says why
    sentence: str
