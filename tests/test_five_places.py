"""One word per step: the DVC stage, the file in stages/, the section of params.yaml, the Prefect task, the page in docs/."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from darkroom.config import SECTIONS
from darkroom.params_file import read_yaml
from darkroom.source_code import code_identity, stage_names
from stages import register

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]  # the Prefect tasks are read from here too
WORDS = [word for word in STAGES if word != "code"]  # `code` watches the others: it has no parameters, no page and no data of its own


def test_the_files_in_stages_are_the_dvc_stages() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_a_dvc_stage_starts_its_file_and_reads_its_section(word: str) -> None:
    assert re.findall(r"stages\.(\w+)", STAGES[word]["cmd"]) == [word]
    assert STAGES[word]["params"] == [word]
    assert STAGES[word]["desc"]


@pytest.mark.parametrize("word", WORDS)
def test_a_file_in_stages_calls_itself_by_its_name_and_reads_and_writes_what_dvc_yaml_says(word: str) -> None:
    contract = importlib.import_module(f"stages.{word}").STAGE
    assert contract.name == word
    assert sorted(STAGES[word]["deps"]) == sorted(f"data/{item}" for item in (*contract.reads, f"code/{word}.json"))
    assert sorted(STAGES[word]["outs"]) == sorted(f"data/{item}" for item in (*contract.writes, f"runs/{word}.json"))


def test_register_reads_the_run_of_every_stage_before_it() -> None:
    assert [f"runs/{word}.json" for word in WORDS[:-1]] == [item for item in register.STAGE.reads if item.startswith("runs/")]


def test_the_code_of_every_stage_is_looked_at_each_time() -> None:
    assert STAGES["code"]["always_changed"] is True
    assert STAGES["code"]["outs"] == ["data/code"]
    assert "deps" not in STAGES["code"]
    assert stage_names() == sorted(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_the_module_that_starts_a_stage_is_part_of_its_code(word: str) -> None:
    [module] = re.findall(r"python -m (\S+)", STAGES[word]["cmd"])
    assert any(name.startswith(f"{module}:") for name in code_identity(word))


def test_dvc_yaml_can_be_read_at_a_glance() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 150


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
    assert f"(docs/{word}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
