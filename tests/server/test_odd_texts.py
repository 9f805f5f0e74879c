"""Texts that a database may not take: an answer of the service's own, never an internal error."""

import base64
import json

import pytest
from asked import PROMPT
from starlette.testclient import TestClient

from lynx_video.server.app import make_app
from lynx_video.server.config import ServeFlags
from lynx_video.server.routes import identities
from lynx_video.server.service import make_service
from lynx_video.studio.setup import Setup

ODD = ("a\0b", "\0", "\ufffe", "\U0001f600", "e\u0301", "\x7f\x1b[2J", "\ud83d")


@pytest.fixture
def client(store, database):
    """A client of a service over this kind of database."""
    service = make_service(store, ServeFlags(), Setup(), database)
    service.desk.open()
    with TestClient(make_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
        yield opened


def test_in_fields(client, portrait, monkeypatch):
    monkeypatch.setattr(identities, "PATIENCE", 0.0)
    url = "data:image/png;base64," + base64.b64encode(portrait).decode()
    for text in ODD:
        for field in ("prompt", "negative_prompt", "consent", "no_watermark", "seed", "preset", "model", "identity"):
            body = {"prompt": PROMPT, "input_reference": {"image_url": url}, field: f"{PROMPT} {text}"}
            answer = client.post("/v1/videos", content=json.dumps(body), headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 404, 429), (field, text, answer.text)
            if answer.status_code == 200:
                assert client.get(f"/v1/videos/{answer.json()['id']}").status_code == 200
                assert client.delete(f"/v1/videos/{answer.json()['id']}").status_code == 200
        for field in ("name", "consent"):
            answer = client.post(
                "/v1/identities", files={"portrait": ("me.png", portrait)}, data={field: text.encode(errors="replace").decode()}
            )
            assert answer.status_code < 500, (field, text, answer.text)


def test_in_addresses(client):
    for path in ("/v1/videos?after=", "/v1/identities?after=", "/v1/videos/", "/v1/identities/", "/v1/models/"):
        for text in ("%00", "a%00", "%EF%BF%BE", "%ff", "video_%00"):
            answer = client.get(f"{path}{text}")
            assert answer.status_code in (400, 404, 422), (path, text, answer.text)


def test_in_keys(client, portrait):
    for key in ("", " ", "\t", "caf\u00e9".encode("latin-1"), "x" * 255, "x" * 256):
        answer = client.post(
            "/v1/videos",
            files={"input_reference": ("me.png", portrait)},
            data={"prompt": PROMPT},
            headers={"idempotency-key": key},
        )
        assert answer.status_code in (200, 400), (key, answer.text)
        assert answer.status_code == 200 or answer.json()["error"]["param"], key
