"""constraints.txt is what the Makefile takes it for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECTIONS = {"train": "# make demo", "test": "# make test", "release": "# make dist"}


def pins(section):
    """Requirements of a section of constraints.txt, with the number of their hashes."""
    part = re.split(r"^# ", (ROOT / "constraints.txt").read_text(), flags=re.M)
    text = next(text for text in part if text.startswith(SECTIONS[section].removeprefix("# ")))
    lines = text.partition("\n")[2].replace("\\\n", " ").strip().splitlines()
    found = [(Requirement(line.partition("--hash")[0]), line.count("--hash=sha256:")) for line in lines]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in found}


def test_every_package_is_pinned_once_and_has_a_hash():
    names = [name for section in SECTIONS for name in pins(section)]
    assert len(names) == len(set(names)) > 100
    for section in SECTIONS:
        for requirement, hashes in pins(section).values():
            assert hashes and [one.operator for one in requirement.specifier] == ["=="], requirement


def test_what_an_extra_asks_for_is_pinned_in_its_section_or_one_before():
    known = {}
    for section in SECTIONS:
        known |= pins(section)
        asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"][section]
        for requirement in map(Requirement, asked):
            if requirement.name != PROJECT["name"]:
                pin, _ = known[canonicalize_name(requirement.name)]
                assert next(iter(pin.specifier)).version in requirement.specifier, f"{pin}, but {requirement}"
