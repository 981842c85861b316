"""params.yaml from the disk to checked sections, and what is wrong with it in a sentence."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from darkroom.config import SECTIONS, Section


def read_yaml(path: Path) -> dict[str, Any]:
    """YAML 1.2 by ruamel, DVC's own parser, so that both read `1e-4` as a number.

    Raises:
        ValueError: the file is missing, is not UTF-8, is not YAML or is not a mapping.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. Take one of presets/, e.g. `cp presets/photos-64-cpu.yaml {path}`.")
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should map stage names to their parameters; found {type(content).__name__}.")
    return content


def load_params(path: Path) -> dict[str, Section]:
    """Reads and checks every section, so that a slip in the last stage is found before the first one works.

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing key, a value out of range.
    """
    content = read_yaml(path)
    _refuse_unknown_keys(content, SECTIONS, path, prefix="")
    if missing := [name for name in SECTIONS if name not in content]:
        raise ValueError(f"{path}: section `{missing[0]}` is missing; see the one in presets/photos-64-cpu.yaml.")
    problems: list[str] = []
    sections: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = section.model_validate(content[name])
        except ValidationError as error:
            problems += [_sentence(item, prefix=name) for item in error.errors()]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return sections


def _refuse_unknown_keys(content: dict[str, Any], known: dict[str, Any], path: Path, prefix: str) -> None:
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(known)}."
            raise ValueError(f"{path}: `{prefix}{key}` is not a parameter; {hint}")
        inner = getattr(known[key], "annotation", known[key])
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Section):
            _refuse_unknown_keys(value, dict(inner.model_fields), path, prefix=f"{prefix}{key}.")


def _sentence(item: Any, prefix: str) -> str:
    where = ".".join([prefix, *(str(part) for part in item["loc"])])
    if item["type"] == "missing":
        return f"`{where}` is missing"
    if item["type"] == "value_error":
        return f"`{where}`: {item['ctx']['error']}"
    return f"`{where}` is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
