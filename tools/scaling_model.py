"""The sharded head on paper: memory, bytes moved and time of a step on H200s. Prints the tables of docs/scaling.md.

    python tools/scaling_model.py

Nothing here was measured by us: rates are what others measured, the vendor's, or assumptions, marked so.
"""

import math
from dataclasses import dataclass

MEMORY = 141e9  # bytes of an H200 (vendor)
HBM = 4.8e12  # bytes a second (vendor)
# Bytes a second of NCCL's rings among the 8 H200 of a node, and among 256 H100 of 32 nodes with a card for each GPU
# (measured: ml-engineering, network/benchmarks/results/all-reduce-8xH200.md; github.com/NVIDIA/nccl/issues/1218).
NVLINK, ACROSS = 368e9, 200e9
NETWORK = 50e9  # bytes a second out of a GPU's own card, 400 Gb/s InfiniBand (vendor)
# Bfloat16 operations a second (assumption; an H100 reaches 794e12 at best: ml-engineering, compute/accelerator).
PRODUCTS = 700e12
LATENCY = 20e-6  # for each doubling of the ranks (assumption; a small all-reduce among 8 H200 takes 40e-6: as above)
NODE = 8
ROOM = 0.8  # the share of the memory that the head may have; the network needs some, too (assumption)

ROWS = 128  # a GPU and step
SIZE = 512  # D

# Numbers kept for each class weight, bytes: float32 weight, gradient, momentum.
STATE = 12
# Bytes moved for each class weight in a step: read once forward and twice backward, gradient written; the optimizer
# reads weight, gradient and momentum, and writes weight and momentum.
MOVED = 3 * 4 + 4 + (4 + 4 + 4) + (4 + 4)
# With sampling the gradient is as large all the same: set to zero, and looked through for rows that are not.
MOVED_UNDRAWN = 4 + 4


@dataclass(frozen=True)
class Step:
    """One GPU's part of a step: bytes, and seconds of each kind of work."""

    ranks: int  # that share out the classes; the others repeat them for other rows
    memory: float
    sent: float  # to other GPUs
    products: float
    hbm: float
    exchange: float  # of embeddings and numbers per row
    gradients: float  # of class weights, over the ranks that have the same ones

    latency: float  # the part of the exchange that passes however little is sent

    @property
    def overlapped(self) -> float:
        """Were what is sent hidden behind products; the exchanges themselves depend on one another."""
        hidden = self.exchange - self.latency + self.gradients
        return max(self.products, self.hbm, hidden) + self.latency

    @property
    def seconds(self) -> float:
        # Products and memory traffic overlap within a kernel; the exchanges here wait for them.
        return max(self.products, self.hbm) + self.exchange + self.gradients


def step(classes: float, gpus: int, ranks: int, rate: float = 1.0) -> Step:
    """``ranks`` of the GPUs share out the classes; of those without a row in the batch, ``rate`` are drawn."""
    rows = ROWS * ranks
    own = classes / ranks
    drawn = own * rate
    # One product forward; backward the cosines are made again for each of the two gradients: 10 N C D operations.
    products = 10 * rows * drawn * SIZE / PRODUCTS
    hbm = (drawn * MOVED + (own - drawn) * MOVED_UNDRAWN) * SIZE / HBM
    # Embeddings are gathered in bfloat16, their gradients scattered in float32; four numbers a row each way.
    wire = NVLINK if ranks <= NODE else ACROSS
    sent = (ranks - 1) / ranks * rows * (SIZE * (2 + 4) + 8 * 4)
    latency = 10 * LATENCY * math.log2(max(ranks, 2)) * (ranks > 1)
    exchange = sent / wire + latency
    copies = gpus // ranks
    gradients = 0.0
    if copies > 1:
        # Of a node's GPUs each has other classes, so that each group has but one card a node.
        wire = NVLINK if gpus <= NODE else NETWORK
        across = 2 * (copies - 1) / copies * own * SIZE * 4
        gradients = across / wire + LATENCY * math.log2(copies)
        sent += across
    copied = drawn * SIZE * (4 + 4) * (rate < 1)  # weights drawn, and their gradient
    memory = own * SIZE * STATE + copied + rows * SIZE * (2 + 4 + 4) + 16 * 4 * rows
    return Step(ranks, memory, sent, products, hbm, exchange, gradients, latency)


def best(classes: float, gpus: int, rate: float = 1.0) -> Step | None:
    """The quickest mesh that fits, data x class; None if none does."""
    sizes = [ranks for ranks in (2**k for k in range(int(math.log2(gpus)) + 1)) if gpus % ranks == 0]
    fitting = [found for found in (step(classes, gpus, ranks, rate) for ranks in sizes) if found.memory < ROOM * MEMORY]
    return min(fitting, key=lambda found: found.seconds, default=None)


