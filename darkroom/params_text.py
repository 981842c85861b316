"""The text of params.yaml and its JSON schema, generated from the fields of `darkroom.config`, and updates of a user's file.

An update changes only the lines that must change; the user's other values and comments stay.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from darkroom.config import SECTIONS
from darkroom.param_groups import Section
from darkroom.params_file import checked, defaults, inner_section, merged, parse_yaml, preset_path, read_params, read_preset
from darkroom.provenance import replacing

SCHEMA = "params.schema.json"
HEADER = f"""\
# yaml-language-server: $schema={SCHEMA}
# All parameters of a run, one section per stage. Made by `{{command}}`; edit it freely.
# A changed value re-runs the stages that read its section and the stages behind them. Unknown and missing keys are errors.
# The defaults are the toy: 32 px cartoon cats on two CPU cores. To set the values of a preset in presets/, or to add the
# parameters of a newer version of Darkroom: `darkroom params [PRESET] --update params.yaml`
"""
COMMENT_COLUMN = 32
PLAIN = re.compile(r"[A-Za-z_][\w./@+-]*(?: [\w./@+-]+)*")  # a text that needs no quotes, unless it is one of these words
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Entry:
    """A line of params.yaml."""

    keys: tuple[str, ...]  # from the section down
    value: Any  # plain data; None for a section or a group
    is_group: bool
    explanation: str

    @property
    def name(self) -> str:
        return ".".join(self.keys)

    def line(self, indent: int | None = None) -> str:
        """Its text; `indent` spaces stand before it, two per level unless told."""
        indent = 2 * len(self.keys) - 2 if indent is None else indent
        text = " " * indent + f"{self.keys[-1]}:" + ("" if self.is_group else f" {as_text(self.value)}")
        column = 0 if len(self.keys) == 1 else COMMENT_COLUMN
        return f"{text}{' ' * max(2, column - len(text))}# {self.explanation}"


def entries(changes: Mapping[str, Any]) -> Iterator[Entry]:
    """All lines of params.yaml in order: the defaults with `changes` (section -> keys)."""
    values = merged(defaults(), changes)
    for name, section in SECTIONS.items():
        yield Entry((name,), None, True, section.__doc__ or "")
        yield from _entries_of(section, values[name], (name,))


def params_text(changes: Mapping[str, Any], *, command: str) -> str:
    """The complete commented params.yaml.

    Args:
        changes: section -> keys that differ from the defaults.
        command: which made it, for the header.
    """
    lines = [("\n" if len(entry.keys) == 1 else "") + entry.line() for entry in entries(changes)]
    return "\n".join([HEADER.format(command=command).rstrip(), *lines]) + "\n"


def schema_text() -> str:
    """JSON schema of params.yaml, by which editors complete, explain and underline."""
    _, schema = models_json_schema([(section, "validation") for section in SECTIONS.values()], ref_template="#/$defs/{model}")
    for definition in schema["$defs"].values():
        definition["required"] = list(definition["properties"])  # params.yaml is complete
    top = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of Darkroom",
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/{section.__name__}"} for name, section in SECTIONS.items()},
        "required": list(SECTIONS),
        "additionalProperties": False,
    }
    return json.dumps(top | _without_titles(schema), indent=1, ensure_ascii=False) + "\n"


def as_text(value: Any) -> str:
    """A value as people write it in YAML 1.2: `1e-3`, `null`, `[32, 64]`, quotes only where they are needed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if (
        isinstance(value, float)
        and 0 < abs(value) < 0.01
        and re.fullmatch(r"-?\de-\d\d", short := f"{value:.0e}")
        and float(short) == value
    ):
        return short.replace("e-0", "e-")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else json.dumps(value, ensure_ascii=False)


