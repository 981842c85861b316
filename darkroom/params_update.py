"""An existing params.yaml brought up to date: only what changes is touched, so that its user's values and comments survive."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from darkroom.params_file import checked, defaults, merged, parse_yaml, preset_path, read_params, read_preset
from darkroom.params_text import COMMENT_COLUMN, Entry, as_text, entries
from darkroom.provenance import replacing

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
    content = read_params(path)
    text = path.read_text(encoding="utf-8")
    text += "" if text.endswith("\n") else "\n"
    changes = {} if preset is None else merged(_left_behind(text, content), read_preset(preset))
    revision = Revision(text, content, changes, path)
    new = revision.result()
    if preset is not None:
        new = MADE_BY.sub(lambda found: f"{found[1]} {preset}", new, count=1)
    checked(parse_yaml(new, path), path)
    if new != text:
        with replacing(path) as tmp:
            tmp.write_text(new, encoding="utf-8")
    return [*revision.report, *([] if preset is None else revision.kept)]


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
