"""The service as an application of Ray Serve: its arguments, and the whole of it on a Ray of two cores."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest

from lynx_video.errors import BadRequest
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.ray_serve import ClusterFlags, _OnCall, terms_of
from lynx_video.studio.setup import ModelFlags

PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"


def test_arguments_are_the_options_of_serve() -> None:
    terms = terms_of(
        {
            "store": {"data": "/data", "database": "postgresql://lynx@db/lynx"},
            "serve": {"queue_limit": "7", "allow_url_fetch": ["a.example"], "require_consent": "true"},
            "model": {"model": "nano-lite", "models": "/models"},
            "runtime": {"vram_budget": 24, "compile": True},
            "signing": {"signing_key": "/key.pem"},
            "recogniser": "/faces.onnx",
            "cluster": {"max_workers": 4, "gpus": 0.5},
        }
    )
    assert terms.store == StoreFlags(data=Path("/data"), database="postgresql://lynx@db/lynx")
    assert terms.serve == ServeFlags(workers=0, queue_limit=7, allow_url_fetch=("a.example",), require_consent=True)
    assert terms.setup.model == ModelFlags(model="nano-lite", models=Path("/models"))
    assert terms.setup.runtime == {"vram_budget": 24.0, "compile": True}, "only what was named: a preset says the rest"
    assert (terms.setup.signing.signing_key, terms.setup.recogniser) == (Path("/key.pem"), Path("/faces.onnx"))
    assert terms.cluster == ClusterFlags(max_workers=4, gpus=0.5)


def test_without_arguments_it_is_nano_for_those_with_keys() -> None:
    terms = terms_of({})
    assert (terms.keyless, terms.serve.workers, terms.setup.model.model) == (False, 0, "nano")
    assert terms.setup.runtime == {}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"stroe": {}}, r"args: 'stroe' is not known; the keys are store"),
        ({"store": {"dta": "/x"}}, r"args\.store: 'dta' is not known; expected data, database"),
        ({"model": "nano"}, r"args\.model: got 'nano'; expected model, base_model_path"),
        ({"model": {"model": "sora"}}, r"args\.model\.model: .*'nano'.*got 'sora'"),
        ({"serve": {"queue_limit": "many"}}, r"args\.serve\.queue_limit: .*integer.*got 'many'"),
        ({"serve": {"queue_limit": 0}}, r"--queue-limit must be from 1"),
        ({"serve": {"workers": 3}}, r"args\.serve\.workers: .*args\.cluster"),
        ({"serve": {"port": 80}}, r"args\.serve\.port: .*http_options"),
        ({"serve": {"host": "127.0.0.1"}}, r"args\.serve\.host: .*http_options"),
        ({"keyless": "false"}, r"args\.keyless: expected true or false, got 'false'"),
        ({"cluster": {"min_workers": 3, "max_workers": 2}}, "min_workers <= max_workers"),
        ({"cluster": {"fronts": 0}}, "fronts from 1"),
        ({"runtime": {"quantize": "fp3"}}, r"args\.runtime\.quantize"),
    ],
)
def test_arguments_that_are_wrong(args: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        terms_of(args)


def test_a_worker_on_call_takes_one_job_for_each_call(serving: Any, studio: Any, portrait: bytes) -> None:
    from concurrent.futures import Future

    from starlette.testclient import TestClient

    from lynx_video.server.app import make_app

    service = serving()
    with TestClient(make_app(service), base_url="http://127.0.0.1") as client:
        for seed in (1, 2):
            fields = {"prompt": PROMPT, "num_frames": "5", "num_inference_steps": "2", "seed": str(seed)}
            assert client.post("/v1/videos", data=fields, files={"input_reference": ("me.png", portrait)}).status_code == 200
    worker = _OnCall("w", service.database, service.folder, studio, 5.0)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert worker.on_duty.wait(30)
        time.sleep(0.5)
        assert service.queue.counts() == {("video", "queued"): 2}
        first = Future[bool]()
        worker.calls.put(first)
        assert first.result(60) is True
        assert service.queue.counts() == {("video", "queued"): 1, ("video", "completed"): 1}
        second, third = Future[bool](), Future[bool]()
        worker.calls.put(second)
        worker.calls.put(third)
        assert (second.result(60), third.result(60)) == (True, False)
        assert service.queue.counts() == {("video", "completed"): 2}
    finally:
        worker.stopping.set()
        thread.join(30)
    assert not thread.is_alive()


@contextlib.contextmanager
def deployed(data: Path, **args: Any) -> Any:
    """A client of the application on the Ray that runs."""
    from ray import serve

    from lynx_video.server.ray_serve import build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            own = {"store": {"data": str(data)}, "serve": {"lease": 4}, "keyless": True}
            serve.run(build({**own, **args}), name="lynx-video", route_prefix="/")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client
        finally:
            serve.shutdown()


def ask(client: httpx.Client, portrait: bytes, **fields: Any) -> str:
    answer = client.post("/v1/videos", data={"prompt": PROMPT, **fields}, files={"input_reference": ("me.png", portrait)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def until(client: httpx.Client, job: str, *status: str, step: int = 0) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        video = client.get(f"/v1/videos/{job}").json()
        if video["status"] in status and video["lynx"]["step"] >= step:
            return video
        time.sleep(0.05)
    raise AssertionError(f"{job} is not {status}: {video}")


def workers() -> list[int]:
    """Process ids of the worker replicas."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ServeReplica:lynx-video:Films" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's and its libraries' own
@pytest.mark.usefixtures("ray_pool")
def test_on_ray_a_clip_is_made_a_lost_worker_costs_nothing_and_load_brings_another(tmp_path: Path, portrait: bytes) -> None:
    data = tmp_path / "data"
    with deployed(data, cluster={"max_workers": 2, "cpus": 0.5, "patience": 30}) as client:
        assert client.get("/ready").json() == {"status": "ready", "workers": 1}
        first = until(client, ask(client, portrait, num_frames=5, num_inference_steps=2), "completed", "failed")
        assert first["status"] == "completed", first
        clip = client.get(f"/v1/videos/{first['id']}/content")
        assert clip.content[4:8] == b"ftyp"
        part = client.get(f"/v1/videos/{first['id']}/content", headers={"range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")

        killed = ask(client, portrait, num_frames=5, num_inference_steps=60)
        until(client, killed, "in_progress", step=3)
        (before,) = workers()
        os.kill(before, signal.SIGKILL)
        assert until(client, killed, "completed", "failed")["status"] == "completed"
        assert before not in workers()

        several = [ask(client, portrait, num_frames=5, num_inference_steps=50, seed=seed) for seed in range(4)]
        most, end = 0, time.monotonic() + 120
        while time.monotonic() < end and any(
            client.get(f"/v1/videos/{one}").json()["status"] != "completed" for one in several
        ):
            most = max(most, len(workers()))
            time.sleep(0.1)
        assert most == 2
        gone = ask(client, portrait, num_frames=5, num_inference_steps=500)
        until(client, gone, "in_progress", step=1)
        assert client.delete(f"/v1/videos/{gone}").json()["deleted"] is True
        assert until(client, ask(client, portrait, num_frames=5, num_inference_steps=2), "completed")

    with contextlib.closing(sqlite3.connect(data / "lynx-video.db")) as database:
        attempts = dict(database.execute("SELECT id, attempts FROM lynx_jobs WHERE status = 'completed'").fetchall())
    assert len(attempts) == 7
    assert {job: count for job, count in attempts.items() if count != 1} == {killed: 2}
    assert len(list((data / "videos").glob("*.mp4"))) == 7
    assert not list((data / "uploads").iterdir())
    assert not workers()
