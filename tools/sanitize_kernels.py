"""Runs the kernels in C under AddressSanitizer and UndefinedBehaviorSanitizer: a grid of shapes, and their tests.

    python tools/sanitize_kernels.py --output results/faults/sanitizers.json

The kernels are compiled with -fsanitize=address,undefined by a compiler that `CSSOFTMAX_CC` names, and the process is
begun with the sanitizers' libraries, so that every tensor's memory is watched. First a kernel that reads one number
beyond its block is planted: it must be found. Needs gcc with libasan and libubsan.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZES = {"rows": (1, 2, 3, 15, 16, 17, 33), "features": (1, 3, 8, 17), "classes": (1, 2, 7, 15, 16, 17, 31, 64, 130)}
TESTS = ["tests/engine/test_compiled.py", "tests/engine/test_against_reference.py", "-k", "compiled or chunked"]
COMPILER = """#!/bin/sh
exec gcc "$@" -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
"""


def grid() -> int:
    """Every engine that has kernels in C, over shapes around the widths of vectors; the calls made."""
    import torch

    from cssoftmax.engine import chunked
    from cssoftmax.engine.compiled import build
    from cssoftmax.functional import similarity_loss
    from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax

    assert build.suits(torch.zeros(1, 1)), "no kernels were compiled"
    calls = 0
    for n, d, c in itertools.product(*SIZES.values()):
        x, w, y = torch.randn(n, d, requires_grad=True), torch.randn(c, d, requires_grad=True), torch.randint(c, (n,))
        y[-1] = c - 1
        for similarity in (CSSoftmax(0.2, 0.25), CosFace(normalized="none"), ArcFace(0.4)):
            bias = torch.randn(c, requires_grad=True) if similarity.normalized == "none" else None
            for engine, block in (("compiled", 2**21), ("chunked", 2**21), ("chunked", 50)):
                chunked.BLOCK, chunked.ROWS, chunked.SPARE = block, 4 if block == 50 else 512, block
                value = similarity_loss(x, w, y, similarity, scale=9.0, bias=bias, implementation=engine)
                inputs = [side for side in (x, w, bias) if side is not None]
                assert all(found.isfinite().all() for found in torch.autograd.grad(value, inputs))
                calls += 1
    return calls


def planted() -> None:
    """One number beyond the block, by a block one class too wide."""
    import torch

    from cssoftmax.engine.compiled import build

    block = torch.zeros(4, 8)
    build.common().owns(block.view(-1)[: 3 * 9].view(3, 9), None, None, None, torch.tensor([8, 8, 8]))  # inside
    target, own = torch.tensor([8, 8, 8, 8]), torch.empty(4)
    library = build.common().library
    library.owns(block.data_ptr(), 4, 9, None, None, None, target.data_ptr(), own.data_ptr())


def libraries() -> str:
    named = (("gcc", f"-print-file-name=lib{name}.so") for name in ("asan", "ubsan"))
    paths = [subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() for words in named]
    if not all(Path(path).is_absolute() for path in paths):
        raise SystemExit("gcc has no libasan and libubsan here; install libgcc-dev")
    return " ".join(paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    parser.add_argument("part", nargs="?", choices=("grid", "planted"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print({"grid": grid, "planted": planted}[arguments.part]())
        return 0
    with tempfile.TemporaryDirectory() as name:
        compiler = Path(name) / "cc"
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
        environment = os.environ | {
            "CSSOFTMAX_CC": str(compiler),
            "CSSOFTMAX_CACHE": name,
            "LD_PRELOAD": libraries(),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            # The compiler is begun with these libraries, too, and does well with them.
            return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

        here = (sys.executable, str(Path(__file__).resolve()))
        found = run(*here, "planted")
        caught = found.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in found.stderr
        print("planted fault:", "found" if caught else f"not found\n{found.stdout}{found.stderr}", flush=True)
        shapes = run(*here, "grid")
        print("grid:", shapes.stdout.strip() if shapes.returncode == 0 else shapes.stderr, flush=True)
        tests = run(sys.executable, "-m", "pytest", "-n", "0", "--capture=sys", *TESTS)
        print(tests.stdout[-3000:], tests.stderr[:6000] if tests.returncode else "")
    passed = re.search(r"(\d+) passed", tests.stdout)
    fine = [caught, shapes.returncode == 0, tests.returncode == 0]
    result = {
        "planted fault": "found" if caught else "not found",
        "calls over a grid of shapes": int(shapes.stdout) if fine[1] else shapes.stderr[-2000:],
        "tests passed": int(passed[1]) if passed else sum(map(len, re.findall(r"^\.+", tests.stdout, re.MULTILINE))),
        "faults": sum(not part for part in fine),
        "compiler": subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.splitlines()[0],
    }
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
