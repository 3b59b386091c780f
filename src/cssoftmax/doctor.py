"""What is here to work with, what is missing, and how to get it."""

import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from cssoftmax import __version__, processor
from cssoftmax.data.cache import default_cache_dir
from cssoftmax.data.sources import HUB_IDS, named_folder

DEVELOPMENT = ("test", "docs")
"""Extras of those who work on this package."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: its topic and name, what was found, and what to do where that is not enough."""

    topic: str
    name: str
    found: str
    remedy: str | None = None


def examine(data_root: Path | None = None) -> list[Finding]:
    """Looks at versions, devices, extras and data; asks nothing of the network.

    ``data_root`` is by default ``$CSSOFTMAX_DATA``.

    >>> findings = examine()
    >>> [finding.name for finding in findings][:2]
    ['cssoftmax', 'python']
    """
    return [*_versions(), *_devices(), *_packages(), *_data(data_root)]


def _versions() -> list[Finding]:
    return [
        Finding("versions", "cssoftmax", f"{__version__}, in {Path(__file__).parent}"),
        Finding("versions", "python", f"{platform.python_version()}, {sys.executable}"),
        Finding("versions", "system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]


def _devices() -> list[Finding]:
    slowdown = processor.bfloat16_slowdown()
    bfloat16 = f"matrix products take {slowdown:.2g} times as long as in float32"
    findings = [
        Finding("devices", "cpu", processor.describe("cpu")),
        Finding("devices", "cpu, bfloat16", bfloat16, "leave --amp bf16 out on this CPU" if slowdown > 1.5 else None),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            named = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
            findings.append(Finding("devices", f"cuda:{index}", named))
    else:
        built = torch.version.cuda
        remedy = (
            "the driver finds no GPU" if built else "this build of PyTorch is for the CPU; see pytorch.org for others"
        )
        findings.append(Finding("devices", "cuda", "none", remedy))
    return findings


def _packages() -> list[Finding]:
    findings = []
    for text in importlib.metadata.requires("cssoftmax") or []:
        wanted = Requirement(text)
        extras = [extra for extra in _extras() if wanted.marker and wanted.marker.evaluate({"extra": extra})]
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if not needed and not extras:
            continue
        install = (
            f"pip install 'cssoftmax[{extras[0]}]'" if extras else f"pip install '{wanted.name}{wanted.specifier}'"
        )
        where = "packages" if needed else f"packages for {extras[0]}"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(where, wanted.name, "not installed", install))
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        findings.append(
            Finding(where, wanted.name, version, None if fits else f"{wanted.specifier} is needed: {install}")
        )
    return findings


def _extras() -> list[str]:
    named = importlib.metadata.metadata("cssoftmax").get_all("Provides-Extra") or []
    return [extra for extra in named if extra not in DEVELOPMENT]


def _data(data_root: Path | None) -> list[Finding]:
    root = named_folder(data_root)
    findings = [Finding("data", "digits", "embedded")]
    for name, hub_id in HUB_IDS.items():
        folder = root and root / name
        if folder and folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*.parquet")) / 2**20
            findings.append(Finding("data", name, f"{folder}, {size:.0f} MiB"))
        else:
            where = f"not in {root}" if root else "no --data-root, no $CSSOFTMAX_DATA"
            remedy = f"fetched from huggingface.co/datasets/{hub_id} when asked for, or put its parquet files there"
            findings.append(Finding("data", name, where, remedy))
    cache = default_cache_dir()
    size = sum(file.stat().st_size for file in cache.glob("*.safetensors")) / 2**20 if cache.is_dir() else 0
    findings.append(Finding("data", "cache of decoded data", f"{cache}, {size:.0f} MiB"))
    return findings
