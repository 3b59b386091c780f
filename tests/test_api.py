"""What users rely on changes only by a decision."""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def test_the_public_names_and_commands_are_those_listed():
    spec = importlib.util.spec_from_file_location("list_api", HERE.parent / "tools" / "list_api.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    now, before = (text.splitlines() for text in (tool.listing(), (HERE / "api.txt").read_text()))
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    remedy = "if that is meant: python tools/list_api.py > tests/api.txt, and a line in CHANGELOG.md"
    assert not gone and not new, f"gone or changed: {gone}; new: {new}; {remedy}"
