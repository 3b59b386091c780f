"""What tensors, networks and numbers are where several processes train together; on one, what they are anyway."""

import itertools
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; to import that class takes a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which each process may have a part; then all processes must call this."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def part_like(like: Tensor, value: Tensor) -> Tensor:
    """The part of the whole ``value`` that this process has of ``like``."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def fully_sharded(accelerator: Accelerator) -> bool:
    """Whether the processes were launched to share out the network by FSDP; on CPUs accelerate itself ignores that."""
    return accelerator.num_processes > 1 and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def shard_network(network: nn.Module, accelerator: Accelerator) -> None:
    """By FSDP2 as accelerate was told to, in place: parameters become DTensors."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    if getattr(accelerator.state, "fsdp_plugin", None) is None:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    # Every process has the same weights already.
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # in the order that FSDP cuts up
    fsdp2_prepare_model(accelerator, network)


def clip_gradients(model: nn.Module, norm: float) -> None:
    """Scales all gradients so that together they are no longer than ``norm``."""
    parts: dict[Any, list[nn.Parameter]] = {}  # those that are shared out over the same processes
    for parameter in model.parameters():
        if parameter.grad is not None:
            parts.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    norms = [whole(get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts.values()]
    total = torch.linalg.vector_norm(torch.stack(norms))
    factor = (norm / (total + 1e-6)).clamp(max=1.0)
    for parameter in itertools.chain.from_iterable(parts.values()):
        gradient = parameter.grad
        assert gradient is not None
        local(gradient).mul_(factor)


def share_buffers(module: nn.Module | None) -> None:
    """Gives all processes the main one's buffers, so that they evaluate alike: DDP does it before a step, not after."""
    for buffer in module.buffers() if module is not None else ():
        torch.distributed.broadcast(buffer, 0)


def are_finite(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether all weights are, in all processes."""
    infinite = sum(int(not local(weight).isfinite().all()) for weight in model.parameters())
    if accelerator.num_processes > 1:
        infinite = int(accelerator.reduce(torch.tensor(float(infinite), device=accelerator.device), "sum"))
    return infinite == 0


def summed(accelerator: Accelerator, *numbers: float) -> list[float]:
    """Each number's sum over all processes."""
    if accelerator.num_processes == 1:
        return list(numbers)
    table = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    sums: list[float] = accelerator.reduce(table, "sum").tolist()
    return sums


def gradient_is_finite(model: nn.Module) -> bool:
    """In float16 that is the scaler's business: the gradient overflows now and then as the scale is sought."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(get_total_norm([local(gradient) for gradient in gradients]).isfinite())
