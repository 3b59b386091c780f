"""Reports of finished runs: one table of all measures, pictures, and how each run was made."""

from cssoftmax.report.figures import (
    LogitCurve,
    confusion,
    cosine_histogram,
    cosines,
    embedding_map,
    learning_curves,
    logit_curves,
)
from cssoftmax.report.markdown import class_table, measures_table, write_report
from cssoftmax.report.run import Run, RunError, load_run

__all__ = [
    "LogitCurve",
    "Run",
    "RunError",
    "class_table",
    "confusion",
    "cosine_histogram",
    "cosines",
    "embedding_map",
    "learning_curves",
    "load_run",
    "logit_curves",
    "measures_table",
    "write_report",
]
