"""Self-contained HTML pages, made from `templates/`, with embedded images."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in the file `template` of `templates/`. Every value is escaped; the same values give the same bytes.

    A missing value is an error.
    """
    path.write_text(_environment().get_template(template).render(**values), encoding="utf-8")


def png_uri(pixels: np.ndarray) -> str:
    """A `src` for <img>: the PNG of uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return data_uri(file.getvalue(), "png")


def data_uri(encoded: bytes, kind: str) -> str:
    """A `src` for <img>: an encoded image; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def format_number(value: float) -> str:
    """Three significant digits; from 100 on, an integer."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "png_uri": png_uri}
    return environment
