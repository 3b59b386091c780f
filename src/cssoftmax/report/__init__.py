"""Reports of finished runs: one table of all measures, pictures, and how each run was made."""

from cssoftmax.report.comparison import box_plot, conclusion, difference_table, summary_table, write_comparison
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
    "box_plot",
    "class_table",
    "conclusion",
    "confusion",
    "cosine_histogram",
    "cosines",
    "difference_table",
    "embedding_map",
    "learning_curves",
    "load_run",
    "logit_curves",
    "measures_table",
    "summary_table",
    "write_comparison",
    "write_report",
]
