"""Builds the package, installs it in empty environments, and runs the tests there: old and new versions, other Pythons.

    python tools/try_environments.py --output results/faults/environments.json
    python tools/try_environments.py bare lowest --keep /tmp/environments

Needs uv (`pip install uv`), git, and the Pythons named below; where torch has no CPU build for one, gigabytes of its
CUDA build are fetched. The tests are those of this checkout, its last commit; the package is the wheel, or the archive.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = "[train,export,track,tune,faiss,gpu]"
SUITE = ("tests", "README.md", "docs")
CORE = ("tests/engine", "tests/test_losses.py", "tests/test_wiring.py", "tests/test_processor.py")


@dataclass(frozen=True)
class Environment:
    """``versions`` are "pinned" by constraints.txt, "lowest" or "newest"; ``tests`` what pytest is given, if any."""

    python: str = "3.11"
    extras: str = EXTRAS
    versions: str = "pinned"
    tests: tuple[str, ...] = SUITE
    archive: bool = False


ENVIRONMENTS = {
    "bare": Environment(extras="", tests=CORE),
    "train": Environment(extras="[train]", tests=()),
    "archive": Environment(extras="[train]", tests=(), archive=True),
    "lowest": Environment(versions="lowest"),
    "newest": Environment(versions="newest"),
    "3.12": Environment(python="3.12"),
    "3.13": Environment(python="3.13"),
}


def pins() -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.M)
    return {canonicalize_name(name): version for name, version in found}


def tools(environment: Environment) -> list[str]:
    """What the tests need beside the extras: of these, old versions are not promised to do."""
    own = {Requirement(line).name for line in wanted()} | {PROJECT["name"]}
    needed = [Requirement(line) for line in (*extra("test"), *extra("docs"))]
    if environment.tests == CORE:
        needed = [Requirement(name) for name in ("hypothesis", "pytest", "pytest-markdown-docs", "pytest-xdist")]
    known = pins()
    return [
        f"{tool.name}[{','.join(tool.extras)}]"
        + ("" if environment.versions == "newest" else f"=={known[canonicalize_name(tool.name)]}")
        for tool in needed
        if tool.name not in own
    ]


def wanted() -> list[str]:
    """The requirements of the package and of its extras."""
    return [*PROJECT["dependencies"], *(line for name in EXTRAS.strip("[]").split(",") for line in extra(name))]


def extra(name: str) -> list[str]:
    return list(PROJECT["optional-dependencies"][name])


def run(*command: object, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=kept | variables, capture_output=True, text=True, check=False
    )


def attempt(environment: Environment, package: Path, folder: Path) -> dict[str, Any]:
    """Makes the environment in ``folder`` and uses it; what was installed, and how the tests ended."""
    python, began = folder / "bin" / "python", time.monotonic()
    install = ["uv", "pip", "install", "--quiet", "--python", python, f"{package}{environment.extras}"]
    if environment.tests:
        install += tools(environment)
    if environment.versions == "lowest":  # of what is asked for by name: what the package itself asks for, too
        install += ["--resolution", "lowest-direct", *wanted()]
    if environment.versions == "pinned":
        constraints = folder.with_name(f"{folder.name}.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins().items()))
        install += ["--constraint", constraints]
    for step in (["uv", "venv", "--quiet", "--python", environment.python, folder], install):
        if (done := run(*step)).returncode:
            return {"installed": False, "why": done.stderr.strip()[-2000:]}
    ask = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    versions = json.loads(run(python, "-c", ask).stdout)
    direct = {canonicalize_name(Requirement(line).name) for line in wanted()}
    chosen = {name: version for name, version in versions.items() if canonicalize_name(name) in direct}
    result = {"installed": True, "python": environment.python, "versions": dict(sorted(chosen.items()))}
    checkout = folder.with_name(f"{folder.name} checkout")
    run("git", "clone", "--quiet", ROOT, checkout)
    shutil.rmtree(checkout / "src")
    if environment.tests:
        done = run(python, "-m", "pytest", "-rs", "--numprocesses", "auto", *environment.tests, folder=checkout)
        lines = done.stdout.splitlines()
        result |= {"tests": re.sub(r" in .*", "", lines[-1]) if lines else "", "passed": done.returncode == 0}
        result["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40]
        folder.with_name(f"{folder.name}.log").write_text(done.stdout + done.stderr)
    else:
        command = folder / "bin" / "cssoftmax"
        done = run(
            command, "train", "digits", "--epochs", "2", "--output", checkout / "run", "--quiet", folder=checkout
        )
        result |= {"passed": done.returncode == 0, "tests": "trains" if done.returncode == 0 else done.stderr.strip()}
    return result | {"seconds": round(time.monotonic() - began)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--output", type=Path, help="JSON file; others' results in it stay")
    parser.add_argument("--keep", type=Path, help="folder for the environments and pytest's output")
    arguments = parser.parse_args()
    if not shutil.which("uv"):
        parser.error("uv is not installed; pip install uv")
    results = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        done = run("uv", "build", "--quiet", "--out-dir", folder / "dist", ROOT)
        if done.returncode:
            raise SystemExit(done.stderr)
        for chosen in arguments.names or ENVIRONMENTS:
            environment = ENVIRONMENTS[chosen]
            package = next((folder / "dist").glob("*.tar.gz" if environment.archive else "*.whl"))
            shutil.rmtree(folder / f"{chosen} checkout", ignore_errors=True)
            shutil.rmtree(folder / chosen, ignore_errors=True)
            results[chosen] = attempt(environment, package, folder / chosen)
            print(json.dumps({chosen: results[chosen]}, indent=1), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
            if not arguments.keep:
                shutil.rmtree(folder / chosen, ignore_errors=True)
    return int(not all(results[chosen].get("passed") for chosen in arguments.names or ENVIRONMENTS))


if __name__ == "__main__":
    sys.exit(main())
