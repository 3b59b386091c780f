"""Fine-tune a network of timm, or of torchvision, with CS-Softmax.

    python examples/finetune_timm_or_torchvision.py

Needs one of them, beside the build of PyTorch that it was made for. `pretrained=True` fetches weights; here it is left
out so that the example runs anywhere: replace the random images by yours.
"""

import importlib.util
import sys

import torch
from torch import nn

from cssoftmax import CSSoftmaxLoss, param_groups, split_head


def backbone_of(pretrained: bool = False) -> nn.Module:
    """A ResNet-18 that ends in its 512 features; SystemExit says why there is none."""
    if importlib.util.find_spec("timm"):
        import timm

        model = timm.create_model("resnet18", pretrained=pretrained)
    elif importlib.util.find_spec("torchvision"):
        from torchvision.models import resnet18

        model = resnet18(weights="DEFAULT" if pretrained else None)
    else:
        sys.exit("neither timm nor torchvision is installed; `pip install timm`, with the PyTorch it was made for")
    backbone, _ = split_head(model, "fc")  # the layer of that name becomes the identity
    return backbone


def main(steps: int = 20, size: int = 64) -> list[float]:
    torch.manual_seed(0)
    backbone = backbone_of()
    images, labels = torch.rand(64, 3, size, size), torch.arange(64) % 4
    images += labels.view(-1, 1, 1, 1) / 2  # four classes, told apart by brightness

    features = backbone(images[:2]).shape[1]
    loss = CSSoftmaxLoss(features, num_classes=4)
    # The class weights are new, the network is not: they may move faster.
    groups = param_groups(backbone, loss, lr=0.01, class_lr_scale=10.0, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    values = []
    backbone.train()
    for step in range(steps):
        rows = torch.randint(64, (16,))
        value = loss(backbone(images[rows]), labels[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
        print(f"step {step + 1}: loss {value:.3f}")
    return values


if __name__ == "__main__":
    main()
