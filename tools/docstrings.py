"""A griffe extension: docstrings as they are written here, in the Markdown that mkdocstrings reads."""

import re
from typing import Any

import griffe

# A doctest: from its first prompt to the next blank line.
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":\w+:`~?(?:\.|cssoftmax\.)?([\w.]+)`")
# "scale: > 0" is no quotation.
GREATER = re.compile(r"^( +[\w, ]+): >", re.MULTILINE)
LITERAL = re.compile(r"^( *)(.*)::$", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Doctests become code blocks, references to Python objects code, and ``::`` the colon it stands for.

    >>> print(markdown("See :class:`cssoftmax.Schedule`. Hence::"))
    See `Schedule`. Hence:
    """
    text = ROLE.sub(lambda found: f"`{found[1]}`", text)
    text = LITERAL.sub(lambda found: f"{found[1]}{found[2]}:" if found[2] else "", text)
    text = GREATER.sub(r"\1: \\>", text)
    return DOCTEST.sub(_fenced, text)


def _fenced(found: re.Match[str]) -> str:
    return f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```"
