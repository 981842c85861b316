"""Reads and checks params.yaml and presets. An error names the wrong key and the solution."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from darkroom.agreement import disagreements
from darkroom.config import SECTIONS
from darkroom.param_groups import Section

PRESETS = Path("presets")


def read_yaml(path: Path) -> dict[str, Any]:
    """YAML 1.2 by ruamel, DVC's own parser, so that both read `1e-4` as a number.

    Raises:
        ValueError: the file is missing, is not UTF-8, is not YAML or is not a mapping.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """
    Args:
        path: the file that errors name.

    Raises:
        ValueError: the text is not YAML or is not a mapping.
    """
    try:
        content = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map stage names to their parameters; found {type(content).__name__}.")
    return content


def load_params(path: Path) -> dict[str, Section]:
    """Read and check every section, so that a mistake in the last stage is found before the first one starts.

    Every key must be in the file: DVC tracks the values that stand there, and a default that changes in a new version must not
    change a run.

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing key, a value out of range.
    """
    content = read_params(path)
    if missing := list(_missing_keys(content, SECTIONS)):
        names = ", ".join(f"`{name}`" if "." in name else f"section `{name}`" for name in missing)
        if path.parent.name == PRESETS.name:
            raise ValueError(f"{path} is a preset and only says what differs from the defaults: `darkroom params {path} > params.yaml`.")
        raise ValueError(f"{path}: {names} {'is' if len(missing) == 1 else 'are'} missing. Run `darkroom params --update {path}`.")
    return checked(content, path)


def read_params(path: Path) -> dict[str, Any]:
    """The content of a params.yaml that has no unknown key, but may lack some.

    Raises:
        ValueError: the file is missing or not YAML, or has an unknown key (with the nearest known one).
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. Make it: `darkroom params > {path}`, or `darkroom params PRESET > {path}`.")
    content = read_yaml(path)
    _refuse_unknown_keys(content, path)
    return content


def preset_path(preset: str) -> Path:
    """The file of a preset: a name in the folder presets/, or the path itself."""
    return Path(preset) if preset.endswith(".yaml") else PRESETS / f"{preset}.yaml"


def read_preset(preset: str) -> dict[str, Any]:
    """What a preset changes of the defaults: section -> keys.

    Raises:
        ValueError: the preset is not found, or has an unknown key or a value out of range.
    """
    path = preset_path(preset)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml"))) or f"none: {PRESETS.absolute()} is empty or missing"
        raise ValueError(f"Preset {path} not found; presets here: {known}.")
    content = read_yaml(path)
    _refuse_unknown_keys(content, path)
    checked(merged(defaults(), content), path)
    return content


def defaults() -> dict[str, Any]:
    """Section -> keys -> values, as plain data."""
    return {name: section().model_dump() for name, section in SECTIONS.items()}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` at any depth."""
    result = dict(values)
    for key, change in changes.items():
        inner = isinstance(change, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], change) if inner else change
    return result


def checked(content: Mapping[str, Any], path: Path) -> dict[str, Section]:
    """
    Raises:
        ValueError: values out of range, or that do not agree with each other; all of them in one message.
    """
    problems: list[str] = []
    sections: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = section.model_validate(content[name])
        except ValidationError as error:
            problems += [_sentence(item, prefix=name) for item in error.errors()]
    if problems := problems or disagreements(sections):
        raise ValueError(f"{path}: {'; '.join(problems)}.")
    return sections


def inner_section(known: Any) -> type[Section] | None:
    """The class of a section, or of a field that is a group of parameters; None for one parameter."""
    kind = getattr(known, "annotation", known)
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _refuse_unknown_keys(content: Mapping[str, Any], path: Path, known: Mapping[str, Any] = SECTIONS, prefix: str = "") -> None:
    """
    Raises:
        ValueError: an unknown key (with the nearest known one).
    """
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(known)}."
            raise ValueError(f"{path}: `{prefix}{key}` is not a {'parameter' if prefix else 'section'}; {hint}{_elsewhere(key, prefix)}")
        if isinstance(value, Mapping) and (inner := inner_section(known[key])):
            _refuse_unknown_keys(value, path, inner.model_fields, prefix=f"{prefix}{key}.")


def _elsewhere(key: str, prefix: str) -> str:
    """Where a parameter belongs that stands in the wrong section, or in none."""
    places = [name for name, section in SECTIONS.items() if f"{name}." != prefix and key in section.model_fields]
    return f" `{key}` is a parameter of {' and '.join(places)}." if places else ""


def _missing_keys(content: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> list[str]:
    missing: list[str] = []
    for key, field in known.items():
        if key not in content:
            missing.append(f"{prefix}{key}")
        elif isinstance(content[key], Mapping) and (inner := inner_section(field)):
            missing += _missing_keys(content[key], inner.model_fields, prefix=f"{prefix}{key}.")
    return missing


def _sentence(item: Any, prefix: str) -> str:
    where = ".".join([prefix, *(str(part) for part in item["loc"])])
    if item["type"] == "value_error":
        return f"`{where}`: {item['ctx']['error']}"
    message = item["msg"].replace("Input should", "it must").replace("should", "must")
    return f"`{where}` is {item['input']!r}: {message[0].lower()}{message[1:]}"
