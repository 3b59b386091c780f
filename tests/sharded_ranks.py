"""What each rank of test_sharded.py runs: the sharded loss beside the whole one on the rows of all ranks."""

import json
import os
import signal
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from cssoftmax import files, jobs, losses, processes, runs, training
from cssoftmax.checkpoint import Progress, load_checkpoint, save_checkpoint
from cssoftmax.classifier import Classifier, embed
from cssoftmax.data import Split
from cssoftmax.engine import chunked
from cssoftmax.recipes import Recipe
from cssoftmax.sharded import Sharded, shard_loss, step_drawn_rows
from cssoftmax.training.optimizer import moving_average
from cssoftmax.watcher import Watcher

C, D = 13, 6
ROWS = (12, 13, 5, 4)  # of all ranks together, in the batches of four steps

# The whole head is there for comparison, with all rows on every rank: nothing is to be added up.
losses.base.over_processes = lambda sums: sums


def start(rank, world, folder, checks):
    """One rank: joins the others and runs the checks, each a name and its arguments."""
    _as_launched(rank, world)
    store = distributed.FileStore(f"{folder}/store", world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    for name, *arguments in checks:
        try:
            globals()[name](*arguments)
        except BaseException:
            Path(folder, f"error.{rank}").write_text(f"{name}, rank {rank}: {traceback.format_exc()}")
            os._exit(1)
    distributed.barrier()
    distributed.destroy_process_group()


def _as_launched(rank, world, port=0):
    """What `torchrun` and `accelerate launch` set."""
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def line():
    return init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("class",))


def build(name, dtype=torch.float32, num_classes=C, **options):
    torch.manual_seed(0)
    if name == "elasticface":
        options["generator"] = torch.Generator().manual_seed(1)
    return losses.LOSSES[name](D, num_classes, **options).to(dtype)  # its state, too


def batch(step, dtype=torch.float32, ignored=False, num_classes=C):
    """The rows of all ranks in a step."""
    g = torch.Generator().manual_seed(step)
    n = ROWS[step % 4]
    x, y = 12 * torch.randn(n, D, generator=g, dtype=dtype), torch.randint(num_classes, (n,), generator=g)
    if ignored:
        y[torch.rand(n, generator=g) < 0.3] = -100
    return x, y


