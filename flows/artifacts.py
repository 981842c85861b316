"""The Prefect artifacts of a flow run: progress bars, table of stages, graph, change of the metrics."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact, create_markdown_artifact, create_table_artifact

from flows import words


class ProgressBar:
    """The `::progress` lines of one stage as a progress artifact."""

    def __init__(self, name: str) -> None:
        self._key = "progress-" + "".join(character if character.isalnum() else "-" for character in name.lower())
        self._id: UUID | None = None

    async def show(self, fields: dict[str, Any]) -> None:
        percent = words.percent(fields)
        if percent is None:
            return
        description = str(fields.get("desc", ""))
        if self._id is None:
            self._id = await acreate_progress_artifact(percent, key=self._key, description=description)
        else:
            await aupdate_progress_artifact(self._id, percent, description=description)


def publish(root: Path, table: list[dict[str, str]]) -> None:
    """Create the artifacts `stages` (a table) and `report` (markdown) of the running flow."""
    create_table_artifact(key="stages", table=table, description="State of each stage")
    create_markdown_artifact(key="report", markdown=markdown(root), description="The evaluation, the change of the metrics, and the graph")


def markdown(root: Path) -> str:
    """The texts of the reports below data/, the change of the metrics since the last commit (outside git: their values), and the graph.

    A report.md is written by the stage that measures; its pictures stay in the report.html beside it.
    """
    told = [f"{path.read_text(encoding='utf-8')}\nThe folder: `{path.parent}`\n\n" for path in sorted((root / "data").glob("*/report.md"))]
    change = _dvc(root, "metrics", "diff", "--all", "--md")
    metrics = f"## Metrics since the last commit\n\n{change}" if change else f"## Metrics\n\n{_dvc(root, 'metrics', 'show', '--md')}"
    return f"{''.join(told)}{metrics}\n\n## Graph\n\n```mermaid\n{_dvc(root, 'dag', '--mermaid')}\n```\n"


def _dvc(root: Path, *arguments: str) -> str:
    """The output of a DVC command; empty if it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
