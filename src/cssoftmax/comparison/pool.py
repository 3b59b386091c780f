"""Trainings one by one in this process, or side by side in several; either way with a word on how far they are."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from cssoftmax.checkpoint import Progress, TrainingError
from cssoftmax.comparison.trainings import Line, Setup, Task, perform

Record = Callable[[Task, Line], list[Task]]


class ComparisonError(ValueError):
    """A comparison cannot be made, or not go on; one line that says why and the remedy."""


def perform_all(
    setup: Setup, tasks: list[Task], record: Record, *, processes: int, on_progress: Callable[[float], None]
) -> None:
    """Performs the tasks, in their order, and those that follow from what they bring.

    Args:
        setup: of all of them.
        tasks: the first ones.
        record: called in this process with each finished task and its line; returns the tasks that it makes possible.
        processes: trainings at a time; they share the threads of this process.
        on_progress: called with the number of trainings done, in fractions, several times a second.

    Raises:
        ComparisonError: a training failed, or its process was killed.
        cssoftmax.training.Interrupted, KeyboardInterrupt: asked to stop; what was trained is saved.
    """
    work = _one_by_one if processes == 1 else _side_by_side
    work(setup, deque(tasks), record, processes, on_progress)


def _one_by_one(
    setup: Setup, waiting: deque[Task], record: Record, processes: int, on_progress: Callable[[float], None]
) -> None:
    done = 0

    def on_step(progress: Progress) -> None:
        on_progress(done + progress.step / progress.steps)

    while waiting:
        task = waiting.popleft()
        line = _named(task, partial(perform, setup, task, on_step))
        done += 1
        on_progress(done)
        waiting.extend(record(task, line))


def _side_by_side(
    setup: Setup, waiting: deque[Task], record: Record, processes: int, on_progress: Callable[[float], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("d", 0.0), context.Event()
    threads = max(1, torch.get_num_threads() // processes)
    running: dict[Future[Line], Task] = {}
    with ProcessPoolExecutor(processes, context, _begin, (threads, counter, stop)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    task = waiting.popleft()
                    running[pool.submit(_perform, setup, task)] = task
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    task = running.pop(future)
                    waiting.extend(record(task, _named(task, future.result)))
                on_progress(counter.value)
        except BrokenProcessPool as error:
            raise ComparisonError(
                "a training's process was killed, perhaps for want of memory; the same command goes on, with fewer "
                "--jobs if that was it"
            ) from error
        finally:
            stop.set()


def _named(task: Task, work: Callable[[], Line]) -> Line:
    """An error of a training says which one it is."""
    try:
        return work()
    except TrainingError as error:
        raise ComparisonError(f"{task.kind} {task.name}: {error}") from error


# Within a worker: how far all workers are, in trainings, and whether they are to save and stop.
_counter: Any = None
_stop: Any = None


def _begin(threads: int, counter: Any, stop: Any) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    torch.set_num_threads(threads)
    # Ctrl-C reaches every process of a terminal; the parent alone decides, and asks by `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that was killed cannot say so; its children must not train on in a folder that another may take up."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _perform(setup: Setup, task: Task) -> Line:
    told = 0.0

    def tell(done: float) -> None:
        nonlocal told
        with _counter.get_lock():
            _counter.value += done - told
        told = done

    def on_step(progress: Progress) -> None:
        tell(progress.step / progress.steps)
        if _stop.is_set():
            signal.raise_signal(signal.SIGTERM)  # to the training a request to save and stop

    line = perform(setup, task, on_step)
    tell(1.0)
    return line
