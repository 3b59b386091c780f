"""Models on the Hugging Face hub."""

import os
from pathlib import Path

MODEL = "model.safetensors"
"""The file that holds all of a model; see :meth:`cssoftmax.embedder.Embedder.save`."""


class HubError(ValueError):
    """The hub cannot be reached, or refuses; one line that names the repository and the remedy."""


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads the files of ``folder`` to a model repository, which is made if there is none; returns its address.

    Signed in by ``hf auth login`` or ``$HF_TOKEN``; ``$HF_ENDPOINT`` names another hub.

    Raises:
        HubError: no access, no connection, or a name that is not ``owner/name``.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="cssoftmax")
    except Exception as error:  # the client raises its own, the network library's and the operating system's errors
        remedy = "sign in with `hf auth login`, and name a repository of yours, OWNER/NAME"
        raise HubError(f"{repository}: cannot be pushed ({_first_line(error)}); {remedy}") from error
    return str(url)


def fetch(repository: str) -> Path:
    """The model file of a repository, from the hub or, if it was fetched before and has not changed, from its cache.

    Raises:
        HubError: no such repository, no model of this package in it, or no connection.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(repository, MODEL, endpoint=os.environ.get("HF_ENDPOINT"))
    except Exception as error:  # as above
        remedy = "check the name and the connection; it must hold what `cssoftmax push` wrote"
        raise HubError(f"hf:{repository}: {MODEL} cannot be fetched ({_first_line(error)}); {remedy}") from error
    return Path(path)


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
