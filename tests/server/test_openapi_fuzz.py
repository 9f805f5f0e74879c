"""Requests made from the OpenAPI description, sensible and senseless ones: no server error, and every answer is as described."""

from __future__ import annotations

import base64
import collections
import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from asked import PROMPT, ask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from lynx_video.server.access import add_key
from lynx_video.server.routes import identities

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
FREE = {"prompt", "consent", "private", "no_watermark", "name", "seed"}
"""Fields that may be almost anything; with a real portrait such a request is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuzzed:
    """A service with a finished clip and a person, the requests that its description allows, and how they are sent."""

    schema: Any
    headers: dict[str, str]
    ids: dict[str, str]
    portrait: bytes


@pytest.fixture
def fuzzed(asking: Any, worker: Any, portrait: bytes, monkeypatch: pytest.MonkeyPatch) -> Fuzzed:
    monkeypatch.setattr(identities, "PATIENCE", 0.05)  # nobody enrolls while requests are made
    client = asking(queue_limit=100_000)
    service = client.service
    headers = {"Authorization": f"Bearer {add_key(service.database, 'ada')[1]}"}
    client.headers.update(headers)
    video = ask(client, portrait, num_frames="5", num_inference_steps="2").json()["id"]
    identity = client.post("/v1/identities", files={"portrait": ("me.png", portrait)}).json()["id"]
    at_work = worker(service)
    assert at_work.turn()
    assert at_work.turn()
    assert client.get(f"/v1/videos/{video}").json()["status"] == "completed"
    service.crew.report("w1", ready=True)
    # The key goes with every request; that nothing is to be had without one is tested route by route elsewhere.
    description = copy.deepcopy(client.get("/openapi.json").json())
    description.pop("security", None)
    description.get("components", {}).pop("securitySchemes", None)
    for path in description["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(description)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with suppress(Exception):  # told as a server error before it is raised again, as for a server's log
            await client.app(scope, receive, send)

    schema.app = app
    schema.config.update(base_url="http://127.0.0.1")
    ids = {"video_id": video, "identity_id": identity, "model": service.desk.model}
    return Fuzzed(
        schema=schema,
        headers=headers,
        ids=ids,
        portrait=portrait,
    )


def sensible(case: Any, fuzzed: Fuzzed) -> None:
    """Real ids and a real portrait in the place of made-up ones."""
    # Anew, not changed: what was generated may be generated again.
    if case.path_parameters:
        case.path_parameters = {name: fuzzed.ids.get(name, value) for name, value in case.path_parameters.items()}
    if isinstance(case.body, dict):
        picture = "input_reference" if case.operation.path == "/v1/videos" else "portrait"
        as_form = case.media_type == "multipart/form-data"
        url = f"data:image/png;base64,{base64.b64encode(fuzzed.portrait).decode()}"
        kept = {name: value for name, value in case.body.items() if name in FREE}
        case.body = {**kept, picture: fuzzed.portrait if as_form else url}


def fuzz(fuzzed: Fuzzed, mode: GenerationMode, examples: int) -> dict[str, collections.Counter[int]]:
    """Status codes of each operation; fails with everything that was not as it should be."""
    seen: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    found: list[str] = []
    operations = [result.ok() for result in fuzzed.schema.get_all_operations()]
    # What deletes comes last, or there would be nothing to look at.
    for operation in sorted(operations, key=lambda one: (one.method == "delete", one.label)):

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
        def attempt(case: Any, real: bool) -> None:
            asked = CHECKS
            if real and mode == GenerationMode.POSITIVE:
                sensible(case, fuzzed)
                asked = [one for one in CHECKS if one is not checks.negative_data_rejection]  # a file's bytes are no JSON
            answer = case.call(headers=fuzzed.headers)
            seen[case.operation.label][answer.status_code] += 1
            case.validate_response(answer, checks=asked, headers=fuzzed.headers)

        try:
            attempt()
        except Unsatisfiable:
            assert mode == GenerationMode.NEGATIVE, "there is nothing about it that could be wrong"
        except FailureGroup as group:
            found += [f"{operation.label}: {one}" for one in group.exceptions]
        except schemathesis.core.failures.Failure as failure:
            found.append(f"{operation.label}: {failure}")
    assert not found, "\n\n".join(found)
    return seen


@pytest.mark.parametrize(
    ("mode", "examples"),
    [
        (GenerationMode.POSITIVE, 12),
        (GenerationMode.NEGATIVE, 8),
        pytest.param(GenerationMode.POSITIVE, 300, marks=pytest.mark.slow),
        pytest.param(GenerationMode.NEGATIVE, 300, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", str(value)).lower(),
)
def test_the_description_holds(fuzzed: Fuzzed, mode: GenerationMode, examples: int) -> None:
    seen = fuzz(fuzzed, mode, examples)
    assert not [code for codes in seen.values() for code in codes if code >= 500]
    if mode == GenerationMode.POSITIVE:
        assert len(seen) >= 14
        silent = {label for label, codes in seen.items() if not {200, 201, 202, 206} & set(codes)}
        assert silent == {"GET /v1/videos/{video_id}/preview"}, "a finished clip has no preview; all else was there to be had"
        assert seen["POST /v1/videos"][200] >= 2, PROMPT


def test_a_wrong_answer_is_seen(fuzzed: Fuzzed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves: an answer of another shape than described, and a server error."""
    from lynx_video.server.routes import status

    monkeypatch.setattr(status, "_model", lambda _: {"id": 7})
    with pytest.raises(AssertionError, match="GET /v1/models"):
        fuzz(fuzzed, GenerationMode.POSITIVE, 3)