def explanation(field: FieldInfo) -> str:
    """Description and choices of a parameter."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return f"{field.description}; one of: {', '.join(get_args(kind))}"
    if get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal:
        return f"{field.description}; any of: {', '.join(get_args(get_args(kind)[0]))}"
    return field.description or ""


def _entries_of(section: type[Section], values: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Entry]:
    """Of the class's own fields first, then those of its base, then those of the base's base."""
    fields, bases = section.model_fields, section.__mro__
    for key in sorted(fields, key=lambda key: max(depth for depth, base in enumerate(bases) if key in getattr(base, "model_fields", {}))):
        inner = inner_section(fields[key])
        yield Entry((*keys, key), None if inner else values[key], inner is not None, explanation(fields[key]))
        if inner:
            yield from _entries_of(inner, values[key], (*keys, key))


def _without_titles(schema: Any) -> Any:
    """Pydantic repeats each name as a title."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if isinstance(schema, dict):
        return {key: _without_titles(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    return schema


# ---- files of users

MADE_BY = re.compile(r"^(# .*Made by `darkroom params)([^`]*)", re.MULTILINE)


def update_file(path: Path, preset: str | None = None) -> list[str]:
    """Add the parameters that a params.yaml lacks, with default and comment, and set the values of a preset.

    Values of the preset that its header names, and that the new one does not set, become the defaults again. All other values of
    the file are its user's and stay.

    Returns:
        one line per change, and one per value of the file that differs from the preset's.

    Raises:
        ValueError: the file is missing or not YAML, has an unknown key, or would have a value out of range; it is left as it is.
    """
    text, content = _text_of(path)
    changes = {} if preset is None else merged(_left_behind(text, content), read_preset(preset))
    revision = Revision(text, content, changes, path)
    new = revision.result()
    if preset is not None:
        new = MADE_BY.sub(lambda found: f"{found[1]} {preset}", new, count=1)
    _rewrite(path, text, new)
    return [*revision.report, *([] if preset is None else revision.kept)]


def set_values(path: Path, changes: Mapping[str, Any]) -> list[str]:
    """Set values (section -> keys) in a params.yaml, and add the parameters that it lacks. Everything else stays.

    Returns:
        one line per change.

    Raises:
        ValueError: as `update_file`.
    """
    text, content = _text_of(path)
    revision = Revision(text, content, changes, path)
    _rewrite(path, text, revision.result())
    return revision.report


def _text_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a params.yaml, with an end of line, and its content."""
    content = read_params(path)
    text = path.read_text(encoding="utf-8")
    return text + ("" if text.endswith("\n") else "\n"), content


def _rewrite(path: Path, old: str, new: str) -> None:
    checked(parse_yaml(new, path), path)
    if new != old:
        with replacing(path) as tmp:
            tmp.write_text(new, encoding="utf-8")


def _left_behind(text: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the values that the preset in the header of the file has set."""
    found = MADE_BY.search(text)
    former = found[2].strip() if found else ""
    if not former or not preset_path(former).is_file():
        return {}
    return _defaults_where(read_preset(former), content, defaults())


def _defaults_where(former: Mapping[str, Any], content: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the keys at which the file still has the value of the former preset."""
    result: dict[str, Any] = {}
    for key, value in former.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            result[key] = _defaults_where(value, content[key], default[key])
        elif content.get(key) == value:
            result[key] = default[key]
    return result


@dataclass
class Revision:
    """The edits of one text, collected key by key in the order of the file that `darkroom params` writes."""

    text: str
    content: Mapping[str, Any]
    changes: Mapping[str, Any]
    path: Path
    edits: list[tuple[int, int, str]] = field(default_factory=list)  # replace text[start:end]
    report: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def result(self) -> str:
        root = YAML().compose(self.text)
        self._revise(root, self.content, self.changes, list(entries(self.changes)))
        parts, position = [], 0
        for start, end, new in sorted(self.edits, key=lambda edit: edit[0]):  # stable: added keys stay in order
            parts += [self.text[position:start], new]
            position = end
        return "".join([*parts, self.text[position:]])

    def _revise(self, mapping: Node, content: Mapping[str, Any], changes: Mapping[str, Any], below: list[Entry]) -> None:
        """One mapping of the file; `below` are the entries that belong into it, at any depth."""
        depth = len(below[0].keys)
        here = [entry for entry in below if len(entry.keys) == depth]
        if not isinstance(mapping, MappingNode):
            where = ".".join(here[0].keys[:-1])
            raise ValueError(f"{self.path}: `{where}` must map parameters to their values; found {content!r}.")
        nodes = {key.value: (key, value) for key, value in mapping.value}
        before: tuple[Node, Node] | None = None
        for entry in here:
            key, inner = entry.keys[-1], [other for other in below if other.keys[:depth] == entry.keys and other is not entry]
            if key not in nodes:
                self._add(mapping, before, [entry, *inner])
                continue
            before = nodes[key]
            if entry.is_group:
                self._revise(before[1], content[key], changes.get(key, {}), inner)
            elif content[key] != entry.value:
                self._differs(entry, before, content[key], is_set=key in changes)

    def _differs(self, entry: Entry, line: tuple[Node, Node], old: Any, *, is_set: bool) -> None:
        new = as_text(entry.value)
        if not is_set:
            self.kept.append(f"{entry.name}: {as_text(old)} kept; the preset has {new}")
            return
        self.report.append(f"{entry.name}: {as_text(old)} -> {new}")
        start, end = self._span(*line)
        new = " " + new
        if gap := re.match(r" +(?=#)", self.text[end:]):  # the comment stays in its column, or returns to it
            column = COMMENT_COLUMN if len(gap[0]) <= 2 else self._column(end) + len(gap[0])
            new += " " * max(2, column - self._column(start) - len(new))
            end += len(gap[0])
        self.edits.append((start, end, new))

    def _column(self, index: int) -> int:
        return index - self.text.rfind("\n", 0, index) - 1

    def _add(self, mapping: MappingNode, before: tuple[Node, Node] | None, added: list[Entry]) -> None:
        self.report += [f"{entry.name}: added, {as_text(entry.value)}" for entry in added if not entry.is_group]
        if mapping.flow_style:
            raise ValueError(
                f"{self.path}: `{added[0].name}` is missing, and cannot be added to a mapping in {{ }}. Write "
                f"`{'.'.join(added[0].keys[:-1])}` as one line per key."
            )
        first = mapping.value[0][0].start_mark  # of a key: a mapping of lines is never empty
        depth = len(added[0].keys)
        lines = [entry.line(first.column + 2 * (len(entry.keys) - depth)) + "\n" for entry in added]
        at = first.index - first.column if before is None else self.text.index("\n", self._span(*before)[1]) + 1
        self.edits.append((at, at, ("\n" if depth == 1 else "") + "".join(lines)))

    def _span(self, key: Node, value: Node) -> tuple[int, int]:
        """From behind the colon to the end of the value; a block ends with its last value, not with the comments behind it."""
        start = self.text.index(":", key.end_mark.index) + 1
        while isinstance(value, MappingNode | SequenceNode) and not value.flow_style and value.value:
            last = value.value[-1]
            if isinstance(last, tuple):
                return start, self._span(*last)[1]
            value = last
        is_empty = value.start_mark.index == value.end_mark.index  # its place is then that of the next value
        return start, start if is_empty else value.end_mark.index
