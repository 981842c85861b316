"""One word per step: the DVC stage, the file in stages/, the section of params.yaml, the Prefect task, the page in docs/."""

import ast
import re
from pathlib import Path

import pytest

from darkroom.config import SECTIONS
from darkroom.params_file import read_yaml

ROOT = Path(__file__).parents[1]
WORDS = list(read_yaml(ROOT / "dvc.yaml")["stages"])  # the Prefect tasks are read from here too


def test_the_files_in_stages_are_the_dvc_stages() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_a_dvc_stage_starts_its_file_and_reads_its_section(word: str) -> None:
    stage = read_yaml(ROOT / "dvc.yaml")["stages"][word]
    assert re.findall(r"stages\.(\w+)", stage["cmd"]) == [word]
    assert stage["params"] == [word]
    assert f"stages/{word}.py" in stage["deps"]
    assert f"data/runs/{word}.json" in stage["outs"]
    assert stage["desc"]


@pytest.mark.parametrize("word", WORDS)
def test_a_file_in_stages_calls_itself_by_its_name(word: str) -> None:
    text = (ROOT / "stages" / f"{word}.py").read_text(encoding="utf-8")
    assert re.findall(r'^    main\(\s*"(\w+)", run,', text, re.MULTILINE) == [word]


def test_the_sections_of_the_parameters_are_the_stages_in_their_order() -> None:
    assert list(read_yaml(ROOT / "params.yaml")) == WORDS == list(SECTIONS)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sections_of_a_preset_are_stages_in_their_order(preset: Path) -> None:
    sections = list(read_yaml(preset))
    assert sections == [word for word in WORDS if word in sections]


def test_no_flow_names_a_stage() -> None:
    for path in sorted((ROOT / "flows").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        named = [word for word in WORDS if any(re.search(rf"\b{word}\b", text) for text in texts)]
        assert not named, f"{path.name}: the graph is read from dvc.yaml"


@pytest.mark.parametrize("word", WORDS)
def test_a_stage_has_a_page_that_the_contents_list(word: str) -> None:
    page = (ROOT / "docs" / f"{word}.md").read_text(encoding="utf-8")
    assert re.match(rf"# {word}\b", page)
    assert f"({word}.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
