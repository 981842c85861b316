"""Writes the tables of the metrics in docs/evaluate.md: `python docs/write_metrics.py`, after an entry of a glossary has changed."""

import re
from collections.abc import Mapping
from pathlib import Path

from darkroom.demo.adherence import ADHERENCE
from darkroom.evaluation.glossary import GLOSSARY, Entry
from darkroom.pages import format_number

PAGE = Path(__file__).with_name("evaluate.md")
BEGIN, END = "<!-- metrics -->", "<!-- end of metrics -->"


def tables() -> str:
    """What each metric says and what fools it, and the two values that it stands between, in Markdown."""
    entries: Mapping[str, Entry] = GLOSSARY | ADHERENCE
    rows = ["| key | what it says | better | what fools it |", "|---|---|---|---|"]
    rows += [f"| `{key}` | {entry.meaning} | {entry.better} | {entry.fooled_by} |" for key, entry in entries.items()]
    rows += ["", "| key | what photos reach | chance: what a model reaches that has learned nothing |", "|---|---|---|"]
    rows += [f"| `{key}` | {_bound(entry.photos)} | {_bound(entry.chance)} |" for key, entry in entries.items()]
    return "\n".join(rows)


def _bound(value: float | str) -> str:
    return format_number(value) if isinstance(value, float) else value


def with_tables(page: str) -> str:
    """The page with fresh tables between its markers."""
    assert page.count(BEGIN) == page.count(END) == 1
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{tables()}\n\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
