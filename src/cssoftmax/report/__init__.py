"""Reports of finished runs: one page with measures, plots, samples and how each run was made; and comparisons."""

from cssoftmax.report.comparison import (
    box_plot,
    conclusion,
    difference_table,
    group_table,
    summary_table,
    write_comparison,
)
from cssoftmax.report.markdown import measures_table
from cssoftmax.report.page import write_report
from cssoftmax.report.run import Run, RunError, load_run

__all__ = [
    "Run",
    "RunError",
    "box_plot",
    "conclusion",
    "difference_table",
    "group_table",
    "load_run",
    "measures_table",
    "summary_table",
    "write_comparison",
    "write_report",
]
