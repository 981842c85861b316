"""The page in a browser: its height, its width and the size of its chart text, on a phone and on a desktop."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom.evaluation.canaries import Canary
from darkroom.evaluation.charts import curve_svg
from darkroom.evaluation.features import ArrayImages
from darkroom.evaluation.galleries import Gallery, Tile, comparison_gallery, reconstruction_gallery, sample_gallery
from darkroom.evaluation.glossary import COMPANIONS, GLOSSARY, explain
from darkroom.evaluation.report import write_report
from darkroom.evaluation.story import Champion, Funnel, FunnelStep, Story

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "a sitting purple cat with golden eyes, wearing a yellow hat and a red scarf, with a ball on a rainy beach at sunset"
SEE = """<script>addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const size = element => parseFloat(getComputedStyle(element).fontSize);
  const charts = [...page.querySelectorAll("svg")].map(svg => size(svg.querySelector("text")) * scale(svg));
  const text = [...page.querySelectorAll("p, summary, figcaption, td, span, b")].map(size);
  document.querySelector("pre").textContent = JSON.stringify(
    {height: root.scrollHeight, width: root.scrollWidth, viewport: root.clientWidth, charts, text: Math.min(...text)});
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that it can hold, and long captions."""
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    source = ArrayImages(images)
    of_pairs, of_coats = ([Tile(images[:count], LONG) for _ in range(8)] for count in (2, 8))
    ends = {"photos": 1.0, "chance": 0.0, "low": 0.4, "high": 0.6, "p": 0.01}
    numbers = dict.fromkeys(GLOSSARY, 0.5) | {f"{key}_{name}": ends[name] for key in GLOSSARY for name in COMPANIONS if name in ends}
    curves = {name: [(step, 1.0 / step) for step in range(1, 40)] for name in ("training set", "held-out set")}
    folder = tmp_path_factory.mktemp("report")
    story = Story(
        verdict=" ".join([LONG] * 3),
        remarks=[LONG, LONG],
        samples=sample_gallery(source, [LONG] * 32, 32),
        metrics=explain(numbers),
        worst=Gallery("Worst prompts", LONG, [Tile(images[:1], LONG)] * 12),
        funnel=Funnel([FunnelStep("Reconstructions by the VAE", 0.5, 0.4, 0.6, 256)] * 4, LONG),
        galleries=[
            reconstruction_gallery(images[:16], images[16:], 16),
            *(Gallery("Closest pairs", LONG, tiles) for tiles in (of_pairs, of_coats)),
            *[Gallery("Photos that fit worst", LONG, [Tile(images[:1], LONG)] * 12)] * 2,
        ],
        canaries=[Canary("tiles shuffled", 80.0, 0.001)] * 5,
        facts={name: {"data/unet": "f" * 64} for name in ("Data and measurement", "Parameters", "Lineage", "Cost")},
        charts={f"Loss of train_{name}": curve_svg(curves) for name in ("clip", "vae", "unet")},
        bands={f"Noise level {number}": curve_svg(curves) for number in range(4)},
        champion=Champion("darkroom version 3", dict.fromkeys(GLOSSARY, 0.4), comparison_gallery(source, source, [LONG] * 32, 16)),
    )
    return write_report(folder, story)[0]


def seen(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What a browser sees of the page in a window of this width, px."""
    frame = f'<iframe style="border: 0; width: {width}px; height: 800px" srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe>'
    (folder / "frame.html").write_text(f"<pre></pre>{frame}{SEE}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    assert CHROMIUM is not None
    dom = subprocess.run(
        [CHROMIUM, *options, (folder / "frame.html").as_uri()], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    found = re.search(r"<pre>(.+?)</pre>", dom)
    assert found, "the browser did not finish"
    numbers: dict[str, Any] = json.loads(html.unescape(found[1]))
    return numbers


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "tallest"), [(390, 6000), (1280, 9000)])
def test_the_full_report_is_short_fits_the_window_and_its_charts_can_be_read(page, tmp_path, width, tallest):
    found = seen(page, tmp_path, width)
    assert 1000 < found["height"] <= tallest
    assert found["width"] <= found["viewport"]  # nothing makes the page itself scroll sideways
    assert len(found["charts"]) == 7
    assert min(found["charts"]) >= 11
    assert found["text"] >= 11
