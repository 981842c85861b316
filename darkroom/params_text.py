"""The text of params.yaml and its JSON schema, written from the fields of `darkroom.config`."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from darkroom.config import SECTIONS
from darkroom.param_groups import Section
from darkroom.params_file import defaults, inner_section, merged

SCHEMA = "params.schema.json"
HEADER = f"""\
# yaml-language-server: $schema={SCHEMA}
# All parameters of a run, one section per stage. Made by `{{command}}`; edit it freely.
# A changed value re-runs the stages that read its section, and what follows them. An unknown or missing key is refused.
# The defaults are the toy: 32 px cartoon cats on two CPU cores. To take the values of a preset in presets/, or to add the
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
    inherited = {key for base in section.__bases__ for key in getattr(base, "model_fields", {})}
    fields = section.model_fields
    for key in [*(key for key in fields if key not in inherited), *(key for key in fields if key in inherited)]:
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
