"""``kernels.c`` for a similarity, compiled by the C compiler at hand when first used, and remembered on disk.

Without a compiler, or where the compiled code cannot be loaded, there are no kernels, and the engines use PyTorch.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cssoftmax.engine import eager, trace
from cssoftmax.engine.trace import FUNCTIONS, Key, NoTranslation
from cssoftmax.similarity import CosFace, Normalized, Rows, Similarity

logger = logging.getLogger(__name__)

# "0" does without; else the path of a compiler; by default the first of cc, gcc and clang.
COMPILER: str | None = os.environ.get("CSSOFTMAX_CC") or shutil.which("cc") or shutil.which("gcc")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC")
SOURCE = Path(__file__).with_name("kernels.c")

LANGUAGE = {name: f"{name}f({{0}})" for name in FUNCTIONS} | {
    "number": "#{0}#",  # becomes a setting: sources that differ in numbers alone need compiling once
    "as_float": "(float)({0})",
    "full": "{0}",
    "where": "({0} ? {1} : {2})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "abs": "fabsf({0})",
    "exp": "exp_({0})",
    "exp2": "exp2_({0})",
    "log": "log_({0})",
    "log2": "log2_({0})",
    "rsqrt": "(1.0f / sqrtf({0}))",
}


class Kernels:
    """The functions of ``kernels.c`` for one similarity, on float32 tensors that are contiguous.

    Products, and what will be a factor of one, may be bfloat16: each is read or written as its type says.
    """

    def __init__(self, library: ctypes.CDLL, settings: Sequence[float]) -> None:
        self.library = library
        self.has_losses = hasattr(library, "losses")
        self.settings = (ctypes.c_float * max(1, len(settings)))(*settings)

    def forward(
        self,
        block: Tensor,
        products: Tensor,
        inverse_w: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        first: int,
        scale: float,
        rows: Rows,
        tops: Tensor,
        sums: Tensor,
        keep: bool,
    ) -> None:
        _held, pointers, steps = _rows(rows, block)
        self.library.forward(
            _at(block), _fine(products), _rough(products), *block.shape, _at(inverse_w), _at(bias), _at(target), first,
            scale, pointers, steps, self.settings, _at(tops), _at(sums), keep, torch.get_num_threads(),
        )  # fmt: skip

    def finished(self, block: Tensor, out: Tensor, target: Tensor, first: int, factors: Tensor, owns: Tensor) -> None:
        self.library.finished(
            _at(block), _fine(out), _rough(out), *block.shape, _at(target), first, _at(factors), _at(owns),
            torch.get_num_threads(),
        )  # fmt: skip

    def again(
        self,
        block: Tensor,
        inverse_w: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        first: int,
        scale: float,
        rows: Rows,
        tops: Tensor,
        factors: Tensor,
        owns: Tensor,
    ) -> None:
        _held, pointers, steps = _rows(rows, block)
        self.library.again(
            _at(block), *block.shape, _at(inverse_w), _at(bias), _at(target), first, scale, pointers, steps,
            self.settings, _at(tops), _at(factors), _at(owns), torch.get_num_threads(),
        )  # fmt: skip

    def lengths(self, vectors: Tensor, length: Tensor | None, inverse: Tensor, rounded: Tensor | None = None) -> None:
        self.library.lengths(
            _at(vectors), *vectors.shape, eager.SHORTEST, _at(length), _at(inverse), _at(rounded),
            torch.get_num_threads(),
        )  # fmt: skip

    def project(
        self, gradient: Tensor, vectors: Tensor, inverse: Tensor, factor: float = 1.0, products: Tensor | None = None
    ) -> None:
        self.library.project(
            _at(gradient), _rough(products), _at(vectors), *vectors.shape, _at(inverse), factor,
            torch.get_num_threads(),
        )  # fmt: skip

    def gradients(
        self,
        g: Tensor,
        x: Tensor,
        w: Tensor,
        inverse_x: Tensor | None,
        inverse_w: Tensor | None,
        factor: float,
        needs_x: bool,
        needs_w: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """In x and w, from ``g`` in their products; for few classes."""
        grad_x, grad_w = torch.empty_like(x) if needs_x else None, torch.empty_like(w) if needs_w else None
        parts = max(1, min(16, x.shape[0] // 128))
        sums = w.new_empty(parts, w.numel())
        self.library.gradients(
            _at(g), _at(x), _at(w), *g.shape, x.shape[1], _at(inverse_x), _at(inverse_w), factor, _at(grad_x),
            _at(grad_w), _at(sums), parts, torch.get_num_threads(),
        )  # fmt: skip
        return grad_x, grad_w

    def multiplied(
        self, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, normalized: Normalized
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """For few classes: the products (N, C), own cosines, the embeddings' lengths, and both sides' inverses."""
        block, (own, norm, inverse_x) = x.new_empty(x.shape[0], w.shape[0]), x.new_empty(3, x.shape[0])
        inverse_w = None if normalized == "none" else w.new_empty(w.shape[0])
        self.library.multiplied(
            x.data_ptr(), w.data_ptr(), *block.shape, x.shape[1], eager.SHORTEST, normalized == "both", _at(bias),
            target.data_ptr(), block.data_ptr(), norm.data_ptr(), inverse_x.data_ptr(), _at(inverse_w), own.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return block, own, norm, inverse_x, inverse_w

    def owns(
        self, block: Tensor, inverse_x: Tensor | None, inverse_w: Tensor | None, bias: Tensor | None, target: Tensor
    ) -> Tensor:
        own = block.new_empty(block.shape[0])
        self.library.owns(_at(block), *block.shape, _at(inverse_x), _at(inverse_w), _at(bias), _at(target), _at(own))
        return own

    def losses(
        self,
        block: Tensor,
        inverse_x: Tensor | None,
        inverse_w: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        scale: float,
        rows: Rows,
        shares: Tensor | float,
        keep: bool,
    ) -> float:
        _held, pointers, steps = _rows(rows, block)
        values = block.new_empty(block.shape[0])
        alike = ctypes.c_float(shares if isinstance(shares, float) else 0.0)
        first, step = (shares.data_ptr(), 1) if isinstance(shares, Tensor) else (ctypes.addressof(alike), 0)
        total: float = self.library.losses(
            _at(block), *block.shape, _at(inverse_x), _at(inverse_w), _at(bias), _at(target), scale, pointers, steps,
            self.settings, first, step, _at(values), keep, torch.get_num_threads(),
        )  # fmt: skip
        return total


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _fine(tensor: Tensor) -> int | None:
    return None if tensor.dtype == torch.bfloat16 else tensor.data_ptr()


def _rough(tensor: Tensor | None) -> int | None:
    return tensor.data_ptr() if tensor is not None and tensor.dtype == torch.bfloat16 else None


def _rows(rows: Rows, like: Tensor) -> tuple[list[Any], Any, Any]:
    """The row parameters as memory to keep hold of, pointers to it, and steps from row to row."""
    held: list[Any] = []
    pointers, steps = (ctypes.c_void_p * max(1, len(rows)))(), (ctypes.c_long * max(1, len(rows)))()
    for k, row in enumerate(rows):
        if isinstance(row, Tensor):
            row = row.to(like)
            held.append(row)
            pointers[k], steps[k] = row.data_ptr(), row.stride(0) if row.ndim else 0
        else:
            number = ctypes.c_float(row)
            held.append(number)
            pointers[k], steps[k] = ctypes.addressof(number), 0
    return held, pointers, steps


def suits(*sides: Tensor) -> bool:
    """Whether there are kernels for tensors like these."""
    return (
        COMPILER not in (None, "0")
        and all(side.dtype == torch.float32 and side.device.type == "cpu" and side.is_contiguous() for side in sides)
        and common_or_none() is not None
    )


def kernels(similarity: Similarity, rows: Rows) -> Kernels | None:
    """For a similarity with these row parameters; None where there is no translation of it."""
    try:
        return _kernels(Key.of(similarity, len(rows)))
    except NoTranslation:
        return None


def common() -> Kernels:
    """For what does not depend on the similarity, where ``suits`` says so."""
    found = common_or_none()
    assert found is not None
    return found


@cache
def common_or_none() -> Kernels | None:
    return _kernels(Key.of(CosFace(), 1))


@lru_cache(maxsize=256)
def _kernels(key: Key) -> Kernels | None:
    try:
        source, settings = translate(key)
    except NoTranslation as reason:
        logger.info("%s runs in plain PyTorch: %s", key.kind.__name__, reason)
        return None
    library = _compiled(source)
    return None if library is None else Kernels(library, settings)


def translate(key: Key) -> tuple[str, list[float]]:
    """C source with the similarity's functions in it, and the numbers that are its settings."""
    functions = {name: trace.function(key, name, LANGUAGE) for name in ("negative", "negative_slope")}
    with contextlib.suppress(NoTranslation):
        functions |= {name: trace.function(key, name, LANGUAGE) for name in ("positive", "positive_slope")}
    settings: list[float] = []

    def setting(found: re.Match[str]) -> str:
        value = float(found[1].removeprefix('float("').removesuffix('")'))
        if value in (0.0, 1.0, 2.0, -1.0):
            return f"{value}f"
        settings.append(value)
        return f"setting{len(settings) - 1}"

    bodies = {}
    for name, (_, lines, result, _) in functions.items():
        text = "".join(
            f"    {'int' if line.is_truth else 'float'} {line.name} = {line.expression};\n" for line in lines
        )
        bodies[name] = re.sub(r"#([^#]*)#", setting, f"{text}    return {result};\n")
    values = {f"row{k}": f"rows[{k}][i * steps[{k}]]" for k in range(key.num_rows)}
    values |= {f"setting{k}": f"settings[{k}]" for k in range(len(settings))}
    packed = {
        name: f"packed[{name.removeprefix('row')}][r]" if name.startswith("row") else v for name, v in values.items()
    }
    macros = [
        f"#define NUMBER_OF_ROWS {key.num_rows}",
        f"#define LOAD_PACKED {' '.join(f'const float {name} = {value};' for name, value in packed.items())}",
        f"#define PARAMETERS {''.join(f', float {name}' for name in values)}",
        f"#define ARGUMENTS {''.join(f', {name}' for name in values)}",
        f"#define LOAD {' '.join(f'const float {name} = {value};' for name, value in values.items())}",
        *(["#define HAS_POSITIVE"] if "positive_slope" in functions else []),
    ]
    defined = [f"static inline float {name}(float c PARAMETERS) {{\n{body}}}" for name, body in bodies.items()]
    return SOURCE.read_text().replace("/* SIMILARITY */", "\n".join((*macros, *defined))), settings


