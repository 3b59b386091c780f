"""What a person sees of a job while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from cssoftmax.checkpoint import Progress
from cssoftmax.classifier import Classifier
from cssoftmax.data import Dataset
from cssoftmax.recipes import Recipe


@dataclass(frozen=True)
class Watcher:
    """Called with what is about to be trained, each step, each epoch, each phase, and how much of a phase is done, of
    how much. Without ``measured_epochs`` the test split is measured after the last epoch alone."""

    on_start: Callable[[Dataset, Recipe, Classifier, int], None] = lambda dataset, recipe, model, epoch: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None
    on_phase: Callable[[str], None] = lambda phase: None
    on_work: Callable[[int, int, str], None] = lambda done, total, what: None
    measured_epochs: bool = True
