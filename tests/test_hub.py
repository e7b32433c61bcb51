"""Loading by Hub id, from a server on this machine that answers as the Hub does."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest
from conftest import GOLDEN

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """What the Hub answers. ``fault`` says how often the weights arrive otherwise, and how."""

    fault = ("", 0)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        known = parts[:2] == ["someone", "tiny"]
        path = GOLDEN / "distilbert-seqcls" / parts[-1]
        body, status, code = b"", 404, "EntryNotFound" if known else "RepoNotFound"
        if known and parts[2:3] == ["resolve"] and parts[3] not in ("main", COMMIT):
            code = "RevisionNotFound"
        elif known and path.is_file():
            body, status, code = path.read_bytes(), 200, ""
        is_large = path.suffix == ".safetensors"
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        fault = ""
        if is_large and self.command == "GET" and Hub.fault[1]:
            fault, Hub.fault = Hub.fault[0], (Hub.fault[0], Hub.fault[1] - 1)
        digest = hashlib.sha256(body) if is_large else hashlib.sha1(b"blob %d\0" % len(body) + body)
        self.send_response(206 if start else status)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            if fault == "flipped":
                body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
            self.wfile.write(body[start : start + 5000] if fault == "dropped" else body[start:])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(code, **environment):
        return subprocess.run(
            [sys.executable, "-c", f"import distilbert\n{code}"],
            env=os.environ
            | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield run
    server.shutdown()


def test_downloads_then_works_offline(hub):
    code = (
        "m = distilbert.DistilBertForSequenceClassification.from_pretrained('someone/tiny')\n"
        "t = distilbert.DistilBertTokenizer.from_pretrained('someone/tiny')\n"
        "print(m.config.num_labels, len(t))"
    )
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        result = hub(code, **environment)
        assert result.stdout.split() == ["3", "97"], result.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("someone/else", "", "no such repository"),
        ("someone/tiny", ", revision='v9'", "no revision 'v9'"),
        ("someone/tiny", ", local_files_only=True", "not in the local Hub cache"),
        ("some one/tiny", "", "the Hub"),
    ],
)
def test_what_goes_wrong_is_explained(hub, name, options, message):
    result = hub(f"distilbert.DistilBertConfig.from_pretrained({name!r}{options})")
    assert "CheckpointError" in result.stderr.splitlines()[-1]
    assert message in result.stderr.splitlines()[-1]


# The Hub's library waits before it tries again.
LOAD = "import time; time.sleep = lambda seconds: None; print(distilbert.DistilBertForSequenceClassification.from_pretrained('someone/tiny').config.num_labels)"


def test_a_connection_that_drops_is_taken_up_again(hub):
    Hub.fault = ("dropped", 1)
    assert hub(LOAD).stdout.split() == ["3"]


@pytest.mark.parametrize("fault, message", [("dropped", "model.safetensors broke off"), ("flipped", "arrived damaged")])
def test_a_download_that_fails_leaves_nothing_to_mislead_the_next(fault, message, hub):
    Hub.fault = (fault, 99)
    failed = hub(LOAD)
    Hub.fault = ("", 0)
    assert "CheckpointError" in failed.stderr.splitlines()[-1] and message in failed.stderr.splitlines()[-1]
    assert hub(LOAD).stdout.split() == ["3"]
