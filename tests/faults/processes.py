"""The command line in processes of its own, and what is done to them."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

QUICK = ["--network", "lenet", "--width", "2", "--embedding-size", "4", "--epochs", "2", "--batch-size", "8", "--cpu"]
"""What makes a training take a moment."""


@dataclass(frozen=True)
class Done:
    """What a command printed on standard error, and its exit code."""

    code: int
    err: str

    @property
    def error(self) -> str:
        """The one line in which it says why it was not done."""
        assert self.code == 1, f"exit code {self.code}: {self.err}"
        lines = [line for line in self.err.splitlines() if not line.startswith("cannot write the cache")]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


def command(*arguments: object, first: Callable[[], object] = lambda: None) -> Done:
    """Runs ``cssoftmax`` with these arguments in a process of its own, after ``first`` was called there."""
    return begin(*arguments, first=first)()


def begin(*arguments: object, first: Callable[[], object] = lambda: None) -> Callable[[], Done]:
    """The same without waiting for its end; the function that is returned does."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(arguments, theirs.fileno(), first))
    process.start()
    theirs.close()

    def done() -> Done:
        with os.fdopen(os.dup(ours.fileno()), errors="replace") as file:
            told = file.read()
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, told)

    return done


def _command(arguments: tuple[object, ...], err: int, first: Callable[[], object]) -> None:
    """Forked, so that nothing need be imported again; the rest is what the installed command does."""
    from cssoftmax import cli

    logging.getLogger().handlers.clear()  # pytest's
    torch.set_num_threads(1)  # a forked child may not use the threads of its parent
    with os.fdopen(err, "w") as file:
        sys.stdout, sys.stderr = Path(os.devnull).open("w"), file  # noqa: SIM115
        sys.argv = ["cssoftmax", *map(str, arguments)]
        try:
            first()
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
            code = 70
        file.flush()
        os._exit(code)


def as_anybody() -> None:
    """Root without its powers: permissions count for it, too."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, nothing) == 0


def on_reading(folder: Path, number: int, act: Callable[[], object]) -> None:
    """Calls ``act`` when this process opens the file of that number in ``folder``."""
    opened = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        if event == "open" and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(f"{folder}/"):
            opened += 1
            if opened == number:
                act()

    sys.addaudithook(watch)


def left_aside(folder: Path) -> list[Path]:
    """Files that were begun and not put in their place."""
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return []
