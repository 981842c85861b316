"""The theory page keeps its word: each equation stands beside code and a test that exist, each figure is there, formulas render."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^\$\$\n(.*?)\n\$\$$", PAGE, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^(```.*?^```|\$\$\n.*?\n\$\$)$", "", PAGE, flags=re.MULTILINE | re.DOTALL)  # without code and displayed formulas
INLINE = re.findall(r"\$([^$\n]+)\$", PROSE)
LINKS = re.findall(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", PROSE)
NAMED = [(label.strip("`"), path) for label, path in LINKS if path.endswith(".py") and not label.endswith(".py`")]
FIGURES = re.findall(r"!\[[^\]]+\]\((\S+)\)", PAGE)
QUICK = ("theory-schedules", "theory-order")  # half a second each


@cache
def names_in(path: str) -> set[str]:
    """What a file defines: functions, classes, methods ("Class.method") and constants."""
    body = ast.parse((DOCS / path).read_text(encoding="utf-8")).body
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])}
    return names


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def boxes() -> list[tuple[list[int], str, str]]:
    """Of each box under an equation: the numbers, what stands after "code" and what after "test"."""
    found = []
    for quote in re.findall(r"(?:^> .*\n)+", PAGE, re.MULTILINE):
        match = re.fullmatch(r"\*\*([^*]+)\*\* code (.+) · tests? (.+)", " ".join(quote.replace("\n> ", " ").split())[2:])
        assert match, f"not of the form **(n)** code .. · test ..: {quote}"
        found.append(([int(number) for number in re.findall(r"\((\d+)\)", match[1])], match[2], match[3]))
    return found


@pytest.mark.parametrize(("label", "path"), sorted(set(LINKS)))
def test_a_link_leads_somewhere(label: str, path: str) -> None:
    if path.startswith("#"):
        assert path[1:] in {slug(heading) for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    else:
        assert (DOCS / path).is_file()


@pytest.mark.parametrize(("name", "path"), sorted(set(NAMED)))
def test_a_named_function_or_test_is_in_the_file_that_the_link_leads_to(name: str, path: str) -> None:
    assert name in names_in(path)
    assert name.startswith("test_") == path.startswith("../tests/")


def test_equations_are_numbered_in_their_order() -> None:
    numbers = [int(number) for block in BLOCKS for number in re.findall(r"\\qquad \((\d+)\)$", block)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers[-1] >= max(int(number) for number in re.findall(r"\((\d{1,2})\)", PROSE)), "an equation is named that is not there"


def test_each_numbered_equation_has_a_box_with_code_and_a_test() -> None:
    count = len(re.findall(r"\\qquad \(\d+\)$", PAGE, re.MULTILINE))
    assert [number for numbers, _, _ in boxes() for number in numbers] == list(range(1, count + 1))
    for numbers, code, tests in boxes():
        assert re.search(r"\[`\w[\w.]*`\]\((\.\./darkroom|\.\./stages)/\S+\.py\)", code), f"{numbers} has no code"
        assert re.search(r"\[`test_\w+`\]\(\.\./tests/\S+\.py\)", tests), f"{numbers} has no test"


def test_a_box_stands_in_the_section_of_its_equations() -> None:
    for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE):
        equations = re.findall(r"\\qquad \((\d+)\)$", section, re.MULTILINE)
        titles = re.findall(r"^> \*\*([^*]+)\*\*", section, re.MULTILINE)
        assert equations == [number for title in titles for number in re.findall(r"\d+", title)], section.splitlines()[0]


def test_formulas_survive_markdown() -> None:
    """GitHub reads emphasis, escapes, links and lists before it reads formulas."""
    for formula in (*BLOCKS, *INLINE):
        assert not re.search(r"\\[^A-Za-z]", formula), f"a backslash before a sign is eaten, write \\lbrace, \\cr, \\quad: {formula}"
        assert not re.search(r"[^A-Za-z0-9]_", formula), f"an underscore after a sign may open emphasis: {formula}"
        assert not re.search(r"[*<>]|\]\(", formula), f"write \\ast, \\lt, \\gt, and no ](: {formula}"
        assert not re.search(r"^ *([-+>#]|\d+\.)( |$)", formula, re.MULTILINE), f"a line that begins like a list or a heading: {formula}"
        for opening, closing in ((r"\{", r"\}"), (r"\\left(?!arrow)", r"\\right(?!arrow)"), (r"\\begin", r"\\end")):
            assert len(re.findall(opening, formula)) == len(re.findall(closing, formula)), formula


def test_dollars_come_in_pairs() -> None:
    assert PAGE.count("$$") == 2 * len(BLOCKS)
    for line in PROSE.splitlines():
        assert line.count("$") % 2 == 0, line


def test_papers_that_are_cited_are_in_the_list_of_sources() -> None:
    text, _, sources = PAGE.partition("## Sources\n")
    cited = set(re.findall(r"([A-Z][\w-]+(?: & [A-Z]\w+| et\s+al\.)?) \(?((?:19|20)\d\d[ab]?)", text))
    assert {f"{' '.join(name.split())} {year}," for name, year in cited} <= set(
        re.findall(r"(?<=^- ).*?\d{4}[ab]?,", sources, re.MULTILINE)
    )
    assert sources.splitlines() == sorted(sources.splitlines(), key=str.lower)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_figures", DOCS / "draw_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_of_the_page_are_those_that_the_script_draws_and_are_small(script: ModuleType) -> None:
    assert sorted(FIGURES) == sorted(f"pictures/{name}.png" for name in script.FIGURES)
    assert {path.name for path in (DOCS / "pictures").glob("theory-*")} == {Path(figure).name for figure in FIGURES}
    for figure in FIGURES:
        assert (DOCS / figure).stat().st_size < 120_000


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (Path(figure).stem for figure in FIGURES)]
)
def test_the_script_still_draws(name: str, script: ModuleType, tmp_path: Path) -> None:
    path = script.save(name, tmp_path, dpi=30)
    with Image.open(path) as drawn, Image.open(DOCS / "pictures" / path.name) as stored:
        assert drawn.width / drawn.height == pytest.approx(stored.width / stored.height, rel=0.02)
        assert len(drawn.getcolors() or []) > 20
