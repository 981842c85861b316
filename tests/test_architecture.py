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
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def code_names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", text))


def table(heading: str) -> dict[str, str]:
    """The rows of the table of CONTRIBUTING.md with this first row: each name of the first column -> the second column."""
    rows = CONTRIBUTING.split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {name: permission for names, permission in cells for name in code_names(names)}


GROUND = code_names(CONTRIBUTING.split("The ground floor is ")[1].split(".\n")[0])
MAY_IMPORT = {  # room -> what of ours it may import beside itself; the longest name that fits a module counts
    room: (*code_names(allowed), *(GROUND if "the ground floor" in allowed else ())) for room, allowed in table("room").items()
}
DOORS = {tool: code_names(allowed) for tool, allowed in table("tool").items()}  # tool -> the modules that may import it

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


@pytest.mark.parametrize("option", ["guidance_scale", "guidance_rescale", "guidance_interval", "clip_guidance_scale", "negative_prompt"])
def test_a_drawing_option_stands_in_few_places(option: str) -> None:
    """Beside the room of exchange, where diffusers has names of its own."""
    files = [path for name, path in FILES.items() if not inside(name, "darkroom.interchange")]
    assert len([path for path in files if re.search(rf"\b{option}\b", path.read_text(encoding="utf-8"))]) <= 4


def closure(names: set[str]) -> set[str]:
    """These modules and all of ours that they import, directly or not."""
    found: set[str] = set()
    while names:
        found |= names
        names = set().union(*(our_modules(TREES[name]) for name in names)) - found
    return found


def listed(block: str) -> dict[str, list[str]]:
    """The entries of the tree in CONTRIBUTING.md: those of the project under "", those of an indented part under its name."""
    found: dict[str, list[str]] = {"": []}
    for line in block.splitlines():
        parent = found[""][-1].rstrip("/") if line.startswith("  ") else ""
        found.setdefault(parent, []).append(line.split()[0])
    return found


def entries(folder: Path) -> set[str]:
    """What git tracks in a folder, folders with a slash; not what begins with a dot or an underscore."""
    tracked = subprocess.run(["git", "ls-files", "--", "."], cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    tops = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked}
    return {name for name in tops if not name.startswith((".", "_"))}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_tree_of_the_house_is_the_one_in_contributing() -> None:
    tree = listed(CONTRIBUTING.split("### The tree")[1].split("```")[1].strip("\n"))
    assert set(tree[""]) == entries(ROOT)
    assert set(tree["darkroom"]) == entries(ROOT / "darkroom")


def test_every_room_has_a_row_in_the_map() -> None:
    rooms = {name for name, path in FILES.items() if path.name == "__init__.py" and name.count(".") == 1}
    assert rooms <= set(MAY_IMPORT)
    assert {name for name in (*MAY_IMPORT, *GROUND) if name not in FILES} == set()


def test_the_house_stays_small() -> None:
    """The counts that keep it readable: raise one only with a reason that is worth it."""
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES.values()}
    library = {path: number for path, number in lines.items() if ROOT / "darkroom" in path.parents}
    # 110, one each for the ways in which an evaluation is not fooled and a run is checked before it begins, for each kind of autoencoder,
    # for finding the subject of a photo, for its further crops, and for the hub
    assert len(library) <= 134
    assert sum(number < 60 for number in library.values()) <= 40
    assert sum(number for path, number in library.items() if path.parent.name == "sampling") <= 620
    assert max(number for path, number in lines.items() if path.parent == ROOT / "stages") <= 110


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
def test_a_package_has_nothing_but_a_docstring_a_version_and_how_its_commands_end(package: str) -> None:
    *others, imported_sys, ending = TREES[package].body
    assert ast.unparse(imported_sys) == "import sys"
    assert isinstance(ending, ast.If)
    assert ast.unparse(ending.test).startswith("sys.argv[0] == '-m'")
    assert [ast.unparse(node) for node in ending.body] == ["from darkroom.ending import end_in_one_line", "end_in_one_line()"]
    for node in others:
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
