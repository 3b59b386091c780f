"""Lists what users may rely on: public names with their arguments, and the commands with their options.

    python tools/list_api.py > tests/api.txt

A test compares the list with the program, so that a break is a decision.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator

import typer

# The public names of each module: those that it lists itself, or these.
MODULES: dict[str, tuple[str, ...]] = {
    "cssoftmax": (),
    "cssoftmax.functional": ("cs_softmax_loss", "similarity_loss"),
    "cssoftmax.sharded": ("shard_loss",),
    "cssoftmax.sklearn": ("CSSoftmaxClassifier",),
    "cssoftmax.embedder": ("Embedder",),
    "cssoftmax.data": (),
    "cssoftmax.metrics": (),
    "cssoftmax.networks": (),
    "cssoftmax.recipes": (),
    "cssoftmax.comparison": (),
}


def names() -> Iterator[str]:
    for module_name, listed in MODULES.items():
        module = importlib.import_module(module_name)
        for name in sorted(listed or module.__all__):
            yield from described(f"{module_name}.{name}", getattr(module, name))


def described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield name + arguments(value)
        for method, function in sorted(vars(value).items()):
            if not method.startswith("_") and (inspect.isfunction(function) or isinstance(function, classmethod)):
                yield f"{name}.{method}" + arguments(getattr(value, method))
    elif callable(value):
        yield name + arguments(value)
    elif not inspect.ismodule(value):
        yield name


def arguments(value: object) -> str:
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    text = str(signature.replace(parameters=kept, return_annotation=signature.empty))
    return re.sub(r"<function \S+ at 0x\w+>", "<function>", text)


def commands() -> Iterator[str]:
    from cssoftmax.cli import app

    def walk(command: object, words: str) -> Iterator[str]:
        for parameter in sorted(command.params, key=lambda parameter: parameter.name):  # type: ignore[attr-defined]
            flags = " ".join(sorted((*parameter.opts, *parameter.secondary_opts)))
            if flags.startswith("-") and "help" not in flags and "completion" not in flags:
                yield f"{words} {flags}"
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from walk(inner, f"{words} {name}")

    yield from walk(typer.main.get_command(app), "cssoftmax")


def listing() -> str:
    return "\n".join((*names(), *commands(), ""))


def main() -> int:
    print(listing(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
