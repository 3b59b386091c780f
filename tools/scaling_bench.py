"""Measures the sharded head on this machine and writes results/scaling/*.json.

    python tools/scaling_bench.py [--classes 1000000] [--processes N] [--output results/scaling]

Time: one process with one thread against several with one thread each, on the same rows; by the clock, for which the
machine must do nothing else, and in seconds of computing by the busiest process, which other work disturbs less; how
much of the clock passes in exchanges, waiting for the others among it, and how long these take where nobody waits. With
``--processes`` only the runs of so many are measured, and the others in the file stay.
Memory: what steps add to a process, beside the libraries' some hundred MB. Bias: a sampled head against the whole one.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from cssoftmax import CSSoftmaxLoss, files, processor
from cssoftmax.sharded import collectives, shard_loss, step_drawn_rows

ROWS, SIZE = 256, 128


def peak() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(exchange, spent: list[float]):
    def run(*arguments, **options):
        start = time.perf_counter()
        found = exchange(*arguments, **options)
        spent.append(time.perf_counter() - start)
        return found

    return run


def exchanges(world: int, group) -> None:
    """Those of a step: rows and labels, cosines to the own classes and sums; backward, sums and rows."""
    collectives.all_gathered(torch.zeros(ROWS // world, SIZE), group)
    collectives.all_gathered(torch.zeros(ROWS // world, dtype=torch.int64), group)
    collectives.all_gathered(torch.zeros(1, 2, ROWS), group)
    for _ in range(4):
        collectives.all_reduce(torch.zeros(ROWS), group)
    collectives.reduce_scattered(torch.zeros(ROWS, SIZE), group)


def rank(number: int, world: int, folder: str, classes: int, sample_rate: float, repeats: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(f"{folder}/store", world), rank=number, world_size=world
    )
    # The libraries choose how to multiply, and grow, before memory is read.
    warm = CSSoftmaxLoss(SIZE, 20_000)
    warm(torch.randn(ROWS, SIZE), torch.randint(20_000, (ROWS,))).backward()
    del warm
    before = peak()
    mesh = init_device_mesh("cpu", (world,))
    loss = shard_loss(CSSoftmaxLoss(SIZE, classes, device="meta"), mesh, sample_rate=sample_rate)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9)
    if sample_rate < 1:
        step_drawn_rows(optimizer, loss)
    spent: list[float] = []
    for exchange in ("all_reduce", "all_gathered", "reduce_scattered"):
        setattr(collectives, exchange, timed(getattr(collectives, exchange), spent))
    seconds: dict[str, list[float]] = {"head": [], "step": [], "cpu": [], "exchange": []}
    for repeat in range(repeats + 1):
        torch.manual_seed(repeat)
        x, y = torch.randn(ROWS, SIZE), torch.randint(classes, (ROWS,))
        own = slice(ROWS * number // world, ROWS * (number + 1) // world)
        x, y = x[own].requires_grad_(), y[own]
        optimizer.zero_grad()
        distributed.barrier()
        spent.clear()
        start, used = time.perf_counter(), time.process_time()
        loss(x, y).backward()
        head = time.perf_counter() - start
        optimizer.step()
        if repeat:  # the first allocates
            seconds["head"].append(head)
            seconds["step"].append(time.perf_counter() - start)
            seconds["cpu"].append(time.process_time() - used)
            seconds["exchange"].append(sum(spent))
    for _ in range(20):
        distributed.barrier()
        start = time.perf_counter()
        exchanges(world, mesh.get_group())
        seconds.setdefault("alone", []).append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    found |= {"spread": [min(seconds["step"]), max(seconds["step"])], "bytes": peak() - before}
    Path(folder, f"{number}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def measured(world: int, classes: int, sample_rate: float, repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank, (world, folder, classes, sample_rate, repeats), nprocs=world)
        ranks = [json.loads(Path(folder, f"{number}.json").read_text()) for number in range(world)]
    slowest = max(ranks, key=lambda found: found["step"])
    result = {
        "processes": world,
        "threads_a_process": 1,
        "classes": classes,
        "rows": ROWS,
        "embedding_size": SIZE,
        "sample_rate": sample_rate,
        "head_seconds": slowest["head"],
        "step_seconds": slowest["step"],
        "exchange_seconds": min(found["exchange"] for found in ranks),
        "exchange_seconds_alone": max(found["alone"] for found in ranks),
        "cpu_seconds_a_process": max(found["cpu"] for found in ranks),
        "step_seconds_least_and_most": slowest["spread"],
        "bytes_a_process": max(found["bytes"] for found in ranks),
    }
    print(result, flush=True)
    return result


def bias(classes: int = 10_000, rows: int = 64, draws: int = 100) -> list[dict[str, float]]:
    """How far the loss and the gradient of a sampled head are from those of the whole, with and without the count."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    torch.manual_seed(0)
    whole = CSSoftmaxLoss(64, classes)
    y = torch.randint(classes, (rows,))
    x = (whole.weight.detach()[y] + 0.7 * torch.randn(rows, 64) / 8).requires_grad_()  # partly trained
    exact = whole(x, y)
    (gradient,) = torch.autograd.grad(exact, x)
    table = []
    for rate in (0.5, 0.1, 0.02):
        sharded = CSSoftmaxLoss(64, classes)
        sharded.load_state_dict(whole.state_dict())
        shard_loss(sharded, mesh, sample_rate=rate)
        found = {"counted": ([], []), "once": ([], [])}
        for draw in range(draws):
            torch.manual_seed(draw)
            value = sharded(x, y)
            found["counted"][0].append(value.item())
            found["counted"][1].append(torch.autograd.grad(value, x)[0])
            # As published: the loss of the classes with rows and of the drawn ones, each of which counts once.
            kept = y.unique()
            others = torch.ones(classes).index_fill_(0, kept, 0).nonzero().squeeze(1)
            some = torch.cat([kept, others[torch.randperm(len(others))[: int(rate * len(others)) + 1]]])
            part = CSSoftmaxLoss(64, len(some), scale=float(whole.scale))
            part.weight.data = whole.weight.detach()[some]
            value = part(x, torch.searchsorted(kept, y))
            found["once"][0].append(value.item())
            found["once"][1].append(torch.autograd.grad(value, x)[0])
        row: dict[str, float] = {"sample_rate": rate, "loss": float(exact)}
        for name, (values, gradients) in found.items():
            mean = torch.stack(gradients).mean(0)
            row[f"{name}_mean_loss"] = statistics.mean(values)
            row[f"{name}_loss_deviation"] = statistics.stdev(values)
            row[f"{name}_mean_gradient_error"] = float((mean - gradient).norm() / gradient.norm())
            single = [float((one - gradient).norm() / gradient.norm()) for one in gradients]
            row[f"{name}_gradient_error"] = statistics.mean(single)
        print(row, flush=True)
        table.append(row)
    distributed.destroy_process_group()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("results/scaling"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {
        "processor": processor.describe("cpu"),
        "torch": torch.__version__,
        "command": "python tools/scaling_bench.py",
    }
    settings = [(1, 1.0), (2, 1.0), (4, 1.0), (1, 0.1), (2, 0.1)]
    path = options.output / "head.json"
    runs = json.loads(path.read_text())["runs"] if options.processes else []
    for world, rate in settings:
        if options.processes in (None, world):
            runs = [run for run in runs if (run["processes"], run["sample_rate"]) != (world, rate)]
            runs.append(measured(world, options.classes, rate, options.repeats))
    runs.sort(key=lambda run: (-run["sample_rate"], run["processes"]))
    files.write_json(path, about | {"runs": runs})
    if options.processes is None:
        files.write_json(options.output / "sampling.json", about | {"rows": bias()})


if __name__ == "__main__":
    main()
