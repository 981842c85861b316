"""Writes the table of drawing options in docs/sampling.md: `python docs/write_drawing_options.py`, after an option has changed."""

from pathlib import Path

from darkroom.sampling.request import OPTIONS, choices

PAGE = Path(__file__).with_name("sampling.md")
BEGIN, END = "<!-- drawing options -->", "<!-- end of drawing options -->"


def table() -> str:
    """Options with defaults and explanations, in Markdown."""
    rows = ["| Python | command line | default | meaning | not for |", "|---|---|---|---|---|"]
    for name, option in OPTIONS.items():
        flag = f"`--{name.replace('_', '-')}`" if option.command else ""
        names = f": {', '.join(f'`{choice}`' for choice in choices(name))}" if choices(name) else ""
        rows.append(f"| `{name}` | {flag} | {option.default} | {option.help}{names} | {', '.join(option.not_for)} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with a fresh table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"docs/sampling.md needs {BEGIN} and {END}"
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
