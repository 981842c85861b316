import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.evaluation.canaries import Canary
from darkroom.evaluation.charts import curve_svg
from darkroom.evaluation.galleries import Gallery, Tile
from darkroom.evaluation.glossary import Entry, explain
from darkroom.evaluation.report import report_facts, write_report
from darkroom.evaluation.story import Champion, Funnel, FunnelStep, Story
from darkroom.params_file import load_params
from darkroom.pixels import picture_grid
from darkroom.provenance import read_index
from tests.tiny_run import make_project, run_stage

random = np.random.default_rng(0)
KID = Entry("KID", "A distance.", "Blur.", "lower")
PSNR = Entry("PSNR", "Exactness.", "Blur too.", "higher", photos="There is no limit.", folded=True)
MEASURED = {"kid": 2.0, "kid_standard_error": 0.25, "kid_high": 2.5, "kid_p": 0.001, "kid_photos": 0.0, "kid_chance": 8.0, "psnr": 20.0}


def noise(count, size=16):
    return random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def story(**changes: Any) -> Story:
    told = Story(
        verdict="The samples are cats.",
        remarks=["Prompts steer <nothing>."],
        samples=Gallery("Samples", "Drawn.", [Tile(noise(1), "a cat"), Tile(noise(1), "a dog")]),
        worst=Gallery("Worst prompts", "Bad.", [Tile(noise(1), "12.0 · a purple dog")]),
        metrics=explain(MEASURED, {"kid": KID, "psnr": PSNR}),
        funnel=Funnel([FunnelStep("Photos", 0.5, 0.4, 0.6, 100), FunnelStep("Samples", 0.25, 0.2, 0.3, 200)], "The VAE loses it."),
        galleries=[Gallery("Closest pairs", "Two.", [Tile(noise(2), "both")])],
        canaries=[Canary("blurred", 12.5, 0.001)],
        facts={"Lineage": {"data/unet": "abc123"}},
        charts={"Loss of train_unet": curve_svg({"loss": [(0, 1.0), (10, 0.5)]})},
        bands={"Noise level 0.1 to 1": curve_svg({"loss": [(0, 2.0), (10, 0.5)]})},
    )
    return replace(told, **changes)


CHAMPION = Champion("darkroom version 3", {"kid": 3.5, "other": 1.0}, Gallery("Beside the champion", "", [Tile(noise(2), "a red cat")]))


def report(folder: Path, **changes: Any) -> str:
    page, _ = write_report(folder, story(**changes))
    return page.read_text(encoding="utf-8")


def markdown(folder: Path, **changes: Any) -> str:
    _, text = write_report(folder, story(**changes))
    return text.read_text(encoding="utf-8")


def test_the_report_needs_nothing_but_itself(tmp_path):
    html = report(tmp_path, champion=CHAMPION)
    outside_pictures = re.sub(r"base64,[^\"]*", "base64,", html)
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", outside_pictures)
    assert set(re.findall(r'src="([^,"]*)', html)) == {"data:image/png;base64"}


def test_the_report_tells_its_story_in_order(tmp_path):
    html = report(tmp_path, champion=CHAMPION)
    parts = ["The samples are cats.", "a dog", "a purple dog", "The VAE loses it.", "50 % of 100", "25 % of 200", "both",
             "2.00 ± 0.25", "chance 8.00", "photos 0.00", "A distance.", "What fools it: Blur.", "More numbers", "20.0", "canaries",
             "blurred", "12.5", "Lineage", "abc123", "Loss of train_unet", "Loss of the U-Net by noise band", "Noise level 0.1 to 1",
             "a red cat", "darkroom version 3", "3.50"]  # fmt: skip
    place = 0
    for part in parts:
        place = html.find(part, place)
        assert place >= 0, f"{part!r} is not where it should be"
    assert html.count("<img") == 2 + 1 + 1 + 1


def test_the_verdict_is_the_first_sentence_of_the_page(tmp_path):
    html = report(tmp_path)
    remark = '<p class="remark">Prompts steer &lt;nothing&gt;.</p>'
    assert re.search(rf"</h1>\s*<p class=\"verdict\">The samples are cats.</p>\s*{remark}", html)
    assert "Prompts steer \\<nothing\\>." in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("empty", "heading"),
    [("worst", "Worst prompts"), ("funnel", "From photo to sample"), ("charts", "Training curves"), ("bands", "noise band"),
     ("canaries", "canaries"), ("facts", "Lineage"), ("galleries", "Closest pairs")],
)  # fmt: skip
def test_what_is_not_known_has_no_heading(tmp_path, empty, heading):
    assert heading in report(tmp_path)
    assert heading not in report(
        tmp_path, **{empty: None if empty in ("worst", "funnel") else () if empty in ("canaries", "galleries") else {}}
    )


def test_a_funnel_without_steps_says_why(tmp_path):
    funnel = Funnel([], "The classifier sees web sites.")
    assert "The classifier sees web sites." in report(tmp_path, funnel=funnel)
    assert 'class="funnel"' not in report(tmp_path, funnel=funnel)
    assert "The classifier sees web sites." in markdown(tmp_path, funnel=funnel)


def test_a_number_stands_between_chance_and_photos(tmp_path):
    html = report(tmp_path)
    (value,) = re.findall(r'class="value" style="left: ([\d.]+)%"', html)
    assert float(value) == 75  # 2 on the way from 8 to 0
    (left, width) = re.findall(r'class="range" style="left: ([\d.]+)%; width: ([\d.]+)%"', html)[-1]
    assert (float(left), float(width)) == (68.8, 12.4)  # from 2.5, its upper limit, to two standard errors below 2


