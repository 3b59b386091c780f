"""Progress bars with the time left, and lines that stay."""

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cssoftmax import checkpoint, comparison
from cssoftmax.classifier import Classifier
from cssoftmax.cli import console
from cssoftmax.data import Dataset
from cssoftmax.recipes import Recipe
from cssoftmax.watcher import Watcher


class Display:
    """A progress bar with time left on a terminal; a line an epoch everywhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet = quiet or not console.is_main_process()
        self.watcher = Watcher(self.start, self.step, self.epoch, self.phase, self.work)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console.err,
            disable=quiet or not console.err.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, detail="")
        self.epochs = 0
        self.drawn = 0.0

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.bar.stop()

    def start(self, dataset: Dataset, recipe: Recipe, model: Classifier, epoch: int) -> None:
        self.epochs = recipe.epochs
        if not self.quiet:
            size = sum(parameter.numel() for parameter in model.parameters())
            console.err.print(
                f"{dataset.name}: {len(dataset.train.target)} training and {len(dataset.test.target)} evaluation "
                f"samples, {len(dataset.classes)} classes; {recipe.network}, {size:,} parameters; {model.loss}; "
                f"epochs {epoch + 1} to {recipe.epochs}",
                markup=False,
            )
            for lines, what, file in (
                (dataset.skipped, "samples left out", "skipped.txt"),
                (dataset.repeated, "evaluation samples that are in the training split, too", "repeated.txt"),
            ):
                if lines:
                    console.err.print(f"note: {what}: {len(lines)} ({file}), such as {lines[0]}", markup=False)

    def phase(self, name: str) -> None:
        """What a stretch of work without steps is called; a training goes on where it was."""
        if name == "training" or self.bar.tasks[0].description in ("", "training"):
            self.bar.update(self.task, description=name)
        else:
            self.bar.reset(self.task, description=name, total=None, detail="")
        self.bar.start()

    def work(self, done: int, total: int, text: str) -> None:
        self.bar.update(self.task, total=total, completed=done, detail=text)
        self.bar.start()

    def step(self, progress: checkpoint.Progress) -> None:
        now = time.monotonic()
        if self.bar.disable or (now - self.drawn < 0.1 and progress.step < progress.steps):
            return
        self.drawn = now
        loss = progress.loss_sum / max(progress.samples, 1)
        detail = f"{progress.step}/{progress.steps} steps  loss {loss:.4f}"
        self.bar.update(self.task, total=progress.steps, completed=progress.step, detail=detail, refresh=True)

    def epoch(self, metrics: dict[str, float]) -> None:
        if not self.quiet:
            console.err.print(
                f"epoch {metrics['epoch']:.0f}/{self.epochs}  train_loss {metrics['train_loss']:.4f}  "
                f"train_accuracy {metrics['train_accuracy']:.4f}  eval_loss {metrics['eval_loss']:.4f}  "
                f"eval_accuracy {metrics['eval_accuracy']:.4f}  seconds {metrics['seconds']:.1f}",
                markup=False,
            )


class ComparisonDisplay:
    """A progress bar over all trainings, with time left, on a terminal; a line a training everywhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.watcher = comparison.Watcher(self.start, self.progress, self.line)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total:.0f} trainings"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console.err,
            disable=quiet or not console.err.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.task = self.bar.add_task("comparing", total=None, visible=False)

    def __enter__(self) -> "ComparisonDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def start(self, description: str, trainings: int) -> None:
        self.line(f"{description}; {trainings} trainings")
        self.bar.update(self.task, total=trainings, visible=True)
        self.bar.start()

    def progress(self, trainings: float) -> None:
        self.bar.update(self.task, completed=trainings)

    def line(self, line: str) -> None:
        if not self.quiet:
            console.err.print(line, markup=False)
