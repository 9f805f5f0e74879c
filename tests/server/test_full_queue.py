"""A full queue: who is told so before their picture is looked at, and who is answered all the same."""

from __future__ import annotations

from typing import Any

import pytest
from asked import PROMPT, refused


@pytest.mark.parametrize(("path", "field"), [("/v1/videos", "input_reference"), ("/v1/identities", "portrait")])
def test_a_new_key_costs_nothing_and_a_known_one_is_answered(
    asking: Any, portrait: bytes, monkeypatch: Any, path: str, field: str
) -> None:
    from lynx_video.server.routes import identities

    monkeypatch.setattr(identities, "PATIENCE", 0.0)
    client = asking(queue_limit=1)
    fields = {"prompt": PROMPT} if path == "/v1/videos" else {"name": "Ada"}

    def send(picture: bytes, **headers: str) -> Any:
        return client.post(path, data=fields, files={field: ("me.png", picture)}, headers=headers)

    first = send(portrait, **{"Idempotency-Key": "a"})
    assert first.status_code in (200, 202)
    # What is no picture would be 415: it was not looked at.
    for headers in ({}, {"Idempotency-Key": "b"}):
        answer = send(b"no picture", **headers)
        refused(answer, 429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
    again = send(portrait, **{"Idempotency-Key": "a"})
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    refused(send(b"no picture", **{"Idempotency-Key": "a"}), 415, "unknown_kind", field)
