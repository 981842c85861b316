"""What a flow run leaves on its page in Prefect: the table of stages, the graph, the change of the metrics."""

import subprocess
import sys
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def publish(root: Path, table: list[dict[str, str]]) -> None:
    """Creates the artifacts `stages` (a table) and `report` (markdown) of the running flow."""
    create_table_artifact(key="stages", table=table, description="What each stage of dvc.yaml came to")
    create_markdown_artifact(key="report", markdown=markdown(root), description="The graph, and the metrics against the last commit")


def markdown(root: Path) -> str:
    """`dvc dag` as a mermaid drawing and `dvc metrics diff`; a section that DVC cannot give says why."""
    drawing = _dvc(root, "dag", "--mermaid")
    metrics = _dvc(root, "metrics", "diff", "--all", "--md")
    return f"## Graph\n\n```mermaid\n{drawing}\n```\n\n## Metrics since the last commit\n\n{metrics}\n"


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()