def own_rows(step):
    """Which of them are this rank's: as many on each; more on the higher; all on the last; one after the other."""
    rank, world, n = distributed.get_rank(), distributed.get_world_size(), ROWS[step % 4]
    edges = [
        [n * r // world for r in range(world + 1)],
        [n * r * r // world**2 for r in range(world + 1)],
        [0] * world + [n],
        [min(r * 2, n) if r < world else n for r in range(world + 1)],
    ][step % 4]
    return slice(edges[rank], edges[rank + 1])


def close(found, expected, tolerance, what):
    """To the largest number that there is: rounding of a sum is that of its largest term."""
    assert found.shape == expected.shape, f"{what}: {found.shape} for {expected.shape}"
    if expected.numel():
        size = max(float(expected.detach().abs().max()), 1e-3)
        away = float((found.detach() - expected.detach()).abs().max()) / size
        assert away <= tolerance, f"{what}: {away:.1e} of the largest, {size:.3g}"


def equal(cases, shape=None, sample_rate=1.0):
    """Loss and gradients, in float64, in which nothing but a wrong equation shows."""
    chunked.BLOCK = 64  # several blocks of classes
    world = distributed.get_world_size()
    mesh = line() if shape is None else init_device_mesh("cpu", shape, mesh_dim_names=("data", "class"))
    for name, options in cases:
        whole = build(name, torch.float64, **options)
        sharded = shard_loss(build(name, torch.float64, **options), mesh, sample_rate=sample_rate)
        for step in range(4) if options else (1, 2):
            what = f"{name} {options}, step {step}"
            x, y = batch(step, torch.float64, ignored=step % 2 == 1, num_classes=whole.num_classes)
            own = own_rows(step)
            a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
            expected, value = whole(a, y), sharded(b, y[own])
            if whole.reduction == "none":
                close(value, expected[own], 1e-10, f"{what}: loss")
                upstream = torch.linspace(0.5, 1.5, len(x), dtype=x.dtype)
                expected, value = (expected * upstream).sum() / world, (value * upstream[own]).sum()
            else:
                close(value, expected, 1e-10, f"{what}: loss")
            whole.zero_grad()
            sharded.zero_grad()
            expected.backward()
            value.backward()
            close(b.grad, world * a.grad[own], 1e-10, f"{what}: gradient of the embeddings")
            for key, parameter in whole.named_parameters():
                gradient = getattr(sharded, key).grad.full_tensor()
                close(gradient, parameter.grad, 1e-10, f"{what}: gradient of {key}")
        for key, buffer in whole.named_buffers():
            close(getattr(sharded, key), buffer, 1e-10, f"{name}: {key}")


def kernels():
    """The GPU's kernels, in Triton's interpreter and so in float32."""
    for name, options, rate in (
        ("cs-softmax", {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2.0, C)}, 1.0),
        ("magface", {}, 0.999),
    ):
        whole = build(name, **options)
        sharded = shard_loss(build(name, **options, implementation="triton"), line(), sample_rate=rate)
        x, y = batch(1, ignored=True)
        own = own_rows(1)
        a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
        whole(a, y).sum().backward()
        value = sharded(b, y[own])
        value.sum().backward()
        world = distributed.get_world_size()
        factor = world if whole.reduction == "none" else 1
        close(factor * sharded.weight.grad.full_tensor(), whole.weight.grad, 2e-5, f"{name}: gradient of the weights")
        close(factor * b.grad, world * a.grad[own], 2e-5, f"{name}: gradient of the embeddings")


def train(loss, steps, rows=None):
    """SGD with momentum."""
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        x, y = batch(step, loss.weight.dtype)
        own = slice(None) if rows is None else rows(step)
        optimizer.zero_grad()
        loss(x[own], y[own]).backward()
        optimizer.step()
    return {key: whole(value).double() for key, value in loss.state_dict().items()}


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def fifty_steps(file, names):
    """The sharded head ends as near to the whole one in float64 as the whole one in float32 does."""
    states = torch.load(file)
    for name in names:
        exact, rounded = states[name]
        found = train(shard_loss(build(name), line()), 50, own_rows)
        for key, value in exact.items():
            rounding, away = ((other[key] - value).norm() / value.norm() for other in (rounded, found))
            assert away <= 4 * rounding + 1e-6, f"{name}.{key}: {away:.1e}, by rounding {rounding:.1e}"


def inference(name, options):
    """Logits, similarities and classes of the rank's own rows, among all classes."""
    loss, sharded = build(name, torch.float64, **options), shard_loss(build(name, torch.float64, **options), line())
    for step in range(4):
        x, y = batch(step, torch.float64)
        own = own_rows(step)
        close(sharded.logits(x[own]), loss.logits(x)[own], 1e-12, "logits")
        assert torch.equal(sharded.classify(x[own]), loss.logits(x).argmax(1)[own])
        for found, expected in zip(sharded.similarities(x[own], y[own]), loss.similarities(x, y), strict=True):
            close(found.nan_to_num(neginf=9.0), expected[own].nan_to_num(neginf=9.0), 1e-12, "similarities")
    a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
    loss.logits(a).square().sum().backward()
    sharded.logits(b).square().sum().backward()
    close(b.grad, a.grad[own], 1e-12, "gradient through the logits")
    close(
        sharded.weight.grad.full_tensor() * distributed.get_world_size(), loss.weight.grad, 1e-12, "and of the weights"
    )


def double_backward():
    loss, sharded = (build("cs-softmax", torch.float64, implementation="eager") for _ in range(2))
    shard_loss(sharded, line())
    x, y = batch(0, torch.float64)
    own = own_rows(0)
    a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(a, y), a, create_graph=True)
    first.square().sum().backward()
    (second,) = torch.autograd.grad(sharded(b, y[own]), b, create_graph=True)
    world = distributed.get_world_size()
    (second / world).square().sum().backward()
    close(b.grad, a.grad[own] * world, 1e-10, "gradient of the gradient's square")


def half_precision():
    """Rows in bfloat16 travel as such; the loss is computed in float32, autocast or not."""
    loss, sharded = build("cs-softmax"), shard_loss(build("cs-softmax"), line())
    x, y = batch(1)
    own = own_rows(1)
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = sharded(half[own].requires_grad_(), y[own])
    assert value.dtype == torch.float32
    close(value, loss(half.float(), y), 1e-6, "loss")
    value.backward()
    products = shard_loss(build("cs-softmax", implementation="chunked", precision="bf16"), line())
    close(products(x[own], y[own]), loss(x, y), 1e-2, "loss of products in bfloat16")


