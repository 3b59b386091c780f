"""Compiles the GPU engine's kernels for a GPU that need not be there, and prints what each tile size costs on it.

    python tools/compile_kernels.py                     all tiles, all types, for an H100 or H200 (minutes)
    python tools/compile_kernels.py --smallest          the smallest tile of each kernel alone (seconds)

Columns: kernel, type, tile (BLOCK_N, BLOCK_C, BLOCK_D, BLOCK_OUT), warps, stages, registers per thread, bytes of
spilled registers, bytes of shared memory, and the instruction the products are made with.
"""

import argparse
import re
import subprocess
import tempfile
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from cssoftmax.engine.triton import kernels
from cssoftmax.engine.triton.translate import translate
from cssoftmax.similarity import CSSoftmax

# As the engine's ``_products`` has them: storage; operands and float32 mode of cosines, then of gradients.
TYPES = {
    "bfloat16": ("bf16", tl.bfloat16, "ieee", tl.bfloat16, "ieee"),
    "float16": ("fp16", tl.float16, "ieee", tl.float32, "tf32"),
    "float32": ("fp32", tl.float32, "ieee", tl.float32, "ieee"),
    "float32, bf16 products": ("fp32", tl.bfloat16, "ieee", tl.bfloat16, "ieee"),
}


def compiled(kernel: Any, kind: str, config: triton.Config, capability: int) -> Any:
    """One kernel for C and D divisible by 16, with label smoothing and a bias."""
    negative, slope = kernels.compiled(translate(CSSoftmax(0.1, 0.25), num_rows=1))
    storage, *products = TYPES[kind]
    constants = dict(zip(("PRODUCT", "PRECISION", "GRAD_PRODUCT", "GRAD_PRECISION"), products, strict=True))
    constants |= {"NEGATIVE": negative, "SLOPE": slope, "BIAS": True, "SMOOTH": True, "PROJECT": True}
    constants |= {"HOLD": products[0] != tl.float32, **config.kwargs}
    types = {"N": "i32", "C": "i32", "D": "i32", "SPLITS": "i32", "target": "*i64"}
    types |= dict.fromkeys(("left", "right", "grad"), f"*{storage}")
    if kernel.__name__ == "_left_kernel":
        types["grad"] = "*fp32"
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names},
        constexprs={name: value for name, value in constants.items() if name in names},
        attrs={(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if name not in {*constants, "N"}},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def assembled(ptx: str, capability: int) -> str:
    """What the assembler says about registers and spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--smallest", action="store_true", help="the smallest tile of each kernel alone")
    parser.add_argument("--capability", type=int, default=90, help="compute capability times ten (default: 90)")
    options = parser.parse_args()
    if kernels.INTERPRETED.value:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    own = triton.Config({"BLOCK_N": 32, "BLOCK_D": 128}, num_warps=4, num_stages=3)
    for kind in options.types:
        tiles = [(kernels.own_kernel, own)]
        for tuned in (kernels.forward_kernel, kernels.left_kernel, kernels.right_kernel):
            configs = tuned.early_config_prune(None, {"PRODUCT": TYPES[kind][1], "D": 512})
            tiles += [(tuned.fn, config) for config in (configs[-1:] if options.smallest else configs)]
        for kernel, config in tiles:
            result = compiled(kernel, kind, config, options.capability)
            ptx = result.asm["ptx"]
            report = assembled(ptx, options.capability)
            registers = re.search(r"Used (\d+) registers", report)
            spilled = re.search(r"(\d+) bytes spill stores", report)
            print(
                kernel.__name__.strip("_"),
                kind,
                tuple(config.kwargs.values()),
                config.num_warps,
                config.num_stages,
                registers and registers[1],
                spilled and spilled[1],
                result.metadata.shared,
                "wgmma" if "wgmma" in ptx else "mma" if "mma.sync" in ptx else "fma",
                sep="  ",
                flush=True,
            )


if __name__ == "__main__":
    main()
