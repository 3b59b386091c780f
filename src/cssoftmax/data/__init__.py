"""Images and sounds in classes, as tensors."""

from cssoftmax.data.image import Pixels
from cssoftmax.data.load import load_dataset
from cssoftmax.data.prepare import Preprocessing, prepare, preprocessing_of
from cssoftmax.data.preview import pictures, recordings
from cssoftmax.data.shards import Streamed
from cssoftmax.data.sound import LogMel
from cssoftmax.data.split import (
    Dataset,
    Split,
    blends,
    channel_statistics,
    hold_out_classes,
    validation_group,
    validation_split,
)
from cssoftmax.data.stream import Item, Stream, open_stream
from cssoftmax.data.table import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Item",
    "LogMel",
    "Pixels",
    "Preprocessing",
    "Split",
    "Stream",
    "Streamed",
    "blends",
    "channel_statistics",
    "hold_out_classes",
    "load_dataset",
    "open_stream",
    "pictures",
    "prepare",
    "preprocessing_of",
    "recordings",
    "validation_group",
    "validation_split",
]
