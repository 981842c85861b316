"""What a flow run leaves on its page in Prefect: the table of stages, the graph, the change of the metrics."""

import subprocess
import sys
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def publish(root: Path, table: list[dict[str, str]]) -> None:
    """Creates the artifacts `stages` (a table) and `report` (markdown) of the running flow."""
    create_table_artifact(key="stages", table=table, description="What each stage of dvc.yaml came to")
    create_markdown_artifact(key="report", markdown=markdown(root), description="The metrics, and the graph")


def markdown(root: Path) -> str:
    """The change of the metrics since the last commit (their values, where there is no git), and the graph as mermaid."""
    change = _dvc(root, "metrics", "diff", "--all", "--md")
    metrics = f"## Metrics since the last commit\n\n{change}" if change else f"## Metrics\n\n{_dvc(root, 'metrics', 'show', '--md')}"
    return f"{metrics}\n\n## Graph\n\n```mermaid\n{_dvc(root, 'dag', '--mermaid')}\n```\n"


def _dvc(root: Path, *arguments: str) -> str:
    """What the command prints, or nothing if DVC cannot do it here."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
