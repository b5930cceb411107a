"""What the hub says, in one line with a way out: asked over HTTP, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labkit.files.hub_answers import explain_hub

COMMIT = "c" * 40
PAGE = "https://huggingface.co/owner/gated"


class Hub(BaseHTTPRequestHandler):
    """A hub on which something is the matter with each repository, by its name."""

    FILES = ("config.json", "deep/config.json")

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.split("owner/")[1].split("/")[0]
        api = self.path.startswith("/api/")
        if name in ("missing", "private"):
            return self.answer(401, error="RepoNotFound")
        if name == "token":
            return self.answer(401, message="Invalid credentials in Authorization header")
        if name == "forbidden":
            return self.answer(403)
        if name == "busy":
            return self.answer(429)
        if name == "broken":
            return self.answer(500)
        if "no-such" in self.path:
            return self.answer(404, error="RevisionNotFound")
        if api and "/tree/" in self.path:
            found = [{"type": "file", "path": f, "size": 2, "oid": "0" * 40} for f in self.FILES]
            return self.answer(200, json.dumps(found).encode())
        if api:
            files = [{"rfilename": file} for file in self.FILES]
            content = {"id": f"owner/{name}", "sha": COMMIT, "private": False, "siblings": files}
            return self.answer(200, json.dumps(content).encode())
        if name == "gated":
            return self.answer(403 if self.headers.get("Authorization") else 401, error="GatedRepo")
        return self.answer(200, b"{}", ("ETag", '"e"'), ("X-Repo-Commit", COMMIT))

    def answer(self, status, body=b"{}", *headers, error="", message=""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (("X-Error-Code", error), ("X-Error-Message", message), *headers):
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def ask(tmp_path):
    """Ask a hub on this machine for several references, in a process of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    ask_all = (
        "import sys, labkit.files.references as r, labkit.errors as e\n"
        "def choose(_, names, fetch): return [name for name in names if name.endswith('.json')]\n"
        "for reference in sys.argv[1:]:\n"
        "    try: print(r.locate(reference, 'base model', choose).folder)\n"
        "    except e.LabkitError as error: print(error)\n"
    )

    def ask(*references, **environment):
        done = subprocess.run(
            [sys.executable, "-c", ask_all, *references],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_TOKEN": "",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


REFUSED = "is no folder here, and the hub did not give it: "


def test_what_the_hub_says_without_a_token(ask):
    said = ask("owner/there:deep", "owner/there:none", "owner/gated", "owner/missing",
               "owner/there@no-such", "owner/busy", "owner/broken", "owner/token")  # fmt: skip
    assert said[0].endswith(f"snapshots/{COMMIT}/deep")
    assert said[1] == "the hub's owner/there has no folder 'none'"
    assert said[2] == (
        f"the base model 'owner/gated' {REFUSED}it is gated; ask for access at {PAGE}, then log in "
        "with hf auth login; or name a folder"
    )
    assert f"{REFUSED}repository not found: there is none of that name, or it is private; check " \
        "the name, or log in with hf auth login" in said[3]  # fmt: skip
    assert f"{REFUSED}it has no such revision; name a branch, a tag or a commit" in said[4]
    assert f"{REFUSED}the hub had too many requests from here (429); wait some minutes, or log " \
        "in with hf auth login, which raises the limit" in said[5]  # fmt: skip
    assert f"{REFUSED}the hub has trouble of its own (500); try again later" in said[6]
    assert f"{REFUSED}the hub wants to know who you are (401); log in with hf auth" in said[7]


def test_what_the_hub_says_to_a_token(ask):
    said = ask("owner/gated", "owner/private", "owner/token", "owner/forbidden", "owner/busy",
               HF_TOKEN="hf_secret")  # fmt: skip
    assert f"{REFUSED}it is gated, and your account has no access to it yet; ask" in said[0]
    assert "it is private and your account may not see it; check the name, and your" in said[1]
    assert "the hub does not accept your token (401); log in again with hf auth login" in said[2]
    assert "your token may not do this (403); make one that may (to upload: one that can" in said[3]
    assert "the hub had too many requests from here (429); wait some minutes; or name" in said[4]
    assert not any("hf_secret" in line for line in said)


def test_what_is_said_without_a_network(ask):
    [offline] = ask("owner/there", HF_HUB_OFFLINE="1")
    assert f"{REFUSED}offline mode is on and it is not in the cache; unset HF_HUB_OFF" in offline
    [dead] = ask("owner/there", HF_ENDPOINT="http://127.0.0.1:9")
    assert f"{REFUSED}the hub cannot be reached and it is not in the cache; check the net" in dead
    # What is in the cache is found in either case.
    [folder] = ask("owner/there")
    assert ask("owner/there", HF_HUB_OFFLINE="1") == [folder]
    assert ask("owner/there", HF_ENDPOINT="http://127.0.0.1:9") == [folder]


def test_what_else_can_go_wrong():
    from huggingface_hub import errors

    full = OSError(28, "No space left on device", "/cache/blobs/x")
    assert explain_hub(full, "a/b") == "No space left on device (/cache/blobs/x)"
    assert "no token here; log in with hf" in explain_hub(
        errors.LocalTokenNotFoundError("x"), "a/b"
    )
    odd = explain_hub(RuntimeError("one\x1b\ntwo"), "a/b")
    assert odd == "one\\x1b; check the name and the network"
