"""A progress bar with the time left, for work that turns out to take long."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before the bar shows."""

_silent = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Within it no bar shows, however long the work takes."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def is_silent() -> bool:
    return _silent.get()


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield the items; after two seconds show on standard error how far it is and how long it still takes."""
    from rich.console import Console
    from rich.progress import Progress

    start = shown = time.monotonic()
    console, bar = Console(stderr=True), None
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if bar is None and now - start > PATIENCE and console.is_terminal and not is_silent():
                bar = Progress(console=console, transient=True)
                task = bar.add_task(description, total=total)
                bar.start()
            if bar is not None and now - shown > 0.1:
                bar.update(task, completed=done)
                shown = now
            yield item
    finally:
        if bar is not None:
            bar.stop()
