"""Keys: nothing without one, and nobody reaches another's things, on every route that the app has."""

import re

import pytest
from asked import PROMPT, ask, refused
from starlette.testclient import TestClient
from test_worker import enroll

from lynx_video.server.access import PREFIX, add_key, find_key, list_keys, revoke_key, wait_seconds
from lynx_video.server.app import make_app

OPEN = {"/health", "/ready", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
"""What needs no key: it tells nothing of anybody."""


def routes_of(app):
    """(path, method) of every route, also those that routers bring."""
    for route in app.routes:
        for one in getattr(route, "original_router", app).routes if hasattr(route, "original_router") else [route]:
            for method in sorted(one.methods):
                yield one.path, method


@pytest.fixture
def people(asking):
    """A client, and the headers of Ada and Eve; a client may have any host, since there are keys."""
    client = asking()
    headers = {name: {"Authorization": f"Bearer {add_key(client.service.database, name)[1]}"} for name in ("ada", "eve")}
    return client, headers["ada"], headers["eve"]


def fill(path, video, identity):
    return path.replace("{video_id}", video).replace("{identity_id}", identity).replace("{model}", "nano")


def test_every_route_needs_a_key(people):
    client, ada, _ = people
    app = make_app(client.service)
    seen = set()
    for path, method in routes_of(app):
        filled = fill(path, "video_" + "0" * 32, "ident_" + "0" * 32)
        if path in OPEN:
            assert client.request(method, filled).status_code in (200, 503), path
            continue
        seen.add((path, method))
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
            answer = client.request(method, filled, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            if method != "HEAD":
                refused(answer, 401, "invalid_api_key")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.request(method, filled, headers=ada).status_code != 401, (method, path)
    assert len(seen) >= 15, "the routes were found"


def test_nobody_reaches_anothers_things_on_any_route(people, portrait, worker):
    client, ada, eve = people
    hers = TestClient(client.app, base_url="http://any.example", headers=ada, raise_server_exceptions=False)
    hers.service = client.service
    identity = enroll(hers, worker, portrait).json()["id"]
    video = ask(hers, None, identity=identity, num_frames=5, num_inference_steps=2).json()["id"]
    assert worker(client.service).turn()
    waiting = ask(hers, portrait).json()["id"]
    tried = 0
    for path, method in sorted(routes_of(client.app), key=lambda one: one[1] == "DELETE"):
        if "{video_id}" not in path and "{identity_id}" not in path:
            continue
        for clip in (video, waiting):
            filled = fill(path, clip, identity)
            nobody = client.request(method, fill(path, "video_" + "0" * 32, "ident_" + "0" * 32), headers=eve)
            answer = client.request(method, filled, headers=eve)
            assert answer.status_code == 404, (method, path)
            same = nobody.text.replace("video_" + "0" * 32, clip).replace("ident_" + "0" * 32, identity)
            assert answer.text == same, "as if it were not there"
            tried += 1
    assert tried >= 16
    for path in ("/v1/videos", "/v1/identities"):
        assert client.get(path, headers=eve).json()["data"] == []
        assert client.get(f"{path}?after={video if 'videos' in path else identity}", headers=eve).status_code == 400
        assert client.get(path, headers=ada).json()["data"]
    answer = client.post("/v1/videos", json={"prompt": PROMPT, "identity": identity}, headers=eve)
    refused(answer, 404, "identity_not_found", "identity")
    assert client.get(f"/v1/videos/{video}/content", headers=ada).status_code == 200, "Ada has everything still"
    assert client.get(f"/v1/identities/{identity}", headers=ada).status_code == 200
    for text in (client.get("/metrics", headers=eve).text, client.get("/openapi.json").text):
        assert video not in text
        assert not re.search(r"\bada\b", text)


def test_idempotency_keys_are_an_owners_own(people, portrait):
    client, ada, eve = people
    key = {"Idempotency-Key": "k"}
    first = ask(client, portrait, headers={**ada, **key}).json()["id"]
    second = ask(client, portrait, headers={**eve, **key}, seed="9").json()["id"]
    assert first != second
    assert ask(client, portrait, headers={**ada, **key}).json()["id"] == first


def test_keys_of_one_owner_share_and_a_revoked_one_is_useless(people, portrait):
    client, ada, _ = people
    made = ask(client, portrait, headers=ada).json()["id"]
    second = {"Authorization": f"Bearer {add_key(client.service.database, 'ada')[1]}"}
    assert client.get(f"/v1/videos/{made}", headers=second).status_code == 200
    first = list_keys(client.service.database)[0]
    assert first.owner == "ada"
    revoke_key(client.service.database, first.id)
    refused(client.get(f"/v1/videos/{made}", headers=ada), 401, "invalid_api_key")
    assert client.get(f"/v1/videos/{made}", headers=second).status_code == 200
    for key in list_keys(client.service.database):
        if key.revoked_at is None:
            revoke_key(client.service.database, key.id)
    refused(client.get("/v1/videos"), 401, "invalid_api_key")


def test_what_was_made_without_keys_belongs_to_no_key(asking, portrait):
    client = asking()
    made = ask(client, portrait).json()["id"]
    headers = {"Authorization": f"Bearer {add_key(client.service.database, 'ada')[1]}"}
    refused(client.get(f"/v1/videos/{made}"), 401, "invalid_api_key")
    refused(client.get(f"/v1/videos/{made}", headers=headers), 404, "video_not_found", "video_id")


def test_rates_are_each_keys_own(asking):
    client = asking(rate_limit=2)
    keys = [{"Authorization": f"Bearer {add_key(client.service.database, 'ada')[1]}"} for _ in range(2)]
    codes = [client.get("/v1/models", headers=keys[0]).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    assert client.get("/v1/models", headers=keys[1]).status_code == 200


def test_the_database_has_no_token(database):
    key, token = add_key(database, "ada")
    assert token.startswith(PREFIX)
    assert len(token) == len(PREFIX) + 43
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM lynx_keys").all()
    assert token not in repr(rows)
    assert token.removeprefix(PREFIX) not in repr(rows)
    assert find_key(database, token) == key
    for wrong in (token[:-1], token + "x", key.hash, key.id, "", "\udcff"):
        assert find_key(database, wrong) is None


def test_names_of_owners(database):
    from lynx_video.errors import BadRequest

    for name in ("", "  ", "a" * 101, "a\nb", "local"):
        with pytest.raises(BadRequest, match=r"name"):
            add_key(database, name)
    with pytest.raises(BadRequest, match="no key 'key_x'"):
        revoke_key(database, "key_x")
    assert list_keys(database) == []


def test_a_bucket_holds_and_drips(database, monkeypatch):
    from lynx_video.server import access

    class Clock:
        now = 1_700_000_000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(access, "time", clock)
    assert [wait_seconds(database, "k", 60) for _ in range(60)] == [0] * 60
    assert wait_seconds(database, "k", 60) == 1
    assert wait_seconds(database, "other", 60) == 0
    clock.now += 1.05
    assert wait_seconds(database, "k", 60) == 0
