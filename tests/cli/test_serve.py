"""`lynx-video serve` and `lynx-video keys`: what they refuse before anything runs, and keys from their making to their end."""

import json
import socket

import pytest

pytest.importorskip("fastapi")


def test_keys_are_made_listed_and_revoked(lynx, tmp_path):
    data = ("--data", tmp_path / "data")
    assert "no keys" in lynx("keys", "list", *data).out
    made = lynx("keys", "add", "ada", *data)
    assert made.code == 0
    token, line = made.out.splitlines()
    assert token.startswith("lynx_")
    assert "shown once" in line
    second = json.loads(lynx("keys", "add", "ada", "--json", *data).out)
    assert second["token"] not in (token, "")
    listed = lynx("keys", "list", *data).out
    assert listed.count("ada") == 2
    assert token not in listed
    assert lynx("keys", "revoke", second["id"], *data).out == f"{second['id']} of ada is revoked.\n"
    found = json.loads(lynx("keys", "list", "--json", *data).out)["keys"]
    assert [one["revoked_at"] is None for one in found] == [True, False]
    again = lynx("keys", "revoke", second["id"], *data)
    assert again.code == 2
    assert "still good" in again.err
    assert lynx("keys", "add", "a\nb", *data).code == 2
    assert token not in "".join(one.read_bytes().decode("latin-1") for one in (tmp_path / "data").iterdir())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_without_keys_only_this_machine(lynx, tmp_path, host):
    ended = lynx("serve", "--data", tmp_path / "data", "--host", host)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"--host {host} can be reached from elsewhere" in ended.err
    assert "lynx-video keys add" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "70000"), "--port must be from 0 to 65535"),
        (("--workers", "-1"), "--workers must be from 0"),
        (("--queue-limit", "0"), "--queue-limit must be from 1"),
        (("--keep-days", "0"), "--keep-days must be from"),
        (("--allow-url-fetch", "http://x"), "--allow-url-fetch 'http://x'"),
        (("--database", "mysql://a@b/c"), "--database mysql://"),
        (("--model", "lynx-full", "--models", "nowhere"), "nowhere"),
        (("--signing-key", "nowhere.pem"), "without its certificate"),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)
def test_what_cannot_be_served(lynx, tmp_path, arguments, said):
    ended = lynx("serve", "--data", tmp_path / "data", "--port", "0", *arguments)
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_port_that_is_taken(lynx, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = lynx("serve", "--data", tmp_path / "data", "--port", port)
    assert ended.code == 2
    assert f"--port {port}: can't be listened on" in ended.err


def test_a_data_folder_that_cannot_be(lynx, tmp_path):
    (tmp_path / "data").write_text("a file")
    ended = lynx("serve", "--data", tmp_path / "data")
    assert ended.code == 2
    assert "data folder cannot be made" in ended.err


def test_without_its_packages(lynx, tmp_path, monkeypatch):
    import sys

    for name in [one for one in sys.modules if one.startswith(("lynx_video.server.", "sqlalchemy"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for command in (("serve",), ("keys", "list")):
        ended = lynx(*command, "--data", tmp_path / "data")
        assert ended.code == 1
        assert "pip install 'lynx-video[serve]'" in ended.err
