"""What a head costs: time and memory of forward and backward, beside plain softmax and other libraries."""

from cssoftmax.bench.heads import BASELINE, Head, Shape, heads, problem
from cssoftmax.bench.measure import Measurement, matmul_rate, memory
from cssoftmax.bench.run_heads import head, read
from cssoftmax.bench.run_step import Step, step, step_table
from cssoftmax.bench.show import markdown, plot, table

__all__ = [
    "BASELINE",
    "Head",
    "Measurement",
    "Shape",
    "Step",
    "head",
    "heads",
    "markdown",
    "matmul_rate",
    "memory",
    "plot",
    "problem",
    "read",
    "step",
    "step_table",
    "table",
]
