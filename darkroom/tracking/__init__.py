"""The only package that uses MLflow: runs, images, models and the registry."""

from darkroom.tracking.runs import stage_run

__all__ = ["stage_run"]
