"""The code identity of a stage: what it runs, without what only people read.

`python -m darkroom.source_code data/code` writes `data/code/<stage>.json` for every stage, and each stage of dvc.yaml depends on its
file. The file lists the definitions (functions, classes, constants) that the stage reaches by name, each with a hash of its syntax
tree. An edit of one of them re-runs the stage. These edits re-run nothing, because they are not in the tree that is hashed:

- comments, docstrings, type hints, and the text of user errors, assertions, log messages and descriptions, where it stands in the
  call itself (so the text of a user error must never become part of an output);
- the fields of parameter sections (`PARAMETERS`): their values stand in params.yaml, which DVC compares by itself, and a stage reaches
  no other section than its own;
- modules that only watch (`WATCHING`): they refuse parameters, record, show progress, draw previews or find a model (whose fingerprint is
  in the key of checkpoints and in the output), and shape no output.

The walk takes too much rather than too little: every name in a definition counts as a use of the global of that name.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import darkroom
from darkroom.ending import stoppable
from darkroom.provenance import hash_json, replacing, write_json

ROOT = Path(darkroom.__file__).resolve().parents[1]
PACKAGES = ("darkroom", "stages")
PARAMETERS, SECTIONS = ("darkroom.config", "darkroom.param_groups"), "SECTIONS"
WATCHING = (
    *(f"darkroom.{name}" for name in ("agreement", "ending", "open_model", "previews", "progress", "source_code", "tracking")),
    *(f"darkroom.tracking.{name}" for name in ("mlflow_tracker", "runs", "store", "tracker")),
)
CONTRACT = "STAGE"  # of the file of a stage: what its command runs
EVERYTHING = "*"  # instead of a name: the whole module
EFFECTS = "<module>"  # the statements of a module that do more than bind a name
TEMPLATES, TEMPLATE = "darkroom/templates", ".html.j2"  # folder and ending of the pages; a definition uses those that it names
TEXTS = ("description", "help", "desc", "unit", "prog")  # keyword arguments that people read
MESSAGES = ("ValueError", "Interrupted", "stoppable", "sys.exit")  # calls with the text of an error
LOGS = ("logger", "logging")  # calls of theirs are for people

Use = tuple[str, str]  # module, definition
STARTED_BY: dict[Use, Use] = {  # what dvc.yaml starts stages with that reach this
    ("darkroom.training.loop", "train"): ("darkroom.training.launch", "main"),
    ("darkroom.training.launch", "place"): ("darkroom.training.launch", "main"),
}


def code_identity(stage: str) -> dict[str, str]:
    """`module:definition` -> hash of its syntax tree, for everything of ours that the stage reaches."""
    found: dict[str, str] = {}
    seen: set[Use] = set()
    waiting = [(f"stages.{stage}", CONTRACT), *load_module(PARAMETERS[0]).section(stage)]
    while waiting:
        use = waiting.pop()
        if use in seen or use[0] in WATCHING:
            continue
        seen.add(use)
        if use[0] == TEMPLATES:
            found[":".join(use)] = template_hash(use[1])
            continue
        module = load_module(use[0])
        waiting += [*module.reached_from(use[1]), *((name, EFFECTS) for name in (use[0], *parents(use[0])))]
        waiting += [STARTED_BY[use]] if use in STARTED_BY else []
        found |= {f"{use[0]}:{name}": module.hash(name) for name in module.defined(use[1])}
    return dict(sorted(found.items()))


def template_hash(name: str) -> str:
    """Of a page's template and those that it names."""
    text = (ROOT / TEMPLATES / name).read_text(encoding="utf-8")
    return hash_json([text, *map(template_hash, re.findall(rf"[\w-]+{re.escape(TEMPLATE)}", text))])[:16]


def stage_names() -> list[str]:
    return sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")


