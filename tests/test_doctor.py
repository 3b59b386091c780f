"""What is here, and what is missing with its remedy."""

import importlib.metadata

import torch

from cssoftmax.doctor import examine


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_versions_devices_and_data_are_named(tmp_path):
    (tmp_path / "mnist").mkdir()
    found = by_name(examine(tmp_path))
    assert found["torch"].found == importlib.metadata.version("torch")
    assert found["torch"].remedy is None
    assert found["mnist"].remedy is None and str(tmp_path / "mnist") in found["mnist"].found
    assert "huggingface.co/datasets/uoft-cs/cifar10" in found["cifar10"].remedy
    assert "cpu, bfloat16" in found
    assert ("cuda" in found) != torch.cuda.is_available()


def test_what_is_missing_or_too_old_says_how_to_get_it(monkeypatch):
    version = importlib.metadata.version

    def lacking(name):
        if name == "kornia":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    found = by_name(examine())
    assert (found["kornia"].found, found["kornia"].remedy) == ("not installed", "pip install 'cssoftmax[train]'")
    assert found["numpy"].remedy == ">=2.0 is needed: pip install 'numpy>=2.0'"
