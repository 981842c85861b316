"""The plan of the house as a test: who imports whom, one door per tool, small files, imports without side effects."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("darkroom", "stages", "flows")
GROUND = (
    *("darkroom.choices", "darkroom.config", "darkroom.device", "darkroom.pages", "darkroom.param_groups", "darkroom.params_file"),
    *("darkroom.pixels", "darkroom.progress", "darkroom.provenance"),
)

# room -> what of ours it may import beside itself; the longest name that fits a module counts
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "darkroom": (),  # what stands in no room: the ground floor imports nothing of ours
    "darkroom.param_groups": ("darkroom.choices",),
    "darkroom.config": ("darkroom.choices", "darkroom.param_groups"),
    "darkroom.params_file": ("darkroom.config", "darkroom.param_groups"),
    "darkroom.params_text": ("darkroom.config", "darkroom.param_groups", "darkroom.params_file", "darkroom.provenance"),
    "darkroom.source_code": ("darkroom.provenance",),
    "darkroom.models": GROUND,
    "darkroom.diffusion": GROUND,
    "darkroom.data": GROUND,
    "darkroom.evaluation": (
        *GROUND,
        *("darkroom.models", "darkroom.diffusion", "darkroom.data"),
        *("darkroom.training.draws", "darkroom.training.losses"),  # noise and log-likelihoods are what training has them for
    ),
    "darkroom.demo": (*GROUND, "darkroom.evaluation"),
    "darkroom.tracking": GROUND,
    "darkroom.tracking.bundle": (*GROUND, "darkroom.tracking", "darkroom.sampling"),  # parts of a model, parameters of the served one
    "darkroom.tracking.served_model": ("darkroom.sampling", "darkroom.tracking"),
    "darkroom.training": (*GROUND, "darkroom.models", "darkroom.diffusion", "darkroom.data", "darkroom.tracking.tracker"),
    "darkroom.sampling": (*GROUND, "darkroom.models", "darkroom.diffusion"),
    "darkroom.open_model": ("darkroom.sampling", "darkroom.tracking.registry"),
    "darkroom.interchange": (*GROUND, "darkroom.models", "darkroom.diffusion", "darkroom.sampling"),
    "darkroom.previews": (*GROUND, "darkroom.models", "darkroom.diffusion", "darkroom.data", "darkroom.evaluation", "darkroom.sampling"),
    "darkroom.stage": (*GROUND, "darkroom.source_code", "darkroom.tracking"),
    "darkroom.cli": (
        *GROUND,
        *(
            "darkroom.open_model",
            "darkroom.sampling",
            "darkroom.interchange",
            "darkroom.tracking",
            "darkroom.data",
            "darkroom.evaluation",
            "darkroom.demo",
        ),
    ),
    "darkroom.cli.params": ("darkroom.params_file", "darkroom.params_text"),
    "stages": ("darkroom",),
    "flows": ("darkroom.config",),
}

# tool -> the modules that may import it
DOORS: dict[str, tuple[str, ...]] = {
    "mlflow": ("darkroom.tracking",),
    "prefect": ("flows",),
    "typer": ("darkroom.cli",),
    "dvc": ("flows.graph",),
    "webdataset": ("darkroom.data",),
    "open_clip": ("darkroom.models.clip",),
    "accelerate": ("darkroom.training", "stages"),
    "ruamel": ("darkroom.params_file", "darkroom.params_text"),
    "yaml": (),
    "peft": ("darkroom.models.lora",),
    "diffusers": (),  # a test oracle, not a dependency
    "transformers": (),  # likewise
}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


FILES = {name_of(path): path for path in files_of(*OURS)}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names that are imported anywhere in it, also inside functions, but for `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not is_type_checking(node):
            yield from imported(node)


def our_modules(tree: ast.AST) -> set[str]:
    """Modules of ours that it imports: `darkroom.config.Section` -> `darkroom.config`."""
    names = {name if name in FILES else name.rpartition(".")[0] for name in imported(tree) if name.split(".")[0] in OURS}
    assert names <= set(FILES), f"no such module: {names - set(FILES)}"
    return names


def room_of(name: str) -> str:
    return max((room for room in MAY_IMPORT if inside(name, room)), key=len)


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    room = room_of(name)
    own = name if room in ("darkroom", "stages") else room  # stages talk through files, not through imports
    others = our_modules(TREES[name]) - {"darkroom"}  # everybody may ask for the version
    strangers = {other for other in others if not any(inside(other, place) for place in (own, *MAY_IMPORT[room]))}
    assert not strangers, f"{name} (room {room}) may import of ours only {MAY_IMPORT[room]}"


@pytest.mark.parametrize("name", FILES)
def test_a_tool_is_imported_only_at_its_door(name: str) -> None:
    tools = {other.split(".")[0] for other in imported(TREES[name])} & set(DOORS)
    wrong = {tool for tool in tools if not any(inside(name, door) for door in DOORS[tool])}
    assert not wrong, f"{name} may not import them; look at DOORS"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            call = ast.unparse(node)
            assert not call.startswith(("pickle.load", "pickle.Unpickler", "joblib.load"))
            assert not call.startswith("torch.load") or "weights_only=True" in call
            assert "allow_pickle=True" not in call


@pytest.mark.parametrize("path", files_of(*OURS, "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small_and_have_a_noun_for_a_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    assert path.stem not in {"utils", "util", "common", "helpers", "misc", *DOORS}, "a helper lives with the noun it serves"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in ("__init__", "train"):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("package", OURS)
def test_a_package_has_nothing_but_a_docstring_and_a_version(package: str) -> None:
    for node in TREES[package].body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_version = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
        assert is_docstring or is_version


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def undeclared(folders: tuple[str, ...], *extras: str) -> set[str]:
    """Foreign packages that files of these folders import, and that pyproject.toml does not list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    declared = {normalised(re.split(r"[^\w.-]", line)[0]) for line in lines}
    roots = {name.split(".")[0] for path in files_of(*folders) for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    foreign = roots - set(sys.stdlib_module_names) - {*OURS, "tests", "benchmarks", "docs"}
    providers = packages_distributions()
    return {root for root in foreign if declared.isdisjoint(normalised(name) for name in providers[root])}


def test_what_is_imported_is_declared() -> None:
    assert not undeclared(OURS)
    assert not undeclared(("tests", "benchmarks"), "dev")


IMPORT_ALL = """
import importlib, json, logging, random, sys
import numpy, torch
before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()
assert before == after, "a seed was set or a number drawn"
assert not logging.getLogger().handlers, "logging was configured"
assert not torch.cuda.is_initialized(), "a device was touched"
open("modules.json", "w").write(json.dumps(sorted(sys.modules)))
"""
IMPORT_FLOWS = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
open("modules.json", "w").write(json.dumps(sorted(sys.modules)))
"""


def modules_after(script: str, names: list[str], folder: Path) -> set[str]:
    """Runs it in a process of its own, which must print nothing; the roots of what was imported by then."""
    ended = subprocess.run([sys.executable, "-c", script, *names], cwd=folder, env=None, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    return set(json.loads((folder / "modules.json").read_text()))


def test_importing_the_library_prints_nothing_and_sets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names = [name for name in FILES if not inside(name, "flows") and name != "darkroom.tracking.served_model"]  # MLflow imports that one
    assert not modules_after(IMPORT_ALL, names, tmp_path) & {"mlflow", "prefect", "dvc", "diffusers"}


def test_importing_the_flows_prints_nothing_and_loads_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names = [name for name in FILES if inside(name, "flows")]
    assert not modules_after(IMPORT_FLOWS, names, tmp_path) & {"torch", "mlflow", "stages", "darkroom.models"}
