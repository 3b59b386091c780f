"""A network by its name here, or by the import path of a function of the user's."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from cssoftmax.networks.image import lenet, plain3, plain5, plain7, resnet9, resnet18, whitenet, wideresnet
from cssoftmax.networks.sound import melnet, texturenet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "plain3": plain3,
    "plain5": plain5,
    "plain7": plain7,
    "resnet9": resnet9,
    "resnet18": resnet18,
    "whitenet": whitenet,
    "wideresnet": wideresnet,
    "melnet": melnet,
    "texturenet": texturenet,
}


class NetworkError(ValueError):
    """No such network; one line that names it and the remedy."""


def is_import_path(name: str) -> bool:
    """Whether it is ``package.module:function``, code of the user's.

    >>> is_import_path("mine.models:tiny"), is_import_path("lenet")
    (True, False)
    """
    module, colon, function = str(name).partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))


def build(name: str, channels: int, embedding_size: int, width: int) -> nn.Module:
    """The network of that name, with new weights: (N, channels, H, W) floats to embeddings (N, embedding_size).

    A function given as ``package.module:function`` is imported, from the working directory too, and called with those
    of the arguments ``channels``, ``embedding_size`` and ``width`` that it has.

    Raises:
        NetworkError: no such network, module or function, or what it returns is no ``nn.Module``.

    >>> build("lenet", 1, 16, width=4)[-1][0].out_features
    16
    """
    function = find(name)
    settings = {"channels": channels, "embedding_size": embedding_size, "width": width}
    try:
        taken = inspect.signature(function).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            names = {parameter.name for parameter in taken}
            settings = {key: value for key, value in settings.items() if key in names}
        network = function(**settings)
    except Exception as error:  # whatever the user's code raises
        raise NetworkError(f"network: {name} failed: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"network: {name} returned a {type(network).__name__}, not an nn.Module")
    return network


def find(name: str) -> Callable[..., Any]:
    """The function that makes the network of that name; NetworkError as in :func:`build`."""
    if name in NETWORKS:
        return NETWORKS[name]
    if not is_import_path(name):
        raise NetworkError(f"network: {name!r} is neither one of {', '.join(NETWORKS)} nor package.module:function")
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise NetworkError(
                f"network: no module {error.name!r} here or installed; run where it can be imported"
            ) from error
        raise NetworkError(f"network: {module} needs {error.name}, which is not installed") from error
    except AttributeError as error:
        raise NetworkError(f"network: {module} has no {attribute!r}") from error
    except Exception as error:  # whatever the user's code raises
        raise NetworkError(f"network: importing {module} failed: {_first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise NetworkError(f"network: {name} is a {type(found).__name__}, not a function that returns a network")
    function: Callable[..., Any] = found
    return function


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