def drawn_alone():
    """A loss without weights: each rank draws its own, the same on ranks with the same classes."""
    mesh = init_device_mesh("cpu", (2, distributed.get_world_size() // 2), mesh_dim_names=("data", "class"))
    torch.manual_seed(distributed.get_rank())
    loss = shard_loss(losses.SoftmaxLoss(D, C, device="meta"), mesh)
    weight = loss.weight.full_tensor()
    assert weight.isfinite().all() and weight.abs().max() <= D**-0.5 and len(weight.unique()) > 70
    first = weight.clone()
    distributed.broadcast(first, 0)
    assert torch.equal(weight, first) and torch.equal(loss.bias.full_tensor(), whole(loss.state_dict()["bias"]))


def unbiased():
    """On average over draws, the sum over the other classes, exp(loss) - 1, is that of all classes."""
    classes = 40
    loss = build("cs-softmax", torch.float64, classes, scale=4.0, reduction="none")
    sharded = shard_loss(
        build("cs-softmax", torch.float64, classes, scale=4.0, reduction="none"), line(), sample_rate=0.25
    )
    x, y = batch(0, torch.float64, num_classes=classes)
    own = own_rows(0)
    torch.manual_seed(distributed.get_rank())
    with torch.no_grad():
        exact = loss(x, y)[own].expm1()
        sums = torch.stack([sharded(x[own], y[own]).expm1() for _ in range(120)])
        error = (sums.mean(0) - exact) / (sums.std(0) / 120**0.5)
        assert sums.std(0).min() > 0 and error.abs().max() < 4.5, error
        assert torch.allclose(sharded.eval()(x[own], y[own]), loss(x, y)[own])  # evaluation draws nothing


def untouched():
    """A class that is not drawn keeps its weights and its momentum, bit for bit."""
    for name, options in (("subcenter-arcface", {}), ("softmax", {})):
        for family in (torch.optim.SGD, torch.optim.Adam):
            loss = shard_loss(build(name, num_classes=40, **options), line(), sample_rate=0.2)
            settings = {"momentum": 0.9} if family is torch.optim.SGD else {}
            optimizer = family(loss.parameters(), lr=0.01, weight_decay=0.1, **settings)
            step_drawn_rows(optimizer, loss)
            moved = []
            for step in range(4):
                before = {key: value.to_local().clone() for key, value in loss.named_parameters()}
                state = {
                    key: {k: v.to_local().clone() for k, v in optimizer.state[value].items() if v.ndim}
                    for key, value in loss.named_parameters()
                }
                x, y = batch(step, num_classes=40)
                optimizer.zero_grad()
                loss(x[own_rows(step)], y[own_rows(step)]).backward()
                optimizer.step()
                for key, value in loss.named_parameters():
                    grad = value.grad.to_local().reshape(len(before[key]), -1)
                    still = ~grad.ne(0).any(1)
                    changed = (value.to_local() != before[key]).reshape(grad.shape).any(1)
                    assert not changed[still].any() and changed[~still].all()
                    assert still.any() and not still.all()
                    for k, old in state[key].items():
                        assert torch.equal(optimizer.state[value][k].to_local()[still], old[still])
                    moved.append(changed if key == "weight" else None)
            assert type(optimizer.param_groups[0]["params"][0].grad) is type(loss.weight.grad)
            assert not torch.equal(moved[0], moved[-1] if moved[-1] is not None else moved[-2])


def save(folder):
    """Trains a little and writes what a training needs to go on."""
    for name in ("softmax", "subcenter-arcface", "curricularface"):
        loss = shard_loss(build(name), line())
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.02, momentum=0.9)
        loss(*(rows[own_rows(0)] for rows in batch(0))).backward()
        optimizer.step()
        checkpoint.save({"loss": loss.state_dict()}, checkpoint_id=f"{folder}/{name}")
        plain = get_model_state_dict(loss, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if distributed.get_rank() == 0:
            torch.save(plain, f"{folder}/{name}.pt")
            assert all(type(value) is torch.Tensor for value in plain.values())


def load(folder):
    for name in ("softmax", "subcenter-arcface", "curricularface"):
        loss = shard_loss(build(name), line())
        state = loss.state_dict()
        checkpoint.load({"loss": state}, checkpoint_id=f"{folder}/{name}")
        loss.load_state_dict(state)
        for key, expected in torch.load(f"{folder}/{name}.pt").items():
            assert torch.equal(whole(loss.state_dict()[key]), expected)


def refused():
    """A wrong label on one rank is an error on all of them."""
    loss, rank = shard_loss(build("cs-softmax"), line()), distributed.get_rank()
    x, y = torch.randn(2, D), torch.tensor([0, C if rank == 1 else 1])
    expected = f"label {C} in row 1 is outside 0..{C - 1}" if rank == 1 else "rank 1 refused its rows"
    with pytest.raises((IndexError, ValueError), match=expected):
        loss(x, y)
    with pytest.raises(ValueError, match="no rank has a row"):
        loss(x[:0], y[:0])
    assert isinstance(loss, Sharded) and loss(x, y.clamp(max=C - 1)).isfinite()


def lonely():
    """The last rank dies; the others say so."""
    loss, rank = shard_loss(build("cs-softmax"), line()), distributed.get_rank()
    loss(torch.randn(2, D), torch.tensor([0, 1]))
    if rank == distributed.get_world_size() - 1:
        os._exit(3)
    loss(torch.randn(2, D), torch.tensor([0, 1])).backward()


def with_network(fully_shard):
    """A network under DDP or FSDP2 and the sharded head take the step that one process takes."""
    torch.manual_seed(0)
    network = nn.Linear(D, D)
    alone, loss, sharded = nn.Linear(D, D), build("cs-softmax"), shard_loss(build("cs-softmax"), line())
    alone.load_state_dict(network.state_dict())
    if fully_shard:
        from torch.distributed.fsdp import fully_shard

        fully_shard(network, mesh=line())
    else:
        network = nn.parallel.DistributedDataParallel(network)
    optimizers = [
        torch.optim.SGD([{"params": n.parameters()}, {"params": head.parameters()}], lr=0.1, momentum=0.9)
        for n, head in ((alone, loss), (network, sharded))
    ]
    for _ in range(3):
        x, y = batch(0)
        own = own_rows(0)
        loss(alone(x), y).backward()
        sharded(network(x[own]), y[own]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(alone.parameters(), network.parameters(), strict=True):
        close(whole(b), a, 1e-4, "network")
    close(sharded.weight.full_tensor(), loss.weight, 1e-4, "class weights")


def written_again(before, after):
    """Reads the checkpoint of a training on other ranks, if there is one, and writes what it has then."""
    model = Classifier(nn.Linear(D, D), shard_loss(build("subcenter-arcface"), line()))
    optimizer = torch.optim.SGD([{"params": part.parameters()} for part in (model.network, model.loss)], 0.1, 0.9)
    average = moving_average(model, 0.9)
    kept = {"model": model, "average": average}, {"optimizer": optimizer}
    progress = Progress(2, 10, 5)
    accelerator = Accelerator(cpu=True)
    if before is None:
        for step in range(2):
            x, y = batch(step)
            optimizer.zero_grad()
            model.loss(model(x[own_rows(step)]), y[own_rows(step)]).backward()
            for parameter in model.network.parameters():
                distributed.all_reduce(parameter.grad)
            processes.clip_gradients(model, 0.5)
            gradients = [whole(parameter.grad).flatten() for parameter in model.parameters()]
            close(torch.cat(gradients).norm(), torch.tensor(0.5), 1e-4, "norm of all gradients")
            optimizer.step()
            average.update_parameters(model)
    else:
        assert load_checkpoint(Path(before), kept, None, progress) == progress
        assert isinstance(optimizer.state[model.loss.weight]["momentum_buffer"], DTensor)
    save_checkpoint(Path(after), kept, accelerator, progress)
    assert processes.are_finite(model, accelerator)
    if distributed.get_rank() == 0:
        with torch.no_grad():
            model.loss.weight.to_local()[0] = float("nan")
    assert not processes.are_finite(model, accelerator)  # all know of it


def smooth(classes):
    """A network without a kink, across which rounding would change what is learned."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, D))
    return Classifier(network, losses.CSSoftmaxLoss(D, classes))


def fitted(folder, name, shape=None, resume=False, sample_rate=1.0, classes=5, keeps="ema"):
    """Two epochs of the training loop on all ranks' share of the batches; the weights as a whole."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    split = Split(inputs, torch.arange(60) % 5, None)
    settings = {"epochs": 2, "batch_size": 12, "lr": 0.2, "momentum": 0.9, "clip_norm": 0.5, "weight_decay": 1e-3}
    muon_lr = 0.1 if keeps == "lookahead" else 0.0
    recipe = Recipe("lenet", 1, D, muon_lr=muon_lr, **settings | {keeps: 0.9})
    model = smooth(classes)
    if shape is not None:
        names = ("data", "class")[-len(shape) :]
        shard_loss(model.loss, init_device_mesh("cpu", shape, mesh_dim_names=names), sample_rate=sample_rate)
    seen, AcceleratorState._shared_state = [], {}
    accelerator = Accelerator(cpu=True)

    def on_step(progress):
        if progress.step == 7 and not resume:
            signal.raise_signal(signal.SIGTERM)

    def on_epoch(evaluated, metrics):
        logits = embed(evaluated, split, accelerator=accelerator)[1]
        seen.append([metrics["train_loss"], float(logits.square().sum())])

    file = Path(folder, f"{name}.safetensors")
    options = {"seed": 0, "accelerator": accelerator, "checkpoint": file, "on_epoch": on_epoch, "resume": resume}
    try:
        model = training.fit(model, split, recipe, on_step=on_step, **options)
    except training.Interrupted:
        return seen, None
    return seen, {key: whole(value) for key, value in model.state_dict().items()}


def fully_sharded_training(folder, expected):
    """Launched with FSDP, alone and with the classes shared out, the loop does what one process does."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    world = distributed.get_world_size()
    for name, shape, keeps in (("fsdp", None, "ema"), ("classes", (world,), "lookahead")):
        seen, weights = torch.load(expected)[keeps]
        first, _ = fitted(folder, name, shape, keeps=keeps)
        network = files.read_tensors(Path(folder, f"{name}.safetensors"))[1]
        assert network["model.network.1.weight"].shape == (24, 16)  # as a whole, in a plain file
        rest, found = fitted(folder, name, shape, resume=True, keeps=keeps)
        for key, value in weights.items():
            close(found[key], value, 1e-4, f"{name}: {key}")
        measured = torch.tensor(first + rest)
        close(measured, torch.tensor(seen), 1e-4, f"{name}: measures")
        everywhere = [torch.empty_like(measured) for _ in range(world)]
        distributed.all_gather(everywhere, measured)
        assert all(torch.equal(other, measured) for other in everywhere)
    del os.environ["ACCELERATE_USE_FSDP"]


def sampled_training(folder):
    """Which classes a step draws follows from the seed and the step: all ranks end alike, stopped in between or not."""
    world = distributed.get_world_size()
    for name, shape in (("shared", (world,)), ("copied", (world, 1))):
        _, straight = fitted(folder, f"{name}_straight", shape, resume=True, sample_rate=0.3, classes=40)
        fitted(folder, name, shape, sample_rate=0.3, classes=40)
        _, resumed = fitted(folder, name, shape, resume=True, sample_rate=0.3, classes=40)
        first = resumed["loss.weight"].clone()
        distributed.broadcast(first, 0)
        assert torch.equal(first, resumed["loss.weight"])
        assert all(torch.equal(resumed[key], value) for key, value in straight.items())


def job(rank, world, port, folder, resume):
    """A training by this package's function, as `accelerate launch` and `torchrun` start it."""
    _as_launched(rank, world, port)
    folder, lines = Path(folder), []

    def on_step(progress):
        if not resume and progress.epoch == 1 and progress.step % progress.steps_per_epoch == 2:
            (signal.raise_signal(signal.SIGTERM) if rank == 1 else None)  # one is asked to stop, and all do

    def on_epoch(metrics):
        lines.append({key: value for key, value in metrics.items() if key != "seconds"})

    watcher = Watcher(on_step=on_step, on_epoch=on_epoch)
    try:
        if resume:
            jobs.resume(folder / "run", watcher=watcher)
        else:
            recipe = {"epochs": 2, "ema": 0.9, "clip_norm": 1.0, "mixup": 0.2}
            jobs.train(
                runs.Source("digits"), folder / "run", recipe_changes=recipe, shard_classes=True,
                loss="curricularface", watcher=watcher, cpu=torch.accelerator.is_available(),
            )  # fmt: skip
        ended = "done"
    except training.Interrupted as stop:
        ended = str(stop)
    except BaseException:
        ended = traceback.format_exc()
    (folder / f"ended.{world}.{rank}").write_text(json.dumps([ended, lines]))
    distributed.destroy_process_group()