class Module:
    """The top level of one of our modules: what its names are bound to, and what that uses."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.imports: dict[str, Use] = {}  # name -> where it comes from, for imports of ours
        self.bindings: dict[str, list[ast.stmt]] = {}  # name -> the statements that bind it, foreign imports among them
        self._hashes: dict[str, str] = {}
        self._uses: dict[str, list[Use]] = {}
        self._sections: dict[str, str] = {}  # of the parameters: stage -> class
        self._fields: dict[str, list[ast.expr]] = {}  # class of parameters -> the types of its fields
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name in PARAMETERS:
            self._set_parameters_apart(tree)
        for statement in Readable().visit(tree).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._import(statement)
            else:
                for bound in bound_names(statement):
                    self.bindings.setdefault(bound, []).append(statement)

    def _set_parameters_apart(self, tree: ast.Module) -> None:
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            self._fields[node.name] = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
            node.body = [item for item in node.body if not isinstance(item, ast.AnnAssign)]
        for table in (node for node in tree.body[:] if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == SECTIONS):
            assert isinstance(table.value, ast.Dict)
            tree.body.remove(table)
            self._sections = {
                ast.unparse(key): ast.unparse(value) for key, value in zip(table.value.keys, table.value.values, strict=True) if key
            }

    def section(self, stage: str) -> list[Use]:
        """The class of the parameters of a stage."""
        return [(self.name, self._sections[repr(stage)])]

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        for bound, source, alias in imported(statement):
            if source:
                self.imports[bound] = source
            else:
                self.bindings.setdefault(bound, []).append(alias)

    def defined(self, name: str) -> list[str]:
        return list(self.bindings) if name == EVERYTHING else [name] if name in self.bindings else []

    def hash(self, name: str) -> str:
        if name not in self._hashes:
            names = {node.id for statement in self.bindings[name] for node in ast.walk(statement) if isinstance(node, ast.Name)}
            sources = sorted((bound, *self.imports[bound]) for bound in names & self.imports.keys())
            self._hashes[name] = hash_json([[canonical(statement) for statement in self.bindings[name]], sources])[:16]
        return self._hashes[name]

    def reached_from(self, name: str) -> list[Use]:
        """What the definition uses; for an imported name, where it comes from."""
        sources = list(self.imports.values()) if name == EVERYTHING else [self.imports[name]] if name in self.imports else []
        return [*sources, *(use for bound in self.defined(name) for use in self._uses_of(bound))]

    def _uses_of(self, bound: str) -> list[Use]:
        if bound not in self._uses:
            in_code = [use for statement in self.bindings[bound] for use in self._used(statement)]
            in_fields = [use for field_type in self._fields.get(bound, []) for use in self._used(field_type)]
            groups = [use for use in in_fields if use[0] in PARAMETERS]  # groups of parameters, not choices
            self._uses[bound] = list(dict.fromkeys([*in_code, *groups]))
        return self._uses[bound]

    def _used(self, node: ast.AST) -> Iterator[Use]:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from (source for _, source, _ in imported(node) if source)
            case ast.Attribute(value=ast.Name(id=name)) if self.imports.get(name, ("", ""))[1] == EVERYTHING:
                inner = f"{self.imports[name][0]}.{node.attr}"
                yield (inner, EVERYTHING) if path_of(inner) else (self.imports[name][0], node.attr)
            case ast.Name(id=name):
                yield from [self.imports[name]] if name in self.imports else []
                yield from [(self.name, name)] if name in self.bindings else []
            case ast.Constant(value=str(text)) if text.endswith(".py") and path_of(f"{self.package}.{text[:-3]}"):
                yield f"{self.package}.{text[:-3]}", EVERYTHING  # a file beside this one, as MLflow takes models
            case ast.Constant(value=str(text)) if text.endswith(TEMPLATE):
                yield TEMPLATES, text
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from self._used(child)


@cache
def load_module(name: str) -> Module:
    path = path_of(name)
    assert path is not None, f"{name} is imported, and mypy has checked that it exists"
    return Module(name, path)


def path_of(name: str) -> Path | None:
    """The file of one of our modules; None for everything else."""
    if name.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def imported(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Use | None, ast.stmt]]:
    """Of each imported name: what it is called here, where it comes from if that is ours, and the import of it alone."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            is_ours = path_of(alias.name) is not None
            assert not is_ours or alias.asname or "." not in alias.name, f"write `from ... import ...` for {alias.name}: its uses are found"
            yield alias.asname or alias.name, (alias.name, EVERYTHING) if is_ours else None, ast.Import([alias])
        else:
            assert statement.module is not None, "imports are absolute"
            whole = f"{statement.module}.{alias.name}"
            source = (whole, EVERYTHING) if path_of(whole) else (statement.module, alias.name) if path_of(statement.module) else None
            yield alias.asname or alias.name, source, ast.ImportFrom(statement.module, [alias], 0)


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement binds, and EFFECTS if it may do more than that."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets) if all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
            return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        case ast.If() | ast.Try() | ast.With() | ast.For():
            inner = (node for node in ast.walk(statement) if isinstance(node, ast.stmt) and node is not statement)
            return {EFFECTS}.union(*(bound_names(node) for node in inner if not isinstance(node, ast.Import | ast.ImportFrom)))
    return {EFFECTS}


class Readable(ast.NodeTransformer):
    """Removes what only people read."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        """The order of fields without a default counts in a dataclass: their names stay. So does an `Annotated` type, which code reads."""
        self.generic_visit(node)
        extras: list[ast.expr] = []
        match node.annotation:
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=extras)):
                for call in (extra for extra in extras if isinstance(extra, ast.Call)):
                    call.args = [item for item in call.args if not is_text(item)]
        bound = ast.Assign([node.target], node.value) if node.value else ast.Expr(node.target)
        return [bound, *map(ast.Expr, extras)]

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        match node.value:
            case ast.Constant(value=str()):
                return None
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in LOGS:
                return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in MESSAGES:
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in TEXTS]
        if ast.unparse(node.func) in MESSAGES:
            node.args = [item for item in node.args if not (isinstance(item, ast.JoinedStr) or is_text(item))]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def canonical(node: Any) -> Any:
    """A syntax tree as JSON that does not depend on the version of Python: no positions, no empty fields."""
    if isinstance(node, ast.AST):
        fields = ((name, canonical(value)) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment"))
        return {"": type(node).__name__, **{name: value for name, value in fields if value not in (None, [])}}
    if isinstance(node, list):
        return [canonical(item) for item in node]
    return node if node is None else repr(node)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m darkroom.source_code", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for one JSON file per stage")
    out = parser.parse_args().out
    with stoppable("darkroom.source_code: interrupted. No incomplete folder was left."), replacing(out) as folder:
        folder.mkdir()
        for name in stage_names():
            write_json(folder / f"{name}.json", code_identity(name))


if __name__ == "__main__":
    main()
