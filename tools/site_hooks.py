"""Hooks for mkdocs, so that pages need no network: TeX becomes MathML, and every script is the site's own."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

# What pymdownx.arithmatex leaves of $...$ and $$...$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    content = INLINE.sub(lambda found: mathml(found[1], "inline"), content)
    return DISPLAY.sub(lambda found: mathml(found[1], "block"), content)


# What lets a page that was opened from disk search.
SHIM = "https://unpkg.com/iframe-worker/shim"
OWN_SHIM = "javascripts/iframe-worker.js"


def on_post_page(output: str, page: Page, **_: Any) -> str:
    return output.replace(SHIM, get_relative_url(OWN_SHIM, page.url))


def on_post_template(output: str, **_: Any) -> str:
    return output.replace(SHIM, OWN_SHIM)  # the page of errors


def mathml(tex: str, display: str) -> str:
    """MathML of TeX as it stands in HTML.

    >>> mathml("c_y &gt; 0", "inline")[:53]
    '<math xmlns="http://www.w3.org/1998/Math/MathML" disp'
    """
    tex = html.unescape(tex).replace("{aligned}", "{align*}")
    tex = re.sub(r"\\tag\{(\w+)\}", r"\\qquad (\1)", tex)
    found = convert(tex, display=display)
    if "<mi>&</mi>" in found or "\\" in re.sub(r"<[^>]*>", "", found):
        raise ValueError(f"mathematics that has no MathML: {tex}")
    return found
