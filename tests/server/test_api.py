"""Requests to the app in this process: what is taken and answered, and everything that is refused, with nothing left behind."""

import errno
import io
import json
import sqlite3

import numpy as np
import pytest
from asked import PROMPT, ask, data_url, left, refused
from PIL import Image

from lynx_video.config import GenerateConfig
from lynx_video.server.forms import NOT_OFFERED, VideoForm
from lynx_video.server.jobs import NewJob, new_id


def test_a_form_and_json_ask_for_the_same(asking, portrait):
    client = asking()
    extras = {"seed": 7, "num_frames": 5, "guidance_scale_i": "none", "ip_blocks": "0-2", "best_of": 2, "private": False}
    form = ask(client, portrait, "../../etc/me.png", **{key: str(value) for key, value in extras.items()}).json()
    whole = {"prompt": PROMPT, "input_reference": data_url(portrait), **extras, "ip_blocks": [0, 1, 2]}
    plain = client.post("/v1/videos", json=whole).json()
    nested = client.post("/v1/videos", json={**whole, "input_reference": {"image_url": data_url(portrait)}}).json()
    jobs = [client.service.queue.get("local", "video", one["id"]) for one in (form, plain, nested)]
    same = [{key: value for key, value in job.request.items() if key not in ("portrait", "shown")} for job in jobs]
    assert same[0] == same[1] == same[2]
    assert same[0]["generation"] == {"seed": 7, "num_frames": 5, "guidance_scale_i": "none", "ip_blocks": [0, 1, 2]}
    assert jobs[0].steps == 40, "two clips of 20 steps"
    assert form["lynx"]["portrait"] == "me.png", "a client's name is only shown, without its folders"
    assert jobs[0].request["portrait"] == f"{form['id']}.png"
    assert left(client) == sorted(f"uploads/{one['id']}.png" for one in (form, plain, nested))
    assert (form["object"], form["model"], form["status"], form["progress"]) == ("video", "nano", "queued", 0)
    assert (form["size"], form["seconds"], form["prompt"]) == ("64x64", "0.62", PROMPT)
    assert [one["lynx"]["position"] for one in (form, plain, nested)] == [0, 1, 2]


def test_seconds_and_size(asking, portrait):
    client = asking()
    made = ask(client, portrait, seconds="4", size="80x48").json()
    assert (made["seconds"], made["size"], made["lynx"]["num_frames"]) == ("4.12", "80x48", 33)
    assert ask(client, portrait, seconds="2", fps="16").json()["lynx"]["num_frames"] == 33
    for size in ("64", "64x", "axb", "64x64x64"):
        refused(ask(client, portrait, size=size), 400, "bad_request", "size")
    refused(ask(client, portrait, size="65x64"), 400, "bad_request", "width")
    for seconds in ("0", "-1", "nan", "inf", "four"):
        refused(ask(client, portrait, seconds=seconds), 400, "bad_request", "seconds")
    refused(ask(client, portrait, seconds="1", num_frames="5"), 400, "bad_request", "seconds")


def test_every_setting_of_a_generation_is_offered():
    offered = set(VideoForm.model_fields)
    assert set(GenerateConfig.__dataclass_fields__) - NOT_OFFERED <= offered
    assert all(one.description for name, one in VideoForm.model_fields.items() if name != "input_reference")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "bad_request", None),
        ({"prompt": " \n"}, "bad_request", None),
        ({"prompt": "word " * 10_000}, "bad_field", "prompt"),
        ({"prompt": "a\0b"}, "bad_request", "prompt"),
        ({"num_frames": "6"}, "bad_request", "num_frames"),
        ({"num_frames": "-3"}, "bad_request", "num_frames"),
        ({"num_frames": "many"}, "bad_field", "num_frames"),
        ({"seed": "-1"}, "bad_request", "seed"),
        ({"seed": "9" * 400}, "bad_request", "seed"),
        ({"fps": "nan"}, "bad_request", "fps"),
        ({"preset": "warp"}, "bad_request", None),
        ({"best_of": "0"}, "bad_request", "best_of"),
        ({"best_of": "1000"}, "too_much", None),
        ({"num_frames": "2001"}, "too_much", None),
        ({"min_similarity": "2"}, "bad_request", "min_similarity"),
        ({"ip_blocks": "9-"}, "bad_request", "ip_blocks"),
        ({"ip_blocks": "90"}, "bad_request", None),
        ({"idle_models": "free"}, "unknown_field", "idle_models"),
        ({"height": "64"}, "unknown_field", "height"),
        ({"sneed": "1"}, "unknown_field", "sneed"),
        ({"model": "sora-2"}, "model_not_found", "model"),
        ({"identity": "ident_" + "0" * 32}, "identity_not_found", "identity"),
        ({"identity": "../../x"}, "identity_not_found", "identity"),
        ({"face_index": "1"}, "no_such_face", "face_index"),
        ({"face_index": "-1"}, "bad_request", "face_index"),
    ],
)
def test_fields_that_cannot_be(asking_once, portrait, fields, code, param):
    answer = ask(asking_once, portrait, **fields)
    status = 404 if code.endswith("_not_found") else 400
    error = refused(answer, status, code, param)
    assert "--" not in error["message"], "fields, not options of a command"
    assert str(asking_once.service.folder.path) not in error["message"]
    assert left(asking_once) == []


