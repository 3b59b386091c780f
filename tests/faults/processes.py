"""The command line in processes of its own, and what is done to them."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def nothing() -> None:
    """Done first where nothing else is."""


def command(*arguments: object, first: Callable[[], object] = nothing) -> Done:
    """Runs ``cssoftmax`` with these arguments in a process of its own, after ``first`` was called there (pickled)."""
    return begin(*arguments, first=first)()


def begin(*arguments: object, first: Callable[[], object] = nothing) -> Callable[[], Done]:
    """The same without waiting for its end; the function that is returned does."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(tuple(map(str, arguments)), theirs, dict(os.environ), first))
    process.start()
    theirs.close()

    def done() -> Done:
        with os.fdopen(os.dup(ours.fileno()), errors="replace") as file:
            told = file.read()
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, told)

    return done


def _command(
    arguments: tuple[str, ...], err: Connection, environment: dict[str, str], first: Callable[[], object]
) -> None:
    """In a process that has imported and not computed: the rest is what the installed command does."""
    from cssoftmax import cli

    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(1)
    with os.fdopen(os.dup(err.fileno()), "w") as file:
        err.close()
        sys.stdout, sys.stderr = Path(os.devnull).open("w"), file  # noqa: SIM115
        sys.argv = ["cssoftmax", *arguments]
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


def stop_soon() -> None:
    """Ctrl-C in the first step of a training."""
    from cssoftmax.training import loop

    rate = loop.learning_rate

    def first_step(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return rate(*arguments)

    loop.learning_rate = first_step


def ask_hub_at(address: str, folder: Path) -> None:
    """The hub's clients ask there, keep in the folder what they get, and do not wait between tries."""
    import datasets
    import huggingface_hub

    constants, config = huggingface_hub.constants, datasets.config
    constants.ENDPOINT = config.HF_ENDPOINT = os.environ["HF_ENDPOINT"] = address
    constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE = str(folder / "hub"), folder / "datasets"
    time.sleep = lambda seconds: None


def left_aside(folder: Path) -> list[Path]:
    """Files that were begun and not put in their place."""
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return []
