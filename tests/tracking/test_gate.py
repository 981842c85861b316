import math

import pytest

from darkroom.tracking.gate import PromotionRule, Report, Verdict, judge

RULE = PromotionRule(metric="kid", standard_errors=2.0, max_copied_fraction=0.01, min_progress=0.5)


def report(kid: float, *, error: float = 0.0, copied: float = 0.01, low: float = 0.0, eval_key: str = "key") -> Report:
    metrics = {"kid": kid, "kid_standard_error": error, "copied_fraction": copied, "copied_fraction_low": low}
    return Report(metrics, eval_key)


def test_the_first_version_passes() -> None:
    assert judge(report(9.0), None, RULE).passed


def test_a_lower_number_passes_and_a_higher_or_equal_one_does_not() -> None:
    assert judge(report(0.9), report(1.0), RULE).passed
    assert not judge(report(1.1), report(1.0), RULE).passed
    assert not judge(report(1.0), report(1.0), RULE).passed


@pytest.mark.parametrize(("value", "passed"), [(0.899, True), (0.901, False)])
def test_the_difference_must_exceed_the_combined_noise(value: float, passed: bool) -> None:
    # errors 0.03 and 0.04 combine to 0.05; two of them are 0.1
    assert judge(report(value, error=0.03), report(1.0, error=0.04), RULE).passed is passed


def test_without_standard_errors_the_noise_is_zero() -> None:
    bare = Report({"kid": 0.9, "copied_fraction": 0.0, "copied_fraction_low": 0.0}, "key")
    assert judge(bare, Report({"kid": 0.91}, "key"), RULE).passed


@pytest.mark.parametrize("low", [0.011, 0.5, math.nan])
@pytest.mark.parametrize("champion", [None, report(1.0)])
def test_a_model_that_surely_copies_more_than_the_limit_never_passes(low: float, champion: Report | None) -> None:
    verdict = judge(report(0.1, copied=0.6, low=low), champion, RULE)
    assert not verdict.passed
    assert verdict.reason == f"copied_fraction is 0.6, and its 95 % interval begins at {low:.3g}; required: at most 0.01"


def test_a_share_of_copies_that_may_be_chance_is_allowed() -> None:
    assert judge(report(0.1, copied=0.03, low=0.01), None, RULE).passed


def test_a_report_that_is_unfit_decides_nothing_and_says_why() -> None:
    unfit = Report({}, "key", unfit_because="There are 40 held-out photos; required: 100.")  # its metrics were not even measured
    for champion in (None, report(1.0)):
        assert judge(unfit, champion, RULE) == Verdict(False, "There are 40 held-out photos; required: 100.")


def test_numbers_of_another_kind_of_evaluation_are_not_compared() -> None:
    verdict = judge(report(0.1, eval_key="other"), report(1.0), RULE)
    assert not verdict.passed
    assert "not comparable" in verdict.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_does_not_pass(value: float) -> None:
    assert not judge(report(value), None, RULE).passed


def test_the_reason_names_both_numbers_and_the_noise() -> None:
    verdict = judge(report(0.5, error=0.03), report(1.0, error=0.04), RULE)
    assert verdict.reason == "kid is 0.5, the champion's is 1; required: lower by more than 0.1"


def test_a_metric_that_is_not_in_the_report_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"Metric `fid` is missing in the report; the gate needs it. Metrics: copied_fraction, .*kid"):
        judge(report(1.0), None, PromotionRule("fid", 2.0, 0.5, 0.0))


def test_a_report_keeps_numbers_and_why_it_is_unfit() -> None:
    content = {"kid": 1, "name": "x", "flag": True, "list": [1], "copied_fraction": 0.25, "eval_key": "abc", "unfit_because": "No."}
    assert Report.read(content) == Report({"kid": 1.0, "copied_fraction": 0.25}, "abc", "No.")


@pytest.mark.parametrize(("content", "key"), [
    ({"unfit_because": ""}, "eval_key"), ({"unfit_because": "", "eval_key": ""}, "eval_key"), ({"eval_key": "abc"}, "unfit_because"),
    ({"eval_key": "abc", "unfit_because": None}, "unfit_because"),
])  # fmt: skip
def test_a_report_of_an_older_version_is_refused(content: dict[str, object], key: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`{key}` is missing in metrics.json of the report; run `dvc repro --force --single-item evaluate`"
    ):
        Report.read({"kid": 1.0} | content)


@pytest.mark.parametrize(("kid", "passed"), [(0.9, False), (0.51, False), (0.49, True), (-0.01, True)])
def test_a_champion_has_gone_half_of_the_way_from_chance_to_photos(kid: float, passed: bool) -> None:
    known = Report(report(kid).metrics | {"kid_chance": 1.0, "kid_photos": 0.0}, "key")
    verdict = judge(known, None, RULE)
    assert verdict.passed is passed
    assert passed or "of the way from chance to photos; required: 50%" in verdict.reason


def test_a_metric_without_chance_or_photos_needs_no_progress() -> None:
    assert judge(Report(report(9.0).metrics | {"kid_chance": 1.0}, "key"), None, RULE).passed
    assert judge(Report(report(9.0).metrics | {"kid_chance": 1.0, "kid_photos": 1.0}, "key"), None, RULE).passed
