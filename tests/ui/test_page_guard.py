"""Who may reach the page, and what it never does for them."""

import asyncio
import json
import os
import socket

import pytest

from lynx_video.errors import BadRequest
from lynx_video.studio.setup import Setup
from lynx_video.ui.guard import LARGEST_BODY, Inward, is_loopback, login, read_password
from lynx_video.ui.serve import PageFlags, free_port, gradio_at_home, serve


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_password(host):
    assert is_loopback(host)
    assert read_password(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org", "127.0.0.1.example.org", ""])
def test_others_need_one(host):
    with pytest.raises(BadRequest, match="give them a --password USER:FILE"):
        read_password(host, None)


def test_a_password_comes_from_a_file(tmp_path):
    file = tmp_path / "password.txt"
    file.write_text("correct horse battery\n")
    assert read_password("0.0.0.0", f"ann:{file}") == ("ann", "correct horse battery")
    assert read_password("127.0.0.1", f"ann:{file}") == ("ann", "correct horse battery")
    file.write_text("short\n")
    for wrong, words in (
        (f"ann:{file}", "holds 5 characters, at least 12"),
        (f"ann:{tmp_path}/none", "can't be read"),
        (f"ann:{tmp_path}", "can't be read"),
        (str(file), "is USER:FILE"),
        (f":{file}", "is USER:FILE"),
        ("ann:", "is USER:FILE"),
    ):
        with pytest.raises(BadRequest, match=words):
            read_password("0.0.0.0", wrong)


def test_the_page_is_refused_before_anything_is_loaded(tmp_path, lynx_ui):
    said = []
    with pytest.raises(BadRequest, match="lets other machines in"):
        serve(PageFlags(host="0.0.0.0", output_dir=tmp_path / "clips"), Setup(), said.append)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="is a file"):
        serve(PageFlags(output_dir=tmp_path / "file"), Setup(), said.append)
    assert said == []
    assert not (tmp_path / "clips").exists()
    done = lynx_ui("--host", "0.0.0.0")
    assert (done[0], "lets other machines in" in done[1], done[1].count("\n")) == (2, True, 1)
    assert lynx_ui("--port", "70000")[0] == 2


@pytest.fixture
def lynx_ui(capfd, monkeypatch):
    """lynx_ui(...) runs `lynx-video ui` in this process, where it ends at once: exit code and stderr."""
    from lynx_video.cli.main import run

    monkeypatch.delenv("LYNX_VIDEO_DEBUG", raising=False)

    def call(*arguments):
        capfd.readouterr()
        return run(["ui", *arguments]), capfd.readouterr().err

    return call


def test_a_wrong_password_takes_its_time(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    right = login("ann", "correct horse battery")
    assert asyncio.run(right("ann", "correct horse battery"))
    assert slept == []
    for name, password in (("ann", "wrong"), ("bob", "correct horse battery"), ("änn", "ü"), ("", "")):
        assert not asyncio.run(right(name, password))
    assert len(slept) == 4


def passed(path, body=b"", method="POST"):
    """What the guard lets through: the status it answers with itself, or the body that arrives behind it."""
    sent, arrived = [], []
    chunks = [body[at : at + 100_000] for at in range(0, max(1, len(body)), 100_000)]

    async def app(_, receive, send):
        while True:
            message = await receive()
            arrived.append(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(Inward(app)({"type": "http", "path": path, "method": method}, receive, send))
    return sent[0]["status"], b"".join(arrived)


def test_no_address_is_fetched_for_anyone():
    data = {"data": [{"path": "/tmp/a.png", "meta": {"_type": "gradio.FileData"}}, "see http://example.org"], "fn_index": 1}
    body = json.dumps(data).encode()
    assert passed("/gradio_api/queue/join", body) == (200, body)
    data["data"][0]["path"] = "http://169.254.169.254/latest/meta-data"
    assert passed("/gradio_api/queue/join", json.dumps(data).encode()) == (403, b"")
    assert passed("/gradio_api/run/predict", json.dumps({"data": [[{"a": data["data"][0]}]]}).encode())[0] == 403
    for path in (
        "/gradio_api/file=http://example.org/a.png",
        "/gradio_api/file=HTTPS://x",
        "/gradio_api/proxy=https://x.hf.space/a",
    ):
        assert passed(path, method="GET") == (403, b"")
    assert passed("/gradio_api/file=/tmp/x/clip.mp4", method="GET")[0] == 200
    assert passed("/gradio_api/run/upload", json.dumps(data).encode()) == (403, b""), "only the upload itself is let through"
    assert passed("/gradio_api/upload", b"--boundary http://") == (200, b"--boundary http://")


def test_no_endless_request_is_read():
    assert passed("/gradio_api/queue/join", b"[" + b" " * LARGEST_BODY + b"]") == (413, b"")
    words = json.dumps({"data": ["word " * 10_000]}).encode()
    assert passed("/gradio_api/queue/join", words) == (200, words)
    deep = b"[" * 50_000 + b"]" * 50_000
    assert passed("/gradio_api/queue/join", deep)[0] in (200, 403)


def test_gradio_is_told_nothing_that_opens_more(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    before = dict(os.environ)
    with gradio_at_home(tmp_path):
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["GRADIO_TEMP_DIR"].startswith(str(tmp_path))
        assert "GRADIO_SHARE" not in os.environ
        assert "GRADIO_ALLOWED_PATHS" not in os.environ
    assert {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")} == {
        name: value for name, value in before.items() if name.startswith("GRADIO_")
    }


def test_a_free_port_is_free():
    port = free_port("127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
    with pytest.raises(BadRequest, match="can't be listened on"):
        free_port("203.0.113.9")
