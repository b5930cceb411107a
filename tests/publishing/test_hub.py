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
from labkit.publishing.hub import _notes, check_repository, push, select_files


class Hub(BaseHTTPRequestHandler):
    """Takes repositories, large files and commits, and keeps them in `server.state`."""

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content, status=200, *headers):
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (("Content-Type", "application/json"), *headers):
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def do_GET(self):
        state = self.server.state
        state["calls"].append(self.path)
        if self.path == "/api/models/owner/name" and "private" in state:
            content = {"id": "owner/name", "private": state["private"], "siblings": []}
            self.answer(content)
        else:
            self.answer({"error": "Repository not found"}, 401, ("X-Error-Code", "RepoNotFound"))

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
    *listed, last = done.stdout.splitlines()
    assert last.startswith("uploaded 5 files, 0.00 GB: http://127.0.0.1")
    assert [line.split("\t")[0] for line in listed] == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "gradient.png",
        "receipt.json",
    ]  # fmt: skip
    assert is_private(hub)
    refused = labkit(hub, "push", tmp_path / "baked", "owner/name", token="hf_wrong")
    assert refused.returncode == 2
    assert "labkit: error: the hub did not take owner/name: the hub does not accept your token " \
        "(401); log in again with hf auth login" in refused.stderr  # fmt: skip
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stderr


def is_private(hub):
    created = hub.state["created"]
    return created.get("private") or created.get("visibility") == "private"


def sent(hub):
    """The names of what was committed."""
    return {line["value"]["path"] for line in hub.state["commit"] if "path" in line["value"]}


SECRETS = (".env", ".token.json", "credentials.json", "notes.txt", "train.py", "id_rsa",
           "optimizer.safetensors", "private.tiktoken", "\x1b[31mred")  # fmt: skip


@pytest.mark.parametrize("hashes", [True, False])
def test_what_labkit_did_not_write_stays(hub, tiny_base, tiny_adapter, tmp_path, hashes):
    out = tmp_path / "merged"
    lk.plan(tiny_base, tiny_adapter, "0,0,0.5,1").write(out, progress=False, hashes=hashes)
    written = {path.name for path in out.iterdir()}
    for name in SECRETS:
        (out / name).write_text("secret")
    (tmp_path / "key").write_text("secret")
    (out / "LICENSE.txt").symlink_to(tmp_path / "key")
    (out / "merges.txt").symlink_to("notes.txt")
    os.mkfifo(out / "vocab.json")
    (out / ".git").mkdir()
    done = labkit(hub, "push", out, "owner/name")
    assert done.returncode == 0, done.stderr
    assert sent(hub) == written
    assert {line.split("\t")[0] for line in done.stdout.splitlines()[:-1]} == written
    assert b"secret" not in json.dumps(hub.state["commit"]).encode()
    assert not any(b"secret" in content for content in hub.state["large"].values())
    [note] = [line for line in done.stderr.splitlines() if "left behind" in line]
    assert note.startswith("labkit: note: left behind, as labkit did not write it: ")
    left = {*SECRETS[:-1], r"\x1b[31mred", "LICENSE.txt", "merges.txt", "vocab.json", ".git"}
    assert set(note.partition("write it: ")[2].split(", ")) == left
    assert is_private(hub)


def test_everyone_sees_it_only_when_asked(hub, tiny_adapter, tmp_path):
    lk.bake(tiny_adapter, "0,0,0.5,1", tmp_path / "baked")
    arguments = ("push", tmp_path / "baked", "owner/name", "--quiet")
    done = labkit(hub, *arguments, "--public")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not is_private(hub)
    hub.state["private"] = False
    del hub.state["commit"]
    refused = labkit(hub, *arguments)
    assert refused.returncode == 2
    assert (
        "labkit: error: the repository owner/name is there already, and everyone can see it; say "
        "that they may see this with --public, or choose another name"
    ) in refused.stderr
    assert "commit" not in hub.state
    assert labkit(hub, *arguments, "--public").returncode == 0
    hub.state["private"] = True
    done = labkit(hub, *arguments, "--public")
    assert done.returncode == 0
    assert "note: the repository is private and stays so" in done.stderr


def test_python_shows_what_went(tiny_adapter, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    class Taken(huggingface_hub.HfApi):
        def model_info(self, *_, **__):
            from types import SimpleNamespace

            return SimpleNamespace(private=True)

        def create_commit(self, *_, **__):
            assert "receipt.json\t" in capsys.readouterr().out  # it is said before it goes

    monkeypatch.setattr(huggingface_hub, "HfApi", Taken)
    lk.bake(tiny_adapter, "0,0,0.5,1", tmp_path / "baked")
    (tmp_path / "baked" / "mine").write_text("")
    shown = str(lk.push(tmp_path / "baked", "owner/name"))
    assert "uploaded https://huggingface.co/owner/name, private" in shown
    assert "5 files, 0.0" in shown
    assert "README.md, adapter_config.json, adapter_model.safetensors, gradient.png, rec" in shown
    assert "left behind, as labkit did not write it: mine" in shown


def test_many_files_that_stay_are_counted(tiny_adapter, tmp_path):
    lk.bake(tiny_adapter, "0,0,0.5,1", tmp_path / "baked")
    for number in range(25):
        (tmp_path / "baked" / f"{number:02}").write_text("")
    upload = select_files(tmp_path / "baked")
    assert len(upload.left) == 25
    assert next(_notes(tmp_path / "baked", upload)).endswith("18, 19 and 5 more")


def test_what_cannot_be_pushed(tmp_path):
    with pytest.raises(lk.LabkitError, match="'name' is no repository of the hub; expected owner/"):
        check_repository("name")
    with pytest.raises(lk.LabkitError, match="'owner/name@main' is no repository of the hub"):
        push(tmp_path, "owner/name@main")
    with pytest.raises(lk.LabkitError, match=r"is no folder that labkit made \(expected receipt"):
        push(tmp_path, "owner/name")
