import pytest

from darkroom.evaluation.glossary import GLOSSARY, Entry, Metric, explain
from darkroom.evaluation.story import tell_verdict

FAR = {"kid": 2.0, "kid_standard_error": 0.25, "kid_p": 0.001, "kid_photos": 0.0, "kid_chance": 8.0}


def copied(value: float, low: float | None) -> Metric:
    entry = Entry("Copied fraction", "", "", "lower")
    return Metric("copied_fraction", value, entry, standard_error=None, low=low, high=None, p=None, photos=0.01, chance=None)


def verdict(*others: Metric, unfit_because: str = "", **changes: float) -> str:
    return tell_verdict([*explain(FAR | changes, {"kid": GLOSSARY["kid"]}), *others], unfit_because)


def test_an_unfit_report_says_why_no_gate_decides_and_gives_no_number():
    assert verdict(unfit_because="The extractor sees no blur.") == (
        "The gate will not promote this model, because its numbers decide nothing: The extractor sees no blur."
    )


def test_the_way_from_chance_to_photos_is_told():
    assert verdict() == (
        "The samples are not yet like the photos: they went 75 % of the way from chance to photos, of which the gate requires "
        "register.min_progress (KID 2.00 ± 0.25); the gate will compare it with the champion."
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kid_p": 0.2}, "The samples cannot be told from the photos (KID 2.00 ± 0.25); "),
        ({"kid": 9.0}, "The samples are no nearer to the photos than a model that has learned nothing (KID 9.00 ± 0.25); "),
        ({"kid_chance": 0.0}, "The samples are not yet like the photos (KID 2.00 ± 0.25); "),
        ({"kid": float("nan")}, "The distance of the samples from the photos was not measured, so the gate cannot compare it; "),
    ],
)
def test_the_distance_is_put_in_words(changes, expected):
    assert verdict(**changes).startswith(expected)


def test_copies_are_named_when_they_are_sure():
    assert verdict(copied(0.06, 0.03)).endswith(
        "; at least 3.0 % of them look copied from training photos, where 1.0 % of fresh photos do, "
        "and the gate refuses more than register.max_copied_fraction."
    )
    assert verdict(copied(0.03, 0.004)).endswith(
        "; 3.0 % of them look copied, not surely more than of fresh photos (1.0 %), so the gate goes on to compare their distance."
    )


def test_copies_without_an_interval_are_not_judged():
    assert verdict(copied(0.9, None)).endswith("; the gate will compare it with the champion.")


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"kid_standard_error": 0.256, "kid_low": 1.0}, "2.00 ± 0.26"),
        ({"kid_standard_error": 345.6}, "2.00 ± 346"),
        ({"kid_low": 1.0, "kid_high": 3.0}, "2.00 (1.00 to 3.00)"),
        ({"kid_high": 3.0}, "2.00 (at most 3.00)"),
        ({"kid_low": 1.0}, "2.00 (at least 1.00)"),
        ({}, "2.00"),
    ],
)
def test_a_number_is_told_with_its_error_or_else_with_its_interval(measured, words):
    (metric,) = explain({"kid": 2.0, **measured}, {"kid": GLOSSARY["kid"]})
    assert metric.in_words == words


def test_the_place_between_chance_and_photos_is_a_share():
    (metric,) = explain(FAR, {"kid": GLOSSARY["kid"]})
    assert [metric.place(value) for value in (8.0, 2.0, 0.0, -4.0)] == [0, 0.75, 1, 1.5]
    (alone,) = explain({"kid": 1.0, "kid_photos": 0.0}, {"kid": GLOSSARY["kid"]})
    assert alone.place(1.0) is None
