"""Writes constraints.txt: every version that is installed here, with the hashes of its files.

    python tools/pin.py

Run it in a fresh environment in which the tests pass: `pip install --editable '.[test,train]'` makes one of newest
versions. What `make demo` installs stands first, what `make test` adds after it. Hashes are those of the index's wheels
for Linux and macOS, and of the build of torch that pip takes here, which may come from elsewhere. Lines with a marker,
for other versions of Python than this one, keep their versions.
"""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

FILE = Path(__file__).parent.parent / "constraints.txt"
INDEX = "https://pypi.org/simple"
PYTHONS = ("cp311", "cp312", "cp313")
DEMO = "# make demo: what cssoftmax[train] needs, and what builds the package."
TEST = "# make test: the rest."


def needed(name: str, extra: str, installed: dict[str, importlib.metadata.Distribution]) -> set[str]:
    """Names of installed packages that ``name[extra]`` needs, and those that these need."""
    found: set[tuple[str, str]] = set()
    left = [(name, extra)]
    while left:
        name, extra = left.pop()
        if (name, extra) in found or name not in installed:
            continue
        found.add((name, extra))
        for requirement in map(Requirement, installed[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in found}


def fits(tag: Tag) -> bool:
    python = (
        (tag.interpreter in PYTHONS and (tag.abi in (*PYTHONS, "none"))) or tag.abi == "abi3" or "py3" in tag.interpreter
    )
    machine = tag.platform.endswith(("x86_64", "aarch64", "arm64", "universal2")) and "musl" not in tag.platform
    return python and (machine or tag.platform == "any")


def hashes(name: str, version: str) -> list[str]:
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    wheels, sources = [], []
    for file in files:
        try:
            _, its, _, tags = parse_wheel_filename(file["filename"])
            if str(its) == version and any(map(fits, tags)):
                wheels.append(file["hashes"]["sha256"])
        except InvalidWheelFilename:
            if file["filename"].removesuffix(".tar.gz").endswith(f"-{version}"):
                sources.append(file["hashes"]["sha256"])
    if not wheels + sources:
        raise SystemExit(f"{name} {version}: the index has no file of it")
    return sorted(wheels or sources)


def taken_here(name: str, version: str) -> str:
    """The hash of the file that pip takes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{name}=={version}"]
        subprocess.run(pip, check=True)
        return hashlib.sha256(next(Path(folder).iterdir()).read_bytes()).hexdigest()


def main() -> int:
    installed = {canonicalize_name(found.metadata["Name"]): found for found in importlib.metadata.distributions()}
    demo = needed("cssoftmax", "train", installed) | {"setuptools"}
    pins = {name: (found.version.partition("+")[0], "") for name, found in installed.items()}
    for line in FILE.read_text().splitlines():
        if "==" in line and ";" in line:
            pin = Requirement(line.removesuffix("\\"))
            pins[pin.name] = (str(next(iter(pin.specifier)).version), f" ; {pin.marker}")
            demo.add(pin.name)
    lines = {True: [DEMO], False: ["", TEST]}
    for name, (version, marker) in sorted(pins.items()):
        if name in ("cssoftmax", "pip"):
            continue
        print(name, end=" ", file=sys.stderr, flush=True)
        known = {*hashes(name, version), *([taken_here(name, version)] if name == "torch" else [])}
        lines[name in demo] += [
            " \\\n    ".join([f"{name}=={version}{marker}", *(f"--hash=sha256:{value}" for value in sorted(known))])
        ]
    FILE.write_text("\n".join((*lines[True], *lines[False])) + "\n")
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
