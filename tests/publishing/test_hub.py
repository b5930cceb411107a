"""Uploading, against a stand-in for the hub on this machine: real HTTP, the paths it asks."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import labkit as lk
from labkit.publishing.hub import check_repository, push


class Hub(BaseHTTPRequestHandler):
    """Takes repositories, large files and commits, and keeps them in `server.state`."""

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def do_POST(self):
        state, body = self.server.state, self.body()
        state["calls"].append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "who are you?"}, 401)
        elif self.path == "/api/repos/create":
            state["created"] = json.loads(body)
            self.answer({"url": self.address("/owner/name")})
        elif self.path == "/api/validate-yaml":
            state["card"] = json.loads(body)["content"]
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/owner/name/preupload/main":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path == "/owner/name.git/info/lfs/objects/batch":
            objects = [
                {
                    **file,
                    "authenticated": True,
                    "actions": {"upload": {"href": self.address(f"/store/{file['oid']}")}},
                }
                for file in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/owner/name/commit/main":
            state["commit"] = [json.loads(line) for line in body.splitlines()]
            url = self.address("/owner/name/commit/abc")
            self.answer({"success": True, "commitOid": "a" * 40, "commitUrl": url})
        else:
            self.answer({"error": f"no such path {self.path}"}, 404)

    def do_PUT(self):
        data = self.body()
        self.server.state["calls"].append("PUT")
        self.server.state["large"][self.path.removeprefix("/store/")] = data
        self.answer({})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"calls": [], "large": {}}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def labkit(hub, *arguments, token="hf_test"):
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": token,
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "labkit", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_merge_and_push(hub, tiny_base, tiny_adapter, tmp_path):
    out = tmp_path / "merged"
    done = labkit(hub, "merge", tiny_base, tiny_adapter, "--weights", "0,0,0.5,1", "--out", out,
                  "--push", "owner/name", "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: recipe.yaml names local folders" in done.stderr
    state = hub.state
    assert state["created"]["name"] == "name"
    assert state["created"]["organization"] == "owner"
    names = {path.name for path in out.iterdir()}
    uploaded, large = {}, {}
    for line in state["commit"]:
        if line["key"] == "file":
            assert line["value"]["encoding"] == "base64"
            uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            large[line["value"]["path"]] = state["large"].get(line["value"]["oid"])
    assert uploaded.keys() | large.keys() == names
    assert len(large) == 2
    for name, content in (uploaded | large).items():
        if name != "README.md":
            assert content == (out / name).read_bytes()
    for oid, content in state["large"].items():
        assert hashlib.sha256(content).hexdigest() == oid
    card = uploaded["README.md"].decode()
    assert "name = 'owner/name'\n" in card
    assert "name = 'merged'\n" in (out / "README.md").read_text()
    assert state["calls"].count("/api/models/owner/name/commit/main") == 1


def test_nothing_is_uploaded_unless_asked(hub, tiny_base, tiny_adapter, tmp_path):
    done = labkit(hub, "merge", tiny_base, tiny_adapter, "--weights", "0x4", "--out",
                  tmp_path / "merged", "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.state["calls"] == []


def test_push_a_baked_adapter_and_be_refused(hub, tiny_adapter, tmp_path):
    lk.bake(tiny_adapter, "0,0,0.5,1", tmp_path / "baked")
    done = labkit(hub, "push", tmp_path / "baked", "owner/name", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uploaded 5 files, 0.00 GB: http://127.0.0.1")
    assert hub.state["created"].get("private") or hub.state["created"]["visibility"] == "private"
    refused = labkit(hub, "push", tmp_path / "baked", "owner/name", token="hf_wrong")
    assert refused.returncode == 2
    assert "labkit: error: the hub did not take owner/name: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stderr


def test_what_cannot_be_pushed(tmp_path):
    with pytest.raises(lk.LabkitError, match="'name' is no repository of the hub; expected owner/"):
        check_repository("name")
    with pytest.raises(lk.LabkitError, match="'owner/name@main' is no repository of the hub"):
        push(tmp_path, "owner/name@main")
    with pytest.raises(lk.LabkitError, match=r"is no folder that labkit made \(expected receipt"):
        push(tmp_path, "owner/name")
