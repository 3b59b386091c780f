"""What the processor at hand can do: asked, not assumed."""

import platform
import time
from functools import cache
from pathlib import Path

import torch


@cache
def describe(device: str) -> str:
    """One line for results: what ran, on how many threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    features = torch.cpu.get_capabilities()
    widest = next((f for f in ("avx512_bf16", "avx512_f", "avx2") if features.get(f)), "")
    threads = torch.get_num_threads()
    return ", ".join(filter(None, (name, widest, f"{threads} threads" if threads > 1 else "1 thread")))


@cache
def bfloat16_slowdown() -> float:
    """How many times as long a bfloat16 matrix product takes on this CPU as a float32 one; below 1 is a gain.

    Some processors only emulate bfloat16, many times slower than float32, and none of their flags says how much.
    """
    matrices = {dtype: torch.ones(256, 256, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(matrices, float("inf"))
    for _ in range(10):  # in turns, the quickest of each: other programs on the machine do not count
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]
