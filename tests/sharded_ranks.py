"""What each rank of test_sharded.py runs: the sharded loss beside the whole one on all ranks' rows."""

import os
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from cssoftmax import losses
from cssoftmax.sharded import shard_loss

C, D = 13, 6

# The whole head is there for comparison, with all rows on every rank: nothing is to be added up.
losses._over_processes = lambda sums: sums


def start(rank, world, store, check, *arguments):
    """One rank: joins the others, and runs the check of that name."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        globals()[check](*arguments)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def line():
    return init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("class",))


def pair(name, mesh, dtype=torch.float32, seed=0, sample_rate=1.0, **options):
    """A loss, and its sharded twin."""
    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        if name == "elasticface":
            options["generator"] = torch.Generator().manual_seed(1)
        made.append(losses.LOSSES[name](D, C, **options).to(dtype))  # its state, too
    return made[0], shard_loss(made[1], mesh, sample_rate=sample_rate)


def batch(step, sizes, dtype=torch.float32, ignored=False):
    """The rows of all ranks, and which of them are this one's."""
    g = torch.Generator().manual_seed(step)
    n = sum(sizes)
    x = 12 * torch.randn(n, D, generator=g, dtype=dtype)
    y = torch.randint(C, (n,), generator=g)
    if ignored:
        y[torch.rand(n, generator=g) < 0.3] = -100
    rank = distributed.get_rank()
    return x, y, slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def sizes_of(step):
    """Rows on each rank: the same, different, none on some; the last batch is the smallest."""
    world = distributed.get_world_size()
    return [[4] * world, [3 + (r * 5) % 4 for r in range(world)], [0] * (world - 1) + [5], [1] * world][step % 4]


def close(found, expected, tolerance, what=""):
    """To the largest number that there is, not each to itself: rounding of a sum is that of its largest term."""
    size = max(float(expected.detach().abs().max()), 1e-3) if expected.numel() else 1.0
    away = float((found.detach() - expected.detach()).abs().max()) / size if expected.numel() else 0.0
    assert found.shape == expected.shape and away <= tolerance, f"{what}: {away:.1e} of the largest, {size:.3g}"


def compare(whole, sharded, step, dtype, ignored, tolerance):
    """Loss and gradients of one batch."""
    world = distributed.get_world_size()
    x, y, own = batch(step, sizes_of(step), dtype, ignored)
    a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
    expected, value = whole(a, y), sharded(b, y[own])
    if whole.reduction == "none":
        close(value, expected[own], tolerance, "loss")
        upstream = torch.linspace(0.5, 1.5, len(x), dtype=dtype)
        expected, value = (expected * upstream).sum() / world, (value * upstream[own]).sum()
    else:
        close(value, expected, tolerance, "loss")
    for parameter in (*whole.parameters(), *sharded.parameters()):
        parameter.grad = None
    expected.backward()
    value.backward()
    close(b.grad, world * a.grad[own], tolerance, "embeddings")
    for name, parameter in whole.named_parameters():
        close(getattr(sharded, name).grad.full_tensor(), parameter.grad, tolerance, name)


def gradients(cases):
    """In float64, in which nothing but a wrong equation shows."""
    for name, options in cases:
        whole, sharded = pair(name, line(), torch.float64, **options)
        for step in range(4):
            compare(whole, sharded, step, torch.float64, step != 2, 1e-10)


def trained(name, dtype, mesh=None):
    """The state of a loss, whole or sharded, after 50 steps, in float64."""
    whole, sharded = pair(name, line(), dtype)
    loss = whole if mesh is None else sharded
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.02, momentum=0.9)
    for step in range(50):
        x, y, own = batch(step, sizes_of(step), dtype)
        optimizer.zero_grad()
        (loss(x, y) if mesh is None else loss(x[own], y[own])).backward()
        optimizer.step()
    return {
        key: (value.full_tensor() if mesh and value.ndim else value).double() for key, value in loss.state_dict().items()
    }


def fifty_steps(names):
    """The sharded head is as near to the whole head in float64 as the whole head in float32 is."""
    for name in names:
        exact, rounded, found = trained(name, torch.float64), trained(name, torch.float32), trained(name, torch.float32, line())
        for key, value in exact.items():
            rounding, away = ((other[key] - value).norm() / value.norm() for other in (rounded, found))
            assert away <= 4 * rounding + 1e-6, f"{name}.{key}: {away:.1e}, by rounding {rounding:.1e}"
