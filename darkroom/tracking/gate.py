"""The gate between a new version and what is live: pure arithmetic on two reports."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """The numbers of one evaluation. Two are comparable if their `eval_key` is the same: same pictures, seeds and count."""

    metrics: dict[str, float]
    eval_key: str

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Report":
        """From metrics.json: its numbers, and `eval_key`.

        Raises:
            ValueError: there is no eval_key.
        """
        if not content.get("eval_key"):
            raise ValueError("The report's metrics.json has no `eval_key`: evaluate with `dvc repro --force --single-item evaluate`.")
        numbers = {name: float(value) for name, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        return cls(numbers, str(content["eval_key"]))

    def __getitem__(self, name: str) -> float:
        if name not in self.metrics:
            raise ValueError(f"The report has no metric `{name}`, which the gate needs; it has {', '.join(sorted(self.metrics))}.")
        return self.metrics[name]


@dataclass(frozen=True)
class PromotionRule:
    """When a challenger may become champion: the section `register` of params.yaml."""

    metric: str  # lower is better
    standard_errors: float
    max_copied_fraction: float


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str  # one sentence, for people


def judge(challenger: Report, champion: Report | None, rule: PromotionRule) -> Verdict:
    """Champion if it copies no more than allowed and is better than the old one beyond the noise of both measurements.

    The noise is `standard_errors` times sqrt(se_challenger² + se_champion²), of the metrics `<metric>_standard_error`
    where the report has them, else zero.

    Raises:
        ValueError: a metric that the rule names is not in a report.
    """
    value, copied = challenger[rule.metric], challenger["copied_fraction"]
    if not math.isfinite(value):
        return Verdict(False, f"{rule.metric} is {value}")
    if not copied <= rule.max_copied_fraction:  # NaN fails too
        return Verdict(False, f"copied_fraction is {copied:.3g}, above the limit of {rule.max_copied_fraction:g}: it repeats its photos")
    if champion is None:
        return Verdict(True, "there was no champion")
    if champion.eval_key != challenger.eval_key:
        return Verdict(False, "its numbers do not compare with the champion's: other photos, seeds, count or features")
    errors = [report.metrics.get(f"{rule.metric}_standard_error", 0.0) for report in (challenger, champion)]
    noise = rule.standard_errors * math.hypot(*errors)
    best = champion[rule.metric]
    return Verdict(value < best - noise, f"{rule.metric} is {value:.6g}, the champion's is {best:.6g}, the noise {noise:.2g}")
