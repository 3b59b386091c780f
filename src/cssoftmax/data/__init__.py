"""Images and sounds in classes, as tensors."""

from cssoftmax.data.dataset import (
    Dataset,
    Split,
    channel_statistics,
    hold_out_classes,
    load_dataset,
    validation_group,
    validation_split,
)
from cssoftmax.data.preview import pictures, recordings
from cssoftmax.data.sources import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Split",
    "channel_statistics",
    "hold_out_classes",
    "load_dataset",
    "pictures",
    "recordings",
    "validation_group",
    "validation_split",
]
