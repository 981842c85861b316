"""Writes all files that are made from `darkroom.config`: `python docs/write_parameters.py`, after a parameter has changed.

These are params.yaml, its schema, and the tables between `<!-- parameters: SECTION -->` and `<!-- end of parameters -->` in docs/.
"""

import re
from pathlib import Path

from darkroom.config import SECTIONS
from darkroom.params_text import SCHEMA, as_text, entries, params_text, schema_text

ROOT = Path(__file__).parents[1]


def table(section: str) -> str:
    """Parameters of a section with defaults and explanations, in Markdown."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for entry in entries({}):
        if entry.keys[0] == section and len(entry.keys) > 1:
            default = "" if entry.is_group else f"`{as_text(entry.value)}`"
            rows.append(f"| `{'.'.join(entry.keys[1:])}` | {default} | {entry.explanation} |")
    return "\n".join(rows)


def with_table(page: str, section: str) -> str:
    """The page with a fresh table between its markers."""
    begin, end = f"<!-- parameters: {section} -->", "<!-- end of parameters -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert len(pattern.findall(page)) == 1, f"docs/{section}.md needs one {begin} and {end}"
    return pattern.sub(lambda _: f"{begin}\n\n{table(section)}\n\n{end}", page)


def generated() -> dict[Path, str]:
    """Path -> content of every generated file."""
    pages = {ROOT / "docs" / f"{section}.md": section for section in SECTIONS}
    return {
        ROOT / "params.yaml": params_text({}, command="darkroom params"),
        ROOT / SCHEMA: schema_text(),
        **{path: with_table(path.read_text(encoding="utf-8"), section) for path, section in pages.items()},
    }


if __name__ == "__main__":
    for path, text in generated().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} is written.")