def amount(value: float, units: str = " kMGTP") -> str:
    power = max(0, min(int(math.log(max(value, 1), 1000)), len(units) - 1))
    return f"{value / 1000**power:.3g} {units[power]}".strip()


def table(rate: float) -> list[str]:
    lines = [
        "| classes | H200s | class x data | memory | sent | products | HBM | exchange | gradients | step | rows/s |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for classes in (1e6, 1e7, 1e8, 1e9):
        for gpus in (8, 64, 256, 1024):
            found = best(classes, gpus, rate)
            cells = [f"{amount(classes)}", str(gpus)]
            if found is None:
                lines.append("| " + " | ".join([*cells, "does not fit", *[""] * 8]) + " |")
                continue
            times = (found.products, found.hbm, found.exchange, found.gradients, found.seconds)
            cells += [f"{found.ranks} x {gpus // found.ranks}", f"{amount(found.memory)}B", f"{amount(found.sent)}B"]
            cells += [f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms" for seconds in times]
            lines.append("| " + " | ".join([*cells, amount(gpus * ROWS / found.seconds)]) + " |")
    return lines


def limits() -> list[str]:
    """Where more GPUs stop helping: the exchange takes as long as the products, all ranks sharing out the classes."""
    lines = [
        "| classes | GPUs from which the exchange takes longer than the products | at a sample rate of 0.1 |",
        "|--:|--:|--:|",
    ]
    for classes in (1e6, 1e7, 1e8, 1e9):
        cells = [amount(classes)]
        for rate in (1.0, 0.1):
            found = [
                g
                for g in (2**k for k in range(1, 21))
                if step(classes, g, g, rate).exchange > step(classes, g, g, rate).products
            ]
            cells.append(f"{found[0]:,}" if found else "more than a million")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def overlap() -> list[str]:
    """What it would save to send while products are computed."""
    lines = [
        "| classes | H200s | step | overlapped | at a sample rate of 0.1 | overlapped |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for classes in (1e6, 1e7, 1e8):
        for gpus in (8, 64, 1024):
            cells = [amount(classes), str(gpus)]
            for rate in (1.0, 0.1):
                found = best(classes, gpus, rate)
                if found is not None:
                    cells += [f"{1e3 * found.seconds:.3g} ms", f"{1e3 * found.overlapped:.3g} ms"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def whole_head() -> list[str]:
    """Partial FC's setting: 1.4 million classes on 8 GPUs, 64 rows each as is usual there."""
    classes, gpus, rows = 1.4e6, 8, 64
    everywhere = classes * SIZE * STATE
    logits = rows * classes * 4
    shared = everywhere / gpus
    all_logits = rows * gpus * classes / gpus * 4
    return [
        "| head, 1.4 M classes, D = 512, 8 GPUs of 64 rows | state a GPU | (N, C) logits and their gradient a GPU |",
        "|---|--:|--:|",
        f"| copied to every GPU (data-parallel) | {amount(everywhere)}B | {amount(2 * logits)}B |",
        f"| shared out, logits kept | {amount(shared)}B | {amount(2 * all_logits)}B |",
        f"| shared out, a tenth drawn, logits kept | {amount(shared)}B | {amount(0.2 * all_logits)}B |",
        f"| shared out, this engine | {amount(shared)}B | 0 |",
    ]


def one_gpu() -> list[str]:
    """What one H200 holds: weights, gradient and momentum in bfloat16 (6 bytes), or in float32."""
    lines = ["| one H200, D = 512, 128 rows | bfloat16 | float32 |", "|---|--:|--:|"]
    for name, copied in (("all classes", 0.0), ("a tenth drawn", 0.1)):
        limits = [ROOM * MEMORY / (SIZE * width * (3 + 2 * copied)) for width in (2, 4)]
        lines.append(f"| {name} | " + " | ".join(amount(limit) for limit in limits) + " |")
    return lines


def text() -> str:
    parts = (
        ("All classes in every step", table(1.0)),
        ("A tenth of the classes drawn (`sample_rate=0.1`)", table(0.1)),
        ("Where it stops scaling", limits()),
        ("What sending while computing could save", overlap()),
        ("Beside Partial FC", whole_head()),
        ("Most classes of one GPU, by memory", one_gpu()),
    )
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(lines) for title, lines in parts)


if __name__ == "__main__":
    print(text())
