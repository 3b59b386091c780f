"""The documentation builds without a warning, needs no network, and its commands are commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from cssoftmax import cli, losses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A broken link or anchor, or a page that is in no menu, is an error."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_pages_load_nothing_from_outside(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(https?:[^\"]*)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"(https?:[^\"]*)", text)
        assert not loaded, page


def test_mathematics_is_mathml(site):
    for page in ("theory.html", "losses/cs-softmax.html", "losses/curricularface.html"):
        text = (site / page).read_text()
        assert "<math" in text and "arithmatex" not in text and "\\frac" not in text


def test_docstrings_are_in_the_reference(site):
    text = (site / "api.html").read_text()
    assert "cross entropy" in text.lower() and ">>>" not in re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", [*losses.LOSSES, "center"])
def test_every_loss_has_a_page_with_its_equation_an_example_and_a_picture(name):
    text = (ROOT / "docs" / "losses" / f"{name}.md").read_text()
    assert "$" in text and "```python" in text and "::: cssoftmax." in text
    if name != "center":  # it has no P and N
        assert f"(../images/losses/{name}.png)" in text
        assert (ROOT / "docs" / "images" / "losses" / f"{name}.png").exists()


def commands():
    """Every `cssoftmax ...` of the pages' sh blocks and inline code, and whether it is a whole line."""
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        inline = re.findall(r"`(cssoftmax [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [line.strip() for line in lines] + [" ".join(code.split()) for code in inline]:
            if line.startswith("cssoftmax ") and not re.search(r"\b[A-Z]{2,}\b|\.\.\.", line):
                yield pytest.param(line, id=f"{page.stem}: {line}")


@pytest.mark.parametrize("line", [*commands()])
def test_a_command_of_the_pages_is_understood(line):
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(cli.app)
    context = command.make_context("cssoftmax", words)
    while isinstance(command, click.Group | typer.core.TyperGroup):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, words, parent=context)
    assert context.params
