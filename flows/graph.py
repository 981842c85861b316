"""The task graph, read from dvc.yaml through DVC itself: the one place that uses DVC's Python API."""

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from pydantic import Field, ValidationError

from darkroom.config import Section


class Policy(Section):
    """How Prefect runs a stage: `meta: {prefect: {...}}` in dvc.yaml. Editing it re-runs nothing."""

    retries: int = Field(default=0, ge=0)
    retry_delay: int = Field(default=10, ge=0)  # seconds
    timeout: int = Field(default=86400, gt=0)  # seconds; then the stage is interrupted, and retried if `retries` allows
    grace: int = Field(default=120, gt=0)  # seconds for an interrupted stage to write its checkpoint
    tags: list[str] = Field(default_factory=list)  # of the Prefect task; its concurrency limits use them


@dataclass(frozen=True)
class Node:
    """A stage, or a tracked data source (a .dvc file), which DVC checks before the stages that read it."""

    name: str  # as DVC addresses it: STAGE, STAGE@ITEM of a matrix, FILE.dvc
    description: str
    policy: Policy
    needs: tuple[str, ...]  # names of the nodes whose outputs this one reads
    is_source: bool


def load(root: Path, targets: Sequence[str] = ()) -> list[Node]:
    """The nodes of `targets` (default: all) and those that they need, each after the nodes that it needs.

    A target is the name of a stage, of a .dvc file, or of a whole matrix.

    Raises:
        ValueError: `root` is not a DVC project, dvc.yaml or a policy is invalid, or a target is unknown.
    """
    try:
        with contextlib.chdir(root), Repo(str(root)) as repo:  # names are relative to the current folder, whatever the root
            edges = repo.index.graph  # from consumer to producer
            stages = {stage.addressing: stage for stage in sorted(edges, key=lambda stage: stage.addressing)}
            needs = {name: tuple(sorted(producer.addressing for producer in edges.successors(stage))) for name, stage in stages.items()}
    except DvcException as error:
        raise ValueError(f"DVC cannot read the project in {root}: {' '.join(str(error).split())}") from error
    wanted = _with_needs([name for target in targets for name in _resolve(target, stages)], needs) if targets else set(stages)
    return [_node(name, stages[name], needs[name]) for name in TopologicalSorter(needs).static_order() if name in wanted]


def _resolve(target: str, stages: dict[str, Any]) -> list[str]:
    found = [name for name in stages if target in (name, name.split("@")[0])]
    if not found:
        near = difflib.get_close_matches(target, stages, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known stages: {', '.join(stages)}."
        raise ValueError(f"{target!r} is not a stage of dvc.yaml; {hint}")
    return found


def _with_needs(names: Sequence[str], needs: dict[str, tuple[str, ...]]) -> set[str]:
    return set(names).union(*(_with_needs(needs[name], needs) for name in names))


def _node(name: str, stage: Any, needs: tuple[str, ...]) -> Node:
    try:
        policy = Policy.model_validate((stage.meta or {}).get("prefect", {}))
    except ValidationError as error:
        problems = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors())
        where = f"meta.prefect of stage `{name}` in {Path(stage.path).name}"
        raise ValueError(f"{where}: {problems}. Known keys: {', '.join(Policy.model_fields)}.") from error
    return Node(name, stage.desc or "", policy, needs, bool(stage.is_data_source))