def test_a_number_beyond_photos_or_chance_stands_at_the_end(tmp_path):
    for kid, place in ((-1.0, 100), (9.0, 0)):
        html = report(tmp_path, metrics=explain({"kid": kid, "kid_photos": 0.0, "kid_chance": 8.0}, {"kid": KID}))
        assert [float(left) for left in re.findall(r'class="value" style="left: ([\d.]+)%"', html)] == [place]


def test_a_number_without_a_floor_says_why_and_has_no_dot(tmp_path):
    html = report(tmp_path, metrics=explain({"psnr": 20.0, "psnr_chance": 5.0}, {"psnr": PSNR}))
    assert 'class="value"' not in html
    assert "chance 5.00" in html
    assert re.search(r"Chance: 5.00\s+Photos: There is no limit.", html)
    assert re.search(r"Chance: not measured.\s+Photos: not measured.", report(tmp_path, metrics=explain({"kid": 1.0}, {"kid": KID})))


def test_details_of_a_number_are_folded(tmp_path):
    html = report(tmp_path)
    assert "<details open" not in html
    assert re.search(r"<p>95 % interval:  to 2.50.</p>|<p>95 % interval:\s+to 2.50.</p>", html)
    assert "probability 0.00100" in html
    assert "Better is lower." in html
    neither = explain({"kid": 1.0, "kid_low": 0.5}, {"kid": replace(KID, better="neither")})
    assert "Better is" not in report(tmp_path, metrics=neither)
    assert "from 0.500" in report(tmp_path, metrics=neither)


def test_pictures_in_the_report_are_the_pictures(tmp_path):
    images = noise(2)
    html = report(tmp_path, samples=Gallery("Pairs", "", [Tile(images, "both")]))
    png = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), picture_grid(images, 2))


EVIL = '"><script>alert(1)</script>'


def test_texts_are_escaped_on_the_page(tmp_path):
    evil = Gallery(EVIL, EVIL, [Tile(noise(1), EVIL)])
    changes = {"verdict": EVIL, "samples": evil, "worst": evil, "galleries": [evil], "facts": {EVIL: {EVIL: EVIL}}}
    changes |= {"champion": Champion(EVIL, {}, evil), "funnel": Funnel([FunnelStep(EVIL, 0.5, 0.4, 0.6, 1)], EVIL)}
    html = report(tmp_path, **changes, canaries=[Canary(EVIL, 1.0, 1.0)], charts={EVIL: "<svg></svg>"})
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 15


def test_the_text_tells_verdict_numbers_funnel_and_worst_prompts(tmp_path):
    text = markdown(tmp_path, champion=CHAMPION)
    lines = text.splitlines()
    assert lines[2] == "**The samples are cats.**"
    assert "| KID | 8.00 | 2.00 ± 0.25 | 0.00 |" in lines
    assert "| PSNR |  | 20.0 |  |" in lines
    assert "| KID | 2.00 ± 0.25 | 3.50 |" in lines
    assert "- Samples: 25 % (20 to 30 %) of 200" in lines
    assert "- 12.0 · a purple dog" in lines
    assert "`report.html`" in lines[-1]
    assert "champion" not in markdown(tmp_path)


def test_texts_are_escaped_in_markdown(tmp_path):
    evil = "<b>a|b</b>\n# *x* [y](z) `c` &amp;"
    text = markdown(tmp_path, worst=Gallery("Worst prompts", "", [Tile(noise(1), evil)]))
    assert r"- \<b\>a\|b\</b\> \# \*x\* \[y\](z) \`c\` &amp;amp;" in text.splitlines()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("facts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, num_cats=24)
        run_stage("ingest", root)
    return root


def test_facts_name_data_parameters_lineage_and_cost(shards):
    train, held_out = (ImageShards(shards / "data" / "shards", split) for split in ("train", "val"))
    params = load_params(shards / "params.yaml")["evaluate"]
    assert isinstance(params, EvaluateParams)
    index = read_index(shards / "data" / "shards")
    ancestors = {"latents": "l" * 64, "shards": index["fingerprint"]}
    model = {"params": {"steps": 30, "batch_size": 8}, "ancestors": ancestors, "fingerprint": "f" * 64,
             "files": {"w.safetensors": {"bytes": 3 * 2**20}, "config.json": {"bytes": 2**30}}}  # fmt: skip
    indexes = {"shards": index, "clip": {**model, "params": {}}, "vae": {**model, "params": {"steps": 0}}, "unet": model}
    facts = report_facts(params, {"features": "squeezenet-1", "eval_key": "k" * 64}, ["a", "b", "b"], train, held_out, indexes)
    assert facts["Data and measurement"]["Samples"].startswith("3, of 2 captions")
    assert facts["Parameters of evaluate"]["sampling.steps"] == "2"
    assert facts["Lineage"] == {"data/clip": "f" * 12, "data/latents": "l" * 12, "data/shards": index["fingerprint"][:12],
                                "data/unet": "f" * 12, "data/vae": "f" * 12}  # fmt: skip
    assert facts["Cost"]["Pictures drawn"] == "8, in 2 sampling steps each"
    assert facts["Cost"]["Pictures measured"] == "32"
    assert facts["Cost"]["train_unet"] == f"30 steps of 8: {240 / len(train):.1f} times each photo; 3.0 MiB of weights"
    assert facts["Cost"]["train_clip"] == facts["Cost"]["train_vae"] == "not trained here; 3.0 MiB of weights"
