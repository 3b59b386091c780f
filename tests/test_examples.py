"""The examples run, and what they train learns."""

import importlib.util
import runpy
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    assert all(f'main_of("{path.stem}")' in tested for path in EXAMPLES.glob("*.py"))


def test_plain_pytorch():
    assert main_of("plain_pytorch")(epochs=10) > 0.93


def test_hugging_face_trainer():
    pytest.importorskip("transformers", reason="needs transformers")
    seen, heard = main_of("hugging_face_trainer")(epochs=4)
    assert seen > 0.7 and heard > 0.9


def test_lightning():
    pytest.importorskip("lightning", reason="needs lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's advice on workers and logging
        found = main_of("lightning_module")(epochs=4)
    assert found["accuracy"] > 0.9 and found["eer"] < 0.1


def test_timm_or_torchvision():
    if not any(importlib.util.find_spec(name) for name in ("timm", "torchvision")):
        pytest.skip("needs timm or torchvision, and no build of theirs goes with the CPU build of PyTorch here")
    values = main_of("finetune_timm_or_torchvision")()
    assert sum(values[-5:]) < sum(values[:5])


class StandIn(nn.Module):
    """What the example asks of a ResNet of timm or torchvision: a module whose last layer is ``fc``."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 1000)

    def forward(self, images):
        return self.fc(self.features(images))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_timm_or_torchvision_by_a_stand_in(monkeypatch, package):
    timm, torchvision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    timm.create_model = lambda name, pretrained: StandIn()
    models.resnet18 = lambda weights: StandIn()
    for name, module in (("timm", timm), ("torchvision", torchvision), ("torchvision.models", models)):
        if name.startswith(package):
            monkeypatch.setitem(sys.modules, name, module)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == package if name in ("timm", "torchvision") else found(name)
    )
    values = main_of("finetune_timm_or_torchvision")(steps=30, size=16)
    assert all(torch.isfinite(torch.tensor(values)))
    assert sum(values[-5:]) < sum(values[:5])


def test_the_absence_of_both_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="neither timm nor torchvision is installed"):
        main_of("finetune_timm_or_torchvision")()
