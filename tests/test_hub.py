"""Push and load, against a stand-in for the Hugging Face hub on this machine: what it answers is what the client needs,
not all that the real one does. Nothing here reached the real one."""

import base64
import http.server
import json
import threading

import huggingface_hub
import pytest

from cssoftmax import hub, jobs
from cssoftmax.embedder import Embedder
from cssoftmax.export import publish
from cssoftmax.hub import HubError
from cssoftmax.runs import JobError, Source


class Hub(http.server.BaseHTTPRequestHandler):
    """Model repositories in memory: create, commit of small files, download."""

    repositories: dict = {}  # noqa: RUF012  shared by the threads

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            settings = json.loads(body)
            name = f"{settings.get('organization') or 'me'}/{settings['name']}"
            self.repositories.setdefault(name, {})
            self.answer(200, {"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            chosen = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": chosen})
        elif parts[4:5] == ["commit"]:
            name = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/1", "commitOid": "1" * 40})

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        owner, name, _, _, *path = self.path.strip("/").split("/")
        content = self.repositories.get(f"{owner}/{name}", {}).get("/".join(path))
        if content is None:
            return self.answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": "1" * 40}
        self.answer(200, content if body else b"", headers | {"Content-Length": str(len(content))})

    def answer(self, code, value, headers=None):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for key, text in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    Hub.repositories.clear()
    yield server.address
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(make_photos, tmp_path):
    changes = {"width": 2, "embedding_size": 4, "epochs": 1, "batch_size": 8}
    return jobs.train(
        Source(str(make_photos()), cache_dir=tmp_path / "cache"), tmp_path / "run", recipe_changes=changes
    )


def test_a_run_is_pushed_and_loaded_as_it_is(stand_in, run, tmp_path):
    embedder = Embedder.load(run)
    assert publish(embedder, run, "me/photos") == f"{stand_in}/me/photos"
    pushed = Hub.repositories["me/photos"]
    assert sorted(pushed) == ["README.md", "config.json", "model.safetensors", "summary.json"]
    assert 'Embedder.load("hf:me/photos")' in pushed["README.md"].decode()
    assert all(str(tmp_path).encode() not in content for content in pushed.values())
    files = sorted((tmp_path / "photos").rglob("*.png"))
    assert Embedder.load("hf:me/photos").predict(files) == embedder.predict(files)
    publish(embedder, run, "me/photos")  # again, into what is there


def test_what_the_hub_refuses_is_one_line(stand_in, run, monkeypatch, tmp_path):
    embedder = Embedder.load(run)
    for repository in ("me/nothing", "not a name"):
        with pytest.raises(HubError, match=f"hf:{repository}: model.safetensors cannot be fetched") as caught:
            Embedder.load(f"hf:{repository}")
        assert "\n" not in str(caught.value)
    with pytest.raises(JobError, match="classes cannot be kept on the hub"):
        embedder.save_enrolled("hf:me/photos")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubError, match=r"me/photos: cannot be pushed .* sign in with `hf auth login`") as caught:
        hub.push(tmp_path / "run", "me/photos")
    assert "\n" not in str(caught.value)
    (run / "summary.json").unlink()
    with pytest.raises(JobError, match="no evaluated run here"):
        publish(embedder, run, "me/photos")
