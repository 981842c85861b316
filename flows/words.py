"""Parser of the output of DVC and the stages: verdicts, progress, and the error lines of a stage."""

import json
from collections.abc import Sequence
from typing import Any

PROGRESS = "::progress "
NOISE = ("ERROR: failed to reproduce", "Running stage ", "> ")
MAX_ERROR_LINES = 12


def verdict(name: str, line: str) -> str | None:
    """The name of the Prefect state that this line of DVC's output means for stage `name`."""
    if f"'{name}' didn't change, skipping" in line:
        return "Cached"
    if f"'{name}' is cached - skipping run" in line:
        return "Restored"
    return None


def progress(line: str) -> dict[str, Any] | None:
    """The fields of a line `::progress {"step": 120, "total": 600}`; None for any other line."""
    if not line.startswith(PROGRESS):
        return None
    try:
        fields = json.loads(line.removeprefix(PROGRESS))
    except json.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("step"), int) else None


def percent(fields: dict[str, Any]) -> float | None:
    """Progress from 0 to 100; None if the total is unknown."""
    total = fields.get("total")
    return min(100.0, 100.0 * fields["step"] / total) if total else None


def error(lines: Sequence[str]) -> str:
    """The error of a stage, from the last lines of `dvc repro`: the stage's own lines, or DVC's if the stage printed none."""
    own = [line for line in lines if not line.startswith(NOISE)]
    chosen = own or [line for line in lines if line.startswith("ERROR: ")]
    return "\n".join(chosen[-MAX_ERROR_LINES:])
