"""How a training ends before its last step: asked to, or for numbers that are no longer finite."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cssoftmax.checkpoint import Progress, TrainingError
from cssoftmax.recipes import Recipe

MOST_LEFT_OUT = 10
"""Steps with infinite or NaN numbers in them that a training leaves out before it gives up."""

logger = logging.getLogger(__name__)


class Diverged(TrainingError):
    """The loss or a weight is no longer finite."""


class Interrupted(Exception):
    """The user asked to stop; the checkpoint is written."""


def step_left_out(
    progress: Progress,
    recipe: Recipe,
    checkpoint: Path,
    batch: Tensor,
    embeddings: Tensor,
    rows: Tensor,
    *,
    warn: bool,
) -> None:
    """Warns of the step that ``progress`` counts as left out, with its cause; Diverged if it is one too many."""
    where, cause = _cause(batch, embeddings, rows)
    if progress.left_out > MOST_LEFT_OUT:
        what = f"{'data' if where == 'inputs' else 'lr'}: {progress.left_out} steps had {cause}"
        remedy = "repair or remove these samples" if where == "inputs" else _lower(recipe)
        raise Diverged(_stopped(what, remedy, progress, checkpoint))
    if warn:
        logger.warning("step %d left out: %s", progress.step + 1, cause)


def weights_not_finite(progress: Progress, recipe: Recipe, checkpoint: Path) -> Diverged:
    """Says so, with the remedy."""
    return Diverged(_stopped("lr: a weight became infinite or NaN", _lower(recipe), progress, checkpoint))


def _cause(batch: Tensor, embeddings: Tensor, rows: Tensor) -> tuple[str, str]:
    """Where a step's infinite or NaN numbers began, and that in words, with the training samples."""
    fine = {
        name: values.detach().flatten(1).isfinite().all(1).cpu()
        for name, values in (("inputs", batch), ("embeddings", embeddings))
    }
    where = next((name for name, rows_fine in fine.items() if not rows_fine.all()), "gradient")
    named = rows[~fine[where]].tolist() if where in fine else rows.tolist()
    shown = ", ".join(map(str, named[:8])) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    return where, f"infinite or NaN {where} of training samples {shown}"


def warn_of_a_rising_loss(progress: Progress, recipe: Recipe) -> None:
    """Where an epoch's mean loss is far over that of the first step."""
    loss = progress.loss_sum / max(progress.samples, 1)
    if loss > 3 * max(progress.first_loss, 1.0):
        logger.warning(
            "epoch %d: the loss rose from %.3g to %.3g; --lr %g is far too high, try a tenth of it",
            progress.epoch,
            progress.first_loss,
            loss,
            recipe.lr,
        )


def _lower(recipe: Recipe) -> str:
    return f"lower --lr from {recipe.lr:g}, or set --clip-norm"


def _stopped(what: str, remedy: str, progress: Progress, checkpoint: Path) -> str:
    kept = f"the checkpoint {checkpoint} is from before" if checkpoint.exists() else "no checkpoint was written yet"
    epoch = max(progress.step - 1, 0) // progress.steps_per_epoch + 1
    return f"{what}, at step {progress.step} of {progress.steps} (epoch {epoch}); {remedy}; {kept}"


class Stop:
    """Whether it was asked for."""

    requested = False


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second Ctrl-C is an ordinary one."""
    stop = Stop()
    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: object) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before.get(signal.SIGINT, signal.default_int_handler))

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread, where signals do not arrive
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
