"""The gate, which decides on promotion: arithmetic on the reports of challenger and champion."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """The metrics of one evaluation. Two reports are comparable if they have the same `eval_key`."""

    metrics: dict[str, float]
    eval_key: str
    unfit_because: str = ""  # plain sentences why no gate decides on this report; "" = the gate may decide

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Report":
        """Read the numbers, `eval_key` and `unfit_because` of metrics.json.

        Raises:
            ValueError: `eval_key` or `unfit_because` is missing or no text, as in reports of older versions.
        """
        for key, may_be_empty in (("eval_key", False), ("unfit_because", True)):
            if not isinstance(content.get(key), str) or not (content[key] or may_be_empty):
                raise ValueError(f"`{key}` is missing in metrics.json of the report; run `dvc repro --force --single-item evaluate`.")
        numbers = {name: float(value) for name, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        return cls(numbers, content["eval_key"], content["unfit_because"])

    def __getitem__(self, name: str) -> float:
        if name not in self.metrics:
            raise ValueError(f"Metric `{name}` is missing in the report; the gate needs it. Metrics: {', '.join(sorted(self.metrics))}.")
        return self.metrics[name]

    def progress(self, name: str) -> float:
        """Part of the way from chance (0) to photos (1) that a metric has gone; inf if the report does not know both."""
        chance, photos = (self.metrics.get(f"{name}_{end}", math.nan) for end in ("chance", "photos"))
        place = (self[name] - chance) / (photos - chance) if photos != chance else math.nan
        return math.inf if math.isnan(place) else place


@dataclass(frozen=True)
class PromotionRule:
    """The condition for promotion: section `register` of params.yaml."""

    metric: str  # lower is better
    standard_errors: float
    max_copied_fraction: float  # of the lower limit of `copied_fraction`
    min_progress: float  # part of the way from `<metric>_chance` to `<metric>_photos`


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str  # one sentence for the user


def judge(challenger: Report, champion: Report | None, rule: PromotionRule) -> Verdict:
    """Decide whether the challenger becomes champion.

    It passes if its report is fit to decide, if the lower limit of its `copied_fraction` is at most `max_copied_fraction`, if its
    metric has gone `min_progress` of the way from chance to photos (where both are known), and if it is below the champion's by
    more than the noise: `standard_errors` times sqrt(se_challenger² + se_champion²), where each se is `<metric>_standard_error` of a
    report, or zero if the report does not have it.

    Raises:
        ValueError: a report does not have a metric that the rule names.
    """
    if challenger.unfit_because:
        return Verdict(False, challenger.unfit_because)
    value, copied, low = (challenger[key] for key in (rule.metric, "copied_fraction", "copied_fraction_low"))
    if not math.isfinite(value):
        return Verdict(False, f"{rule.metric} is {value}; required: a finite number")
    if not low <= rule.max_copied_fraction:  # NaN fails too
        found = f"copied_fraction is {copied:.3g}, and its 95 % interval begins at {low:.3g}"
        return Verdict(False, f"{found}; required: at most {rule.max_copied_fraction:g}")
    progress = challenger.progress(rule.metric)
    if progress < rule.min_progress:
        found = f"{rule.metric} is {value:.3g} and has gone {progress:.0%} of the way from chance to photos"
        return Verdict(False, f"{found}; required: {rule.min_progress:.0%}")
    if champion is None:
        return Verdict(True, "it is the first champion")
    if champion.eval_key != challenger.eval_key:
        return Verdict(False, "its metrics are not comparable with the champion's: other photos, prompts, seeds or features")
    errors = [report.metrics.get(f"{rule.metric}_standard_error", 0.0) for report in (challenger, champion)]
    noise = rule.standard_errors * math.hypot(*errors)
    best = champion[rule.metric]
    reason = f"{rule.metric} is {value:.6g}, the champion's is {best:.6g}; required: lower by more than {noise:.2g}"
    return Verdict(value < best - noise, reason)
