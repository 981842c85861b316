"""The report: one HTML file that shows pictures, numbers and curves, and needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from darkroom.evaluation.grid import picture_grid

Images = NDArray[np.uint8]  # (B, H, W, 3)


@dataclass(frozen=True)
class Number:
    name: str
    value: float
    meaning: str  # one plain sentence


@dataclass(frozen=True)
class Tile:
    images: Images  # (n, H, W, 3), shown side by side
    label: str


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str  # one plain sentence
    tiles: Sequence[Tile]


def write_report(
    path: Path,
    *,
    title: str,
    numbers: Sequence[Number],
    facts: Mapping[str, str],  # what the numbers were measured with
    galleries: Sequence[Gallery],
    charts: Mapping[str, str],  # title -> SVG
) -> None:
    """Writes a page that works offline and on a phone: pictures are data URIs, texts are escaped, there is no script."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": format_number, "data_uri": data_uri}
    html = environment.from_string(TEMPLATE).render(
        title=title, numbers=numbers, facts=facts, galleries=galleries, charts={name: Markup(svg) for name, svg in charts.items()}
    )
    path.write_text(html, encoding="utf-8")


def format_number(value: float) -> str:
    """Three significant digits, without an exponent where that stays short."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def data_uri(images: Images) -> str:
    """Pictures side by side as one PNG."""
    file = io.BytesIO()
    Image.fromarray(picture_grid(images, columns=len(images))).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


TEMPLATE = """{% macro show(gallery) %}
<h2>{{ gallery.title }}</h2>
<p>{{ gallery.note }}</p>
{% set most = gallery.tiles | map(attribute="images") | map("length") | max %}
<div class="tiles{{ ' rows' if most > 2 else ' pairs' if most == 2 else '' }}">
{% for tile in gallery.tiles %}
<figure><img{{ ' class=small' if tile.images.shape[1] < 128 }} alt="{{ tile.label }}" src="{{ tile.images | data_uri }}">
<figcaption>{{ tile.label }}</figcaption></figure>
{% endfor %}
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #22252b; --soft: #667; --paper: #fbfaf8; --card: #fff; --line: #e3e0da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #9a9aa5; --paper: #17181b; --card: #212327; --line: #34363c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .2rem; }
p { margin: 0 0 .8rem; color: var(--soft); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: .8rem; }
.number { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.number b { display: block; font-size: 1.6rem; line-height: 1.2; } .number span { font-weight: 600; }
.number p { margin: .3rem 0 0; font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .7rem; }
.tiles.pairs { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.tiles.rows { grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: .4rem; }
img.small { image-rendering: pixelated; }
figcaption { font-size: .78rem; line-height: 1.3; color: var(--soft); margin-top: .25rem; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.charts figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem; }
svg { width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--soft); } svg .rule { stroke: var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid var(--line); padding: .35rem .5rem; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); width: 12rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for gallery in galleries[:1] %}{{ show(gallery) }}{% endfor %}
<h2>Numbers</h2>
<div class="numbers">
{% for number in numbers %}
<div class="number"><b>{{ number.value | figure }}</b><span>{{ number.name }}</span><p>{{ number.meaning }}</p></div>
{% endfor %}
</div>
<h2>Measured with</h2>
<table>
{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
{% for gallery in galleries[1:] %}{{ show(gallery) }}{% endfor %}
{% if charts %}
<h2>Training curves</h2>
<div class="charts">
{% for name, svg in charts.items() %}<figure>{{ svg }}<figcaption>{{ name }}</figcaption></figure>{% endfor %}
</div>
{% endif %}
</body>
</html>
"""
