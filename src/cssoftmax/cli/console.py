"""What all commands share: how they speak, and how they say that something went wrong."""

import inspect
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.cells import cell_len
from rich.console import Console

from cssoftmax import checkpoint, processor, training
from cssoftmax.data.progress import silence
from cssoftmax.networks import NETWORKS

# Seconds that a process may come after the first of its machine to the same mistake.
PATIENCE = 10.0

P = ParamSpec("P")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=True)]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", envvar="CSSOFTMAX_DATA", help="Folder that holds the named data sets.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
NETWORK_HELP = (
    f"One of {', '.join(NETWORKS)}, or package.module:function, yours: called with channels, embedding_size and width, "
    "as far as it takes them, it returns the module."
)
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON, for scripts.")]
Network = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help="Of a run whose network is code of your own: that code, again."),
]


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake becomes one line and exit code 1, an interruption code 130."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with silence() if kwargs.get("quiet") else nullcontext():
                command(*args, **kwargs)
        except (training.Interrupted, KeyboardInterrupt) as stop:
            _say(": ".join(filter(None, ("interrupted", str(stop)))), stop)
            raise typer.Exit(130) from None
        except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
            if os.environ.get("CSSOFTMAX_TRACEBACK") or isinstance(error, typer.Exit):
                raise
            _say(f"error: {_explanation(error, inspect.signature(command).parameters)}", error)
            raise typer.Exit(1) from None

    return run


def _say(line: str, error: BaseException) -> None:
    """Of several processes on a machine the first speaks.

    Another one waits until it would have: whoever started them ends the others when one has failed. What comes after
    that, one process alone has met.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        if isinstance(error, (training.Interrupted, KeyboardInterrupt)):
            return
        time.sleep(PATIENCE)
        line = f"rank {os.environ.get('RANK', '?')}: {line}"
    err.print(line, markup=False)


def _explanation(error: Exception, options: Iterable[str]) -> str:
    """One line; where the error begins with a setting's name, that of the option that sets it."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = (
            f"{error.filename}: {error.strerror}; check that it is there, that you may use it, and that there is room"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text):
        more = ", or add --stream" if "stream" in options else ""
        return f"not enough memory ({text or 'MemoryError'}); lower --batch-size, --width or --image-size{more}"
    if isinstance(error, RuntimeError) and not isinstance(error, checkpoint.TrainingError):
        raise error
    name = re.match(r"\w+(?=: )", text)
    return f"--{text.replace('_', '-', name[0].count('_'))}" if name and name[0] in options else text


def print_json(value: Any) -> None:
    """One JSON document on standard output; numbers that JSON does not have become null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line a row, however wide: the first column flush left, the others flush right."""
    widths = [max(cell_len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        first, *rest = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([row[0] + first, *(pad + cell for pad, cell in zip(rest, row[1:], strict=True))])


def given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def is_main_process() -> bool:
    """Whether this is the one of several processes that talks; ``torchrun`` and ``accelerate launch`` number them."""
    return os.environ.get("RANK", "0") == "0"


def warn_of_slow_precision(amp: str) -> None:
    if amp == "bf16" and (slowdown := processor.bfloat16_slowdown()) > 1.5:
        err.print(
            "warning: --amp bf16: this processor only emulates bfloat16; its matrix products take "
            f"{slowdown:.0f} times as long as in float32. Leave --amp out unless a GPU is used.",
            markup=False,
        )
