import runpy
from pathlib import Path

import pytest

from darkroom.demo.adherence import ADHERENCE
from darkroom.evaluation.glossary import GLOSSARY, MEASURED, Entry, explain

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_tables_of_the_glossary():
    page = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(DOCS / "write_metrics.py"))["with_tables"](page), "run `python docs/write_metrics.py`"


@pytest.mark.parametrize("entry", (GLOSSARY | ADHERENCE).values(), ids=lambda entry: entry.name)
def test_every_metric_says_in_sentences_what_it_means_and_what_fools_it(entry):
    bounds = [bound for bound in (entry.photos, entry.chance) if isinstance(bound, str) and bound != MEASURED]
    assert all((len(text) > 10 and text.endswith(".")) or text.endswith("?") for text in (entry.meaning, entry.fooled_by, *bounds))


def test_a_metric_without_a_sentence_of_meaning_is_refused():
    with pytest.raises(AssertionError, match=r"'invented'. without a sentence"):
        explain({"kid": 0.1, "invented": 1.0})


def test_metrics_keep_the_order_of_the_glossary_and_lose_what_is_not_finite():
    assert [metric.key for metric in explain({"precision": 0.5, "kid": 0.1, "recall": float("nan")})] == ["kid", "precision"]


def test_a_metric_gets_its_companions_measured_or_known():
    glossary = {"psnr": Entry("PSNR", "Exactness.", "Blur.", "higher", photos="No limit.", chance=5.0)}
    (metric,) = explain({"psnr": 20.0, "psnr_low": 19.0, "psnr_standard_error": 0.5}, glossary)
    assert (metric.value, metric.low, metric.high, metric.standard_error, metric.photos, metric.chance) == (
        20.0,
        19.0,
        None,
        0.5,
        None,
        5.0,
    )


def test_a_companion_that_is_no_number_is_unknown():
    (metric,) = explain({"kid": 1.0, "kid_chance": float("nan")}, {"kid": Entry("KID", "", "", "lower")})
    assert metric.chance is None
    assert metric.numbers == {"kid": 1.0}


def test_a_metric_goes_to_the_file_with_the_companions_that_are_known():
    (metric,) = explain({"psnr": 20.0, "psnr_low": 19.0}, {"psnr": Entry("PSNR", "", "", "higher", photos="No limit.", chance=5.0)})
    assert metric.numbers == {"psnr": 20.0, "psnr_low": 19.0, "psnr_chance": 5.0}
