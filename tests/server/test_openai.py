"""The official OpenAI client drives a service in its own processes: create, list, retrieve, download, delete; and events, live."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from launched import Launched, wait_for

PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"
LONG = {"num_inference_steps": 60}
"""Long enough that what happens in its middle happens in its middle."""
QUICK = {"num_frames": 5, "num_inference_steps": 4}

# the client warns that OpenAI will shut its own video service down
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with a key; (it, the key)."""
    data = tmp_path_factory.mktemp("service") / "data"
    command = [sys.executable, "-m", "lynx_video", "keys", "add", "ada", "--data", str(data), "--json"]
    made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    launched = Launched(data)
    yield launched.ready(), made["token"]
    launched.close()


@pytest.fixture(scope="module")
def openai(service):
    from openai import OpenAI

    launched, key = service
    with OpenAI(base_url=f"{launched.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def finished(client, video):
    found = wait_for(lambda: (now := client.videos.retrieve(video.id)).status in ("completed", "failed") and now)
    assert found.status == "completed", found.error
    return found


def test_create_list_retrieve_download_delete(openai, portrait, tmp_path):
    from openai import NotFoundError

    made = openai.videos.create(
        prompt=PROMPT,
        input_reference=("me.png", portrait),
        size="64x64",
        seconds="1",
        extra_body={"seed": 7, "num_inference_steps": 4},
    )
    assert (made.object, made.model, made.seconds, made.size, made.prompt) == ("video", "nano", "1.12", "64x64", PROMPT)
    assert made.status in ("queued", "in_progress")
    assert made.id in [one.id for one in openai.videos.list(limit=1)]
    done = finished(openai, made)
    assert (done.progress, done.error) == (100, None)
    assert done.completed_at >= done.created_at
    assert done.lynx["seed"] == 7
    openai.videos.download_content(made.id).write_to_file(tmp_path / "clip.mp4")
    from lynx_video.media.video import read_video

    frames, _ = read_video(tmp_path / "clip.mp4")
    assert frames.shape == (9, 64, 64, 3)
    assert openai.videos.download_content(made.id, variant="thumbnail").content[:2] == b"\xff\xd8"
    assert openai.videos.delete(made.id).deleted
    with pytest.raises(NotFoundError) as caught:
        openai.videos.retrieve(made.id)
    assert caught.value.code == "video_not_found"
    assert [one.id for one in openai.models.list()] == ["nano"]
    assert openai.models.retrieve("nano").owned_by == "lynx-video"


def test_other_ways_to_say_who(openai, service, portrait):
    import base64

    url = "data:image/png;base64," + base64.b64encode(portrait).decode()
    made = openai.videos.create(prompt=PROMPT, extra_body={"input_reference": {"image_url": url}, **QUICK})
    finished(openai, made)
    launched, key = service
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{launched.url}/v1/identities", files={"portrait": portrait}, headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    made = openai.videos.create(prompt=PROMPT, extra_body={"identity": answer.json()["id"], **QUICK})
    assert finished(openai, made).lynx["identity"] == answer.json()["id"]


def test_refusals_are_the_clients_own_exceptions(openai, service, crowd):
    from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

    with pytest.raises(BadRequestError) as caught:
        openai.videos.create(prompt=PROMPT, input_reference=("two.png", crowd))
    assert (caught.value.code, caught.value.param) == ("several_faces", "face_index")
    assert len(caught.value.body["faces"]) == 2
    with pytest.raises(NotFoundError) as caught:
        openai.videos.create(prompt=PROMPT, model="sora-2")
    assert caught.value.code == "model_not_found"
    with (
        OpenAI(base_url=f"{service[0].url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.videos.list()


def test_idempotency_over_a_retry(openai, portrait):
    header = {"Idempotency-Key": "order-17"}
    made = [
        openai.videos.create(prompt=PROMPT, input_reference=("me.png", portrait), extra_headers=header, extra_body=QUICK)
        for _ in range(2)
    ]
    assert made[0].id == made[1].id
    finished(openai, made[0])


def test_events_come_live_and_a_listener_may_leave(openai, service, portrait):
    launched, key = service
    made = openai.videos.create(prompt=PROMPT, input_reference=("me.png", portrait), extra_body=LONG)
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{launched.url}/v1/videos/{made.id}"

    def leave():
        with httpx.stream("GET", f"{url}/events", headers=headers, timeout=60) as answer:
            next(answer.iter_lines())

    leaving = threading.Thread(target=leave)
    leaving.start()
    names, previews, at = [], [], []
    with httpx.stream("GET", f"{url}/events", headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            kind, _, rest = line.partition(": ")
            if kind == "event":
                names.append(rest)
                at.append(time.monotonic())
            if kind == "data" and names[-1] == "progress" and (link := json.loads(rest)["preview"]) and not previews:
                picture = httpx.get(launched.url + link, headers=headers, timeout=60)
                if picture.status_code == 200:  # 404: the clip was done meanwhile
                    previews.append(picture.content)
    leaving.join()
    assert names[-1] == "completed"
    assert names.count("progress") >= 3
    assert at[-1] - at[0] > 0.2, "one after the other, not all at the end"
    assert previews
    assert previews[0][:2] == b"\xff\xd8"


def test_a_clip_whose_worker_is_killed_is_made_by_the_next(openai, service, portrait):
    launched, _ = service
    made = openai.videos.create(prompt=PROMPT, input_reference=("me.png", portrait), extra_body=LONG)
    wait_for(lambda: 2 <= openai.videos.retrieve(made.id).lynx["step"] < 50)
    (worker,) = launched.workers()
    os.kill(worker, signal.SIGKILL)
    done = finished(openai, made)
    (successor,) = launched.workers()
    assert successor != worker
    assert done.lynx["step"] == done.lynx["steps"] == 60
    log = launched.log.read_text()
    assert f"a worker died (-9) while it worked on {made.id}: queued" in log
    assert log.count(f"{made.id} begins") == 2
    assert log.count(f"{made.id} is done") == 1