@cache
def _compiled(source: str) -> ctypes.CDLL | None:
    assert COMPILER is not None
    processor = sorted(torch.cpu.get_capabilities().items())
    key = hashlib.sha256(repr((source, COMPILER, FLAGS, processor)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("CSSOFTMAX_CACHE") or "~/.cache/cssoftmax").expanduser() / "kernels"
    path = folder / f"{key}.so"
    try:
        if not path.exists():
            with tempfile.TemporaryDirectory() as work:
                code, object_file, library = (Path(work) / f"kernels.{end}" for end in ("c", "o", "so"))
                code.write_text(source)
                _run(COMPILER, *FLAGS, "-c", str(code), "-o", str(object_file))
                # Not linked with an OpenMP library: PyTorch's is in the process, and a second would fight it for cores.
                _run(COMPILER, "-shared", str(object_file), "-lm", "-o", str(library))
                folder.mkdir(parents=True, exist_ok=True)
                aside = folder / f".{key}.{os.getpid()}.tmp"
                shutil.copyfile(library, aside)
                aside.replace(path)
        library_loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        logger.info("no compiled kernels, PyTorch runs in their place: %s", detail)
        return None
    p, long, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name, types in {
        "forward": (p, p, p, long, long, p, p, p, long, real, p, p, p, p, p, integer, integer),
        "finished": (p, p, p, long, long, p, long, p, p, integer),
        "again": (p, long, long, p, p, p, long, real, p, p, p, p, p, p, integer),
        "lengths": (p, long, long, real, p, p, p, integer),
        "project": (p, p, p, long, long, p, real, integer),
        "gradients": (p, p, p, long, long, long, p, p, real, p, p, p, long, integer),
        "multiplied": (p, p, long, long, long, real, integer, p, p, p, p, p, p, p, integer),
        "owns": (p, long, long, p, p, p, p, p),
        "losses": (p, long, long, p, p, p, p, real, p, p, p, p, long, p, integer, integer),
    }.items():
        if name != "losses" or hasattr(library_loaded, name):
            getattr(library_loaded, name).argtypes = types
            getattr(library_loaded, name).restype = ctypes.c_double if name == "losses" else None
    return library_loaded


def _run(*command: str) -> None:
    subprocess.run(  # noqa: S603 - the compiler that the user names, and kernels.c
        command, check=True, capture_output=True, text=True, timeout=120
    )
