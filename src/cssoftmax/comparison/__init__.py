"""Compare losses under one protocol: same data, network, first weights, batches and budget; only the loss differs."""

from cssoftmax.comparison.compare import Watcher, compare
from cssoftmax.comparison.pool import ComparisonError
from cssoftmax.comparison.protocol import Protocol

__all__ = ["ComparisonError", "Protocol", "Watcher", "compare"]
