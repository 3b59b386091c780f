"""The network goes while something is fetched from the hub: one line, nothing half-fetched is used, and then it works.

Against a stand-in for the hub on this machine, which closes the connection in the middle of a file.
"""

import http.server
import json
import threading
from functools import partial

import datasets
import pytest
from processes import QUICK, ask_hub_at, command

from cssoftmax.embedder import Embedder

COMMIT = "1" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, a model or a data set, of a file and its card; ``broken`` cuts the file in two."""

    files: dict = {}  # noqa: RUF012  shared by the threads
    broken = False

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps(self.listing()).encode())

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):
            about = {"id": "me/photos", "sha": COMMIT, "private": False, "siblings": [], "tags": [], "downloads": 0}
            return self.answer(json.dumps(self.listing() if "/tree/" in path else about).encode())
        content = self.files.get(path.rpartition("/")[2])
        if content is None:
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        self.answer(content, headers={"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT}, body=body)

    def listing(self):
        return [{"type": "file", "path": n, "size": len(c), "oid": "2" * 40} for n, c in self.files.items()]

    def answer(self, content, code=200, headers=None, body=True):
        self.send_response(code)
        for key, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if body:
            cut = self.broken and len(content) > 1000
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Its address, once it answers."""
    monkeypatch.setattr(Hub, "files", {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_model_that_breaks_off_is_not_used(hub, trained, monkeypatch, tmp_path):
    Embedder.load(trained).save(tmp_path / "model.safetensors")
    monkeypatch.setitem(Hub.files, "model.safetensors", (tmp_path / "model.safetensors").read_bytes())
    words = ("embed", "hf:me/photos", trained.parent / "photos", "--output", tmp_path / "embeddings.parquet", "--quiet")
    monkeypatch.setattr(Hub, "broken", True)
    assert (
        "hf:me/photos: model.safetensors cannot be fetched"
        in command(*words, first=partial(ask_hub_at, hub, tmp_path)).err.splitlines()[-1]
    )
    assert not (tmp_path / "embeddings.parquet").exists()
    monkeypatch.setattr(Hub, "broken", False)
    assert command(*words, first=partial(ask_hub_at, hub, tmp_path)).code == 0


def test_a_data_set_that_breaks_off_is_not_trained_on(hub, trained, monkeypatch, tmp_path):
    photos = datasets.load_dataset("imagefolder", data_dir=str(trained.parent / "photos"), cache_dir=str(tmp_path))
    photos["train"].to_parquet(tmp_path / "train.parquet")
    card = b"---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
    monkeypatch.setattr(Hub, "files", {"train.parquet": (tmp_path / "train.parquet").read_bytes(), "README.md": card})
    words = ("train", "hf:me/photos", "--output", tmp_path / "run", "--quiet", *QUICK)
    monkeypatch.setattr(Hub, "broken", True)
    done = command(*words, first=partial(ask_hub_at, hub, tmp_path))
    assert done.code == 1 and "me/photos cannot be fetched from the Hugging Face hub" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(Hub, "broken", False)
    again = command(*words, first=partial(ask_hub_at, hub, tmp_path))
    assert again.code == 0, again.err