@pytest.fixture
def asking_once(asking):
    return asking()


def test_unknown_fields_are_named_all(asking_once):
    answer = asking_once.post("/v1/videos", json={"prompt": "x", "foo": 1, "bar": 2})
    assert "'bar', 'foo'" in refused(answer, 400, "unknown_field", "foo")["message"]


def pictures():
    """Pictures that cannot be used: name, bytes, status, code."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(buffer, "PNG")
    yield "pixel.png", buffer.getvalue(), 400, "bad_picture"
    yield "text.png", b"hello, I am a text\n", 415, "unknown_kind"
    yield "empty.png", b"", 400, "bad_picture"
    blank = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(blank, "PNG")
    yield "blank.png", blank.getvalue(), 400, "no_face"
    yield "cut.png", blank.getvalue()[:60], 400, "bad_picture"
    huge = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(huge, "PNG")
    yield "huge.png", huge.getvalue(), 413, "too_large"


@pytest.mark.parametrize(
    ("name", "picture", "status", "code"), list(pictures()), ids=lambda one: one if isinstance(one, str) else None
)
def test_pictures_that_cannot_be_used(asking_once, name, picture, status, code):
    error = refused(ask(asking_once, picture, name), status, code, "input_reference")
    assert name in error["message"]
    answer = asking_once.post("/v1/identities", files={"portrait": (name, picture, "image/png")})
    refused(answer, status, code, "portrait")
    if code != "no_face":
        refused(asking_once.post("/v1/faces", files={"portrait": (name, picture, "image/png")}), status, code, "portrait")
    assert left(asking_once) == []
    assert asking_once.service.queue.known() == set()


def test_several_faces_and_none_chosen(asking_once, crowd):
    for answer in (
        ask(asking_once, crowd, "two.png"),
        asking_once.post("/v1/identities", files={"portrait": ("two.png", crowd, "image/png")}),
    ):
        error = refused(answer, 400, "several_faces", "face_index")
        assert [one["index"] for one in error["faces"]] == [0, 1]
        assert all(len(one["box"]) == 4 for one in error["faces"])
    assert left(asking_once) == []
    made = ask(asking_once, crowd, "two.png", face_index="1").json()
    assert asking_once.service.queue.get("local", "video", made["id"]).request["face_index"] == 1


def test_faces(asking_once, crowd):
    found = asking_once.post("/v1/faces", files={"portrait": ("two.png", crowd, "image/png")}).json()["data"]
    assert len(found) == 2
    centres = sorted((one["box"][0] + one["box"][2]) / 2 for one in found)
    width = Image.open(io.BytesIO(crowd)).width
    assert centres[0] < width / 2 < centres[1]
    assert left(asking_once) == []


def test_a_request_says_who(asking_once, portrait):
    refused(asking_once.post("/v1/videos", json={"prompt": PROMPT}), 400, "bad_request", "input_reference")
    body = {"prompt": PROMPT, "input_reference": data_url(portrait), "identity": "ident_" + "0" * 32}
    refused(asking_once.post("/v1/videos", json=body), 404, "identity_not_found", "identity")
    refused(asking_once.post("/v1/identities", json={}), 400, "missing_field", "portrait")
    for value in (
        {"file_id": "file_1"},
        {"image_url": "https://example.com/a.png"},
        {"x": 1},
        7,
        {"image_url": 3},
        "http://10.0.0.1/",
    ):
        answer = asking_once.post("/v1/videos", json={"prompt": PROMPT, "input_reference": value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input_reference"
    assert left(asking_once) == []


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_json"),
        (b"[1]", "application/json", 400, "bad_json"),
        (b'{"prompt": NaN}', "application/json", 400, "bad_json"),
        (b"[" * 100_000, "application/json", 400, "bad_json"),
        (b"\xff\xfe", "application/json", 400, "bad_json"),
        (b'{"prompt": "\\ud800"}', "application/json", 400, "bad_field"),
        (b'{"prompt": {"a": 1}}', "application/json", 400, "bad_field"),
        (b"{}", "application/json", 400, "missing_field"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"prompt", "", 415, "unsupported_media_type"),
        (b"nonsense", "multipart/form-data", 400, "bad_request"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "bad_request"),
    ],
)
def test_bodies_that_are_none(asking_once, body, kind, status, code):
    answer = asking_once.post("/v1/videos", content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert left(asking_once) == []


def test_a_part_is_given_once_and_files_only_where_they_belong(asking_once):
    twice = [("prompt", (None, "x")), ("prompt", (None, "y"))]
    refused(asking_once.post("/v1/videos", files=twice), 400, "bad_request", "prompt")
    refused(asking_once.post("/v1/videos", files={"prompt": ("x.txt", b"x")}), 400, "unknown_field", "prompt")


def test_routes_methods_and_queries_that_are_not_there(asking_once):
    refused(asking_once.get("/v1/nothing"), 404, "not_found")
    refused(asking_once.put("/v1/videos"), 405, "method_not_allowed")
    refused(asking_once.get("/v1/videos?limit=0"), 400, "bad_field", "limit")
    refused(asking_once.get("/v1/videos?order=up"), 400, "bad_field", "order")
    refused(asking_once.get("/v1/videos?after=video_x"), 400, "bad_request", "after")
    for path in ("video_x", "%00", "..%2f..%2fx", "video_" + "0" * 32, "video_" + "0" * 32 + "%0a"):
        assert asking_once.get(f"/v1/videos/{path}").status_code == 404
        assert asking_once.delete(f"/v1/videos/{path}").status_code == 404


def test_a_body_that_is_too_large(asking, portrait):
    client = asking(max_upload_mb=1)
    answer = ask(client, portrait + b"\0" * 2**20)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    assert ask(client, portrait + b"\0" * 3 * 2**20).status_code == 413
    assert left(client) == []


def test_idempotency(asking_once, portrait):
    key = {"Idempotency-Key": "k1"}
    first = ask(asking_once, portrait, headers=key, seed="3")
    assert "Idempotent-Replayed" not in first.headers
    body = {"prompt": PROMPT, "input_reference": data_url(portrait), "seed": 3}
    for again in (ask(asking_once, portrait, headers=key, seed="3"), asking_once.post("/v1/videos", json=body, headers=key)):
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["Idempotent-Replayed"] == "true"
    refused(ask(asking_once, portrait, headers=key, seed="4"), 409, "idempotency_key_reused", "Idempotency-Key")
    assert left(asking_once) == [f"uploads/{first.json()['id']}.png"]
    refused(ask(asking_once, portrait, headers={"Idempotency-Key": "k" * 300}), 400, "bad_field", "idempotency-key")
    refused(ask(asking_once, portrait, headers={"Idempotency-Key": "k2"}, seed="-5"), 400, "bad_request", "seed")
    assert ask(asking_once, portrait, headers={"Idempotency-Key": "k2"}).status_code == 200, "a refusal uses no key up"


def test_a_full_queue(asking, portrait):
    client = asking(queue_limit=2)
    key = {"Idempotency-Key": "k"}
    first = ask(client, portrait, headers=key)
    ask(client, portrait)
    for headers in (None, {"Idempotency-Key": "other"}):
        answer = ask(client, portrait, headers=headers)
        refused(answer, 429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
    assert ask(client, portrait, headers=key).json()["id"] == first.json()["id"], "a repeat needs no place"
    assert len(left(client)) == 2
    client.delete(f"/v1/videos/{first.json()['id']}")
    assert ask(client, portrait).status_code == 200


def test_retry_after_is_what_clips_took(asking, portrait):
    client = asking(queue_limit=1)
    queue = client.service.queue
    queue.submit(NewJob(id=new_id("video"), kind="video", owner="local", request={}, facts={"private": False}), 10)
    job = queue.claim("w")
    with client.service.database.write() as connection:
        from sqlalchemy import update

        from lynx_video.server.database import jobs

        connection.execute(update(jobs).values(started_at=job.started_at - 42))
    from dataclasses import replace

    queue.finish(replace(job, started_at=job.started_at - 42), {})
    ask(client, portrait)
    assert int(ask(client, portrait).headers["Retry-After"]) in (42, 43)


def test_the_rate_of_a_key_is_limited(asking):
    client = asking(rate_limit=3)
    assert [client.get("/v1/videos").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    answer = client.get("/v1/videos")
    refused(answer, 429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert client.get("/health").status_code == 200


def test_consent_can_be_asked_for(asking, portrait):
    client = asking(require_consent=True)
    refused(ask(client, portrait), 400, "consent_required", "consent")
    refused(ask(client, portrait, consent=" "), 400, "consent_required", "consent")
    refused(client.post("/v1/identities", files={"portrait": ("a.png", portrait)}), 400, "consent_required", "consent")
    assert ask(client, portrait, consent="Ada, by mail").status_code == 200
    assert len(left(client)) == 1


def test_lists(asking_once, portrait):
    ids = [ask(asking_once, portrait).json()["id"] for _ in range(3)]
    page = asking_once.get("/v1/videos?limit=2").json()
    assert [one["id"] for one in page["data"]] == [ids[2], ids[1]]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[2], ids[1], True)
    page = asking_once.get(f"/v1/videos?limit=2&after={ids[1]}").json()
    assert [one["id"] for one in page["data"]] == [ids[0]]
    assert not page["has_more"]
    assert [one["id"] for one in asking_once.get("/v1/videos?order=asc").json()["data"]] == ids
    assert asking_once.get("/v1/identities").json()["data"] == []


def test_a_clip_that_waits_can_be_dropped(asking_once, portrait):
    made = ask(asking_once, portrait).json()["id"]
    refused(asking_once.get(f"/v1/videos/{made}/content"), 409, "video_not_ready")
    refused(asking_once.get(f"/v1/videos/{made}/preview"), 404, "no_preview")
    assert asking_once.delete(f"/v1/videos/{made}").json() == {"id": made, "object": "video.deleted", "deleted": True}
    refused(asking_once.get(f"/v1/videos/{made}"), 404, "video_not_found", "video_id")
    refused(asking_once.delete(f"/v1/videos/{made}"), 404, "video_not_found", "video_id")
    assert left(asking_once) == []


def test_a_private_prompt_is_not_shown(asking_once, portrait):
    made = ask(asking_once, portrait, "secret.png", private="true").json()
    assert made["prompt"] is None
    assert made["lynx"]["portrait"] is None
    assert "secret" not in json.dumps(asking_once.get(f"/v1/videos/{made['id']}").json())


def test_a_full_disk(asking_once, portrait, monkeypatch):
    from pathlib import Path

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        refused(ask(asking_once, portrait), 507, "disk_full", "input_reference")
    assert left(asking_once) == []
    assert asking_once.service.queue.known() == set()
    assert ask(asking_once, portrait).status_code == 200


def test_a_locked_database(asking_once, portrait):
    made = ask(asking_once, portrait).json()["id"]
    other = sqlite3.connect(asking_once.service.folder.path / "lynx-video.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ask(asking_once, portrait)
    refused(answer, 503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert asking_once.get(f"/v1/videos/{made}").status_code == 200, "reading goes on"
    refused(asking_once.delete(f"/v1/videos/{made}"), 503, "database_unavailable")
    other.execute("COMMIT")
    other.close()
    assert left(asking_once) == [f"uploads/{made}.png"]
    assert ask(asking_once, portrait).status_code == 200


def test_what_nobody_foresaw_is_no_traceback(asking_once, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("the inner secret")

    monkeypatch.setattr(type(asking_once.service.queue), "page", broken)
    answer = asking_once.get("/v1/videos")
    refused(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "the inner secret" in caplog.text


def test_without_keys_only_this_machine_is_answered(asking_once, portrait):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.7", "", "[::1"):
        refused(asking_once.get("/v1/videos", headers={"Host": host}), 403, "foreign_host")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "127.1.2.3"):
        assert asking_once.get("/v1/videos", headers={"Host": host}).status_code == 200
    for origin in ("https://evil.example", "null"):
        refused(ask(asking_once, portrait, headers={"Origin": origin}), 403, "foreign_origin")
    assert asking_once.get("/v1/videos", headers={"Origin": "http://localhost:7860"}).status_code == 200
    assert left(asking_once) == []


def test_meters(asking_once, portrait):
    ask(asking_once, portrait)
    ask(asking_once, portrait, seed="-7")
    asking_once.get("/v1/videos/video_" + "0" * 32)
    text = asking_once.get("/metrics").text
    for line in (
        'lynx_video_requests_total{method="POST",route="/v1/videos",status="200"} 1.0',
        'lynx_video_requests_total{method="POST",route="/v1/videos",status="400"} 1.0',
        'lynx_video_requests_total{method="GET",route="/v1/videos/{video_id}",status="404"} 1.0',
        'lynx_video_refusals_total{code="bad_request"} 1.0',
        'lynx_video_refusals_total{code="video_not_found"} 1.0',
        'lynx_video_jobs{kind="video",status="queued"} 1.0',
        "lynx_video_queue_depth 1.0",
        'lynx_video_workers{state="ready"} 0.0',
    ):
        assert line in text, line


def test_the_description_has_examples_and_every_error(asking_once):
    whole = asking_once.get("/openapi.json").json()
    for path, methods in whole["paths"].items():
        for method, about in methods.items():
            assert about["summary"], path
            if path.startswith("/v1"):
                assert about["security"], path
                assert {"401", "429", "500", "503"} <= set(about["responses"]), (method, path)
                if method == "post":
                    assert about["requestBody"]["content"]["application/json"]["example"], path
                    assert "multipart/form-data" in about["requestBody"]["content"], path
