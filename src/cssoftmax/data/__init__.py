"""Images and sounds in classes, as tensors."""

from cssoftmax.data.dataset import Dataset, Split, channel_statistics, load_dataset, validation_split
from cssoftmax.data.sources import DataError

__all__ = ["DataError", "Dataset", "Split", "channel_statistics", "load_dataset", "validation_split"]
