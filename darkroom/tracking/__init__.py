"""The one door to MLflow: runs, pictures, models and the registry."""

from darkroom.tracking.runs import stage_run

__all__ = ["stage_run"]
