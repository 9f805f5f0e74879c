"""A service whose processes are killed at the worst moments: nothing is lost, nothing is made or published twice."""

import os
import re
import signal
import time
from collections import Counter

import httpx
import pytest
from launched import Launched, is_alive, wait_for

pytestmark = pytest.mark.slow  # a minute each; test_openai.py kills a worker, test_worker.py loses leases at every moment
PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"


@pytest.fixture
def services():
    """A list of what was launched; whatever happens, nothing is left running."""
    found = []
    yield found
    for one in found:
        one.close()


def submit(url, portrait, **fields):
    answer = httpx.post(f"{url}/v1/videos", data={"prompt": PROMPT, **fields}, files={"input_reference": portrait}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def get(url, video):
    return httpx.get(f"{url}/v1/videos/{video}", timeout=60).json()


def in_the_middle(url, video, step=3):
    """Wait until a clip is at a step, and say so."""
    return wait_for(lambda: (now := get(url, video))["status"] == "in_progress" and now["lynx"]["step"] >= step and now)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_workers_and_a_killed_service_lose_and_double_nothing(kind, request, services, portrait, tmp_path):
    data = tmp_path / "data"
    flags = ["--lease", "5"]
    if kind == "postgresql":
        flags += ["--database", request.getfixturevalue("postgres")()]
    first = Launched(data, *flags)
    services.append(first)
    first.ready()
    url = first.url
    long = {"num_inference_steps": "40"}
    quick = {"num_frames": "5", "num_inference_steps": "4"}
    videos = [submit(url, portrait, seed="1", **long), *(submit(url, portrait, seed=str(seed), **quick) for seed in (2, 3))]

    # a worker is killed in the middle of a step: its clip starts again, once
    in_the_middle(url, videos[0])
    (worker,) = first.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: get(url, videos[0])["status"] == "queued")
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200, "the others go on"
    wait_for(lambda: get(url, videos[0])["status"] == "in_progress")
    in_the_middle(url, videos[0])

    # everything is killed; the orphans of a killed server alone would end by themselves
    everyone = first.kill_all()
    wait_for(lambda: not any(is_alive(one) for one in everyone))
    second = Launched(data, *flags, log=first.log)
    services.append(second)
    second.ready()
    url = second.url
    done = [
        wait_for(lambda video=video: (now := get(url, video))["status"] in ("completed", "failed") and now) for video in videos
    ]
    assert [one["status"] for one in done] == ["completed"] * 3, done
    listed = httpx.get(f"{url}/v1/videos?order=asc", timeout=60).json()["data"]
    assert [one["id"] for one in listed] == videos
    files = sorted(f"{video}{end}" for video in videos for end in (".jpg", ".mp4"))
    assert sorted(one.name for one in (data / "videos").iterdir()) == files
    assert list((data / "uploads").iterdir()) == []
    log = first.log.read_text()
    assert Counter(re.findall(r"(video_\w+) is done", log)) == dict.fromkeys(videos, 1)
    begun = Counter(re.findall(r"(video_\w+) begins", log))
    assert begun == {videos[0]: 3, videos[1]: 1, videos[2]: 1}

    # told to stop: the clip goes back within a step, and everybody is gone
    last = submit(url, portrait, **long)
    in_the_middle(url, last)
    workers = second.workers()
    code, seconds = second.stop()
    assert code == 0
    assert seconds < 20
    wait_for(lambda: not any(is_alive(one) for one in workers))
    assert f"{last} goes back to the queue" in first.log.read_text()
    assert "Traceback" not in first.log.read_text()


def test_workers_of_a_killed_server_end_by_themselves(services, tmp_path):
    launched = Launched(tmp_path / "data")
    services.append(launched)
    wait_for(launched.workers)
    workers = launched.workers()
    os.kill(launched.process.pid, signal.SIGKILL)
    launched.process.wait()
    began = time.monotonic()
    wait_for(lambda: not any(is_alive(one) for one in workers), seconds=30)
    assert time.monotonic() - began < 30
