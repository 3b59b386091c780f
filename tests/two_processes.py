"""One of two processes of test_losses.py: moves each loss's state by its half of a batch, and alone by the whole."""

import sys
from datetime import timedelta

import torch
from torch import distributed

from cssoftmax import AdaCosLoss, AdaFaceLoss, CenterLoss, CurricularFaceLoss, SphereFaceLoss


def states(batches):
    torch.manual_seed(0)
    result = {}
    for family in (AdaCosLoss, AdaFaceLoss, CenterLoss, CurricularFaceLoss, SphereFaceLoss):
        loss = family(4, 6)
        for x, y in batches:
            loss(x, y)
        result |= {f"{family.__name__}.{name}": buffer for name, buffer in loss.named_buffers()}
    return result


def main(rank, folder):
    torch.manual_seed(1)
    x, y = torch.randn(2, 8, 4), torch.randint(6, (2, 8))
    x[0, 4:], y[0, 4:] = x[0, :4], y[0, :4]  # both halves have one median, which AdaCos would else only approximate
    x[1, :4], y[1, :4] = x[1, 4:], -100  # the first process sees nothing that counts

    together = states(list(zip(x, y, strict=True)))
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    half = slice(4 * rank, 4 * rank + 4)
    torch.save(
        {"together": together, "apart": states([(x[i, half], y[i, half]) for i in range(2)])}, f"{folder}/{rank}.pt"
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
