"""What the report tells: the parts of the story in their order, and the sentence that it begins with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from darkroom.evaluation.canaries import Canary
from darkroom.evaluation.galleries import Gallery
from darkroom.evaluation.glossary import Metric

SIGNIFICANT = 0.05  # p-values below it are no chance


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


@dataclass(frozen=True)
class Champion:
    """The model that is live, beside this one."""

    name: str  # as in the registry
    values: Mapping[str, float]  # key of metrics.json -> value, measured with the same eval_key
    pictures: Gallery  # tiles of two: a sample of this model and the champion's, of one prompt and seed


@dataclass(frozen=True)
class Story:
    """Everything that the report tells; what is empty is left out."""

    verdict: str  # the first sentence
    remarks: Sequence[str]  # sentences that follow it: what could not be measured
    samples: Gallery
    metrics: Sequence[Metric]
    worst: Gallery | None = None  # prompts
    funnel: Funnel | None = None
    galleries: Sequence[Gallery] = ()  # reconstructions, closest pairs, photos that fit worst
    canaries: Sequence[Canary] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # heading -> name -> value
    charts: Mapping[str, str] = field(default_factory=dict)  # title -> SVG of the losses
    bands: Mapping[str, str] = field(default_factory=dict)  # title -> SVG of the loss of one noise band
    champion: Champion | None = None


def tell_verdict(metrics: Sequence[Metric], unfit_because: str) -> str:
    """One sentence: are the samples like the photos, are they copies, and what will the gate of `register` do?

    Args:
        metrics: those of the report; `kid` and `copied_fraction` decide.
        unfit_because: as in metrics.json: why no gate decides on this report; empty if one may.
    """
    if unfit_because:
        return f"The gate will not promote this model, because its numbers decide nothing: {unfit_because}"
    found = {metric.key: metric for metric in metrics}
    parts = [_distance_in_words(found.get("kid")), _copies_in_words(found.get("copied_fraction"))]
    return "; ".join(part for part in parts if part) + "."


def _distance_in_words(kid: Metric | None) -> str:
    if kid is None:
        return "The distance of the samples from the photos was not measured, so the gate cannot compare it"
    numbers = f"{kid.entry.name} {kid.in_words}"
    if kid.p is not None and kid.p >= SIGNIFICANT:
        return f"The samples cannot be told from the photos ({numbers})"
    place = kid.place(kid.value)
    if place is None:
        return f"The samples are not yet like the photos ({numbers})"
    if place <= 0:
        return f"The samples are no nearer to the photos than a model that has learned nothing ({numbers})"
    way = f"{100 * place:.0f} % of the way from chance to photos, of which the gate requires register.min_progress"
    return f"The samples are not yet like the photos: they went {way} ({numbers})"


def _copies_in_words(copied: Metric | None) -> str:
    if copied is None or copied.low is None or copied.photos is None:
        return "the gate will compare it with the champion"
    value, low, photos = (f"{100 * number:.1f} %" for number in (copied.value, copied.low, copied.photos))
    if copied.low > copied.photos:
        return (
            f"at least {low} of them look copied from training photos, where {photos} of fresh photos do, and the gate refuses more than "
            "register.max_copied_fraction"
        )
    return f"{value} of them look copied, not surely more than of fresh photos ({photos}), so the gate goes on to compare their distance"
