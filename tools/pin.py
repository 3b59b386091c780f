"""Writes constraints.txt: every version that is installed here, with the hashes of its files.

    python tools/pin.py

Run it in a fresh environment in which the tests pass: `pip install --editable '.[train,test,release]'` makes one of
newest versions. What `make demo` installs stands first, then what `make test` adds, then what `make dist` does. Hashes
are those of the index's wheels for Linux and macOS, and of the build of torch that pip takes here, which may come from
elsewhere. Lines with a marker, for other versions of Python than this one, keep their versions.
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
# Where what each extra adds begins; the Makefile cuts the file there.
SECTIONS = {"train": "# make demo", "test": "# make test", "release": "# make dist"}


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
    own = tag.interpreter in PYTHONS and tag.abi in (*PYTHONS, "none")
    python = own or tag.abi == "abi3" or "py3" in tag.interpreter
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
    sets = {extra: needed("cssoftmax", extra, installed) for extra in SECTIONS}
    sets["train"] |= {"setuptools"}  # it builds the package
    pins = {name: (found.version.partition("+")[0], "") for name, found in installed.items()}
    for line in FILE.read_text().splitlines():
        if "==" in line and ";" in line:
            pin = Requirement(line.removesuffix("\\"))
            pins[pin.name] = (str(next(iter(pin.specifier)).version), f" ; {pin.marker}")
            sets["train"].add(pin.name)
    lines = {extra: [title] for extra, title in SECTIONS.items()}
    for name, (version, marker) in sorted(pins.items()):
        extra = next((extra for extra, names in sets.items() if name in names), None)
        if name in ("cssoftmax", "pip") or extra is None:
            continue
        print(name, end=" ", file=sys.stderr, flush=True)
        known = {*hashes(name, version), *([taken_here(name, version)] if name == "torch" else [])}
        lines[extra] += [
            " \\\n    ".join([f"{name}=={version}{marker}", *(f"--hash=sha256:{value}" for value in sorted(known))])
        ]
    FILE.write_text("\n\n".join("\n".join(section) for section in lines.values()) + "\n")
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
