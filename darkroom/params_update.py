"""An existing params.yaml brought up to date: only what changes is touched, so that its user's values and comments survive."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from darkroom.params_file import checked, parse_yaml, read_yaml, refuse_unknown_keys
from darkroom.params_text import Entry, as_text, entries
from darkroom.provenance import replacing

MADE_BY = re.compile(r"^(# .*Made by `)darkroom params[^`]*", re.MULTILINE)


def update_file(path: Path, changes: Mapping[str, Any], *, command: str) -> list[str]:
    """Add the parameters that the file lacks, with default and comment, and set `changes`.

    Args:
        path: a params.yaml.
        changes: section -> keys that a preset sets; everything else keeps its value.
        command: what the header names as the origin of the file, if there are changes.

    Returns:
        one line per change, and one per value of the file that differs from the preset's.

    Raises:
        ValueError: the file is missing or not YAML, has an unknown key, or would have a value out of range; it is left as it is.
    """
    content = read_yaml(path)
    refuse_unknown_keys(content, path)
    text = path.read_text(encoding="utf-8")
    text += "" if text.endswith("\n") else "\n"
    revision = Revision(text, content, changes, path)
    new = revision.result()
    if changes:
        new = MADE_BY.sub(lambda found: found[1] + command, new, count=1)
    checked(parse_yaml(new, path), path)
    if new != text:
        with replacing(path) as tmp:
            tmp.write_text(new, encoding="utf-8")
    return [*revision.report, *(revision.kept if changes else [])]


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
        before: Node | None = None
        for entry in here:
            key, inner = entry.keys[-1], [other for other in below if other.keys[:depth] == entry.keys and other is not entry]
            if key not in nodes:
                self._add(mapping, before, [entry, *inner])
                continue
            before = nodes[key][1]
            if entry.is_group:
                self._revise(before, content[key], changes.get(key, {}), inner)
            elif content[key] != entry.value:
                self._differs(entry, before, content[key], is_set=key in changes)

    def _differs(self, entry: Entry, node: Node, old: Any, *, is_set: bool) -> None:
        new = as_text(entry.value)
        if not is_set:
            self.kept.append(f"{entry.name}: {as_text(old)} kept; the preset has {new}")
            return
        self.report.append(f"{entry.name}: {as_text(old)} -> {new}")
        start, end = node.start_mark.index, _end(node)
        if isinstance(node, SequenceNode) and not node.flow_style:  # its lines become one
            start = self.text.rindex(":", 0, start) + 1
        if self.text[start - 1] == ":":  # so too where nothing stands for null
            new = " " + new
        gap = re.match(r" +(?=#)", self.text[end:])
        if gap:  # the comment stays in its column
            new += " " * max(2, end - start + len(gap[0]) - len(new))
            end += len(gap[0])
        self.edits.append((start, end, new))

    def _add(self, mapping: MappingNode, before: Node | None, added: list[Entry]) -> None:
        self.report += [f"{entry.name}: added, {as_text(entry.value)}" for entry in added if not entry.is_group]
        if mapping.flow_style:
            raise ValueError(
                f"{self.path}: `{added[0].name}` is missing, and cannot be added to a mapping in {{ }}. Write "
                f"`{'.'.join(added[0].keys[:-1])}` as one line per key."
            )
        first = mapping.value[0][0].start_mark  # of a key: a mapping of lines is never empty
        depth = len(added[0].keys)
        lines = [entry.line(first.column + 2 * (len(entry.keys) - depth)) + "\n" for entry in added]
        at = first.index - first.column if before is None else self.text.index("\n", _end(before)) + 1
        self.edits.append((at, at, ("\n" if depth == 1 else "") + "".join(lines)))


def _end(node: Node) -> int:
    """Where the value ends; a block ends with its last value, not with the comments behind it."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)
