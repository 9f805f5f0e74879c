"""The judge against a real endpoint on this machine: what it is sent, what its answers are worth, and what becomes of bad ones."""

from __future__ import annotations

import base64
import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint import GOOD, Endpoint, completion
from PIL import Image

from lynx_video.errors import BadRequest, LynxError, MissingDependency
from lynx_video.evaluation.metrics.ballot import AXES, marks_in, question
from lynx_video.evaluation.metrics.judge import RUBRIC, Clip, Judge, JudgeConfig, Verdict, judge_all

pytest.importorskip("openai")
KEY = "sk-verysecret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture
def open_judge(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def make(**changes: Any) -> Iterator[Judge]:
        settings = {"judge_url": endpoint.url, "judge_model": "eye", "judge_key": "JUDGE_KEY"} | changes
        with Judge(JudgeConfig(**settings), tmp_path / "cache") as judge:
            yield judge

    return make


def frames_of(number: int = 0, count: int = 17, height: int = 64, width: int = 48) -> np.ndarray:
    """uint8 [F, H, W, 3]; frame i of clip n has the grey value 10 i, and n in its blue."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (10 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[..., 2] = number
    return frames


def clip(number: int, prompt: str = "somebody waves") -> Clip:
    return Clip(hash=f"clip{number}", prompt=prompt, read=lambda: (frames_of(number), 8.0))


def pictures_in(asked: dict[str, Any]) -> list[np.ndarray]:
    urls = [part["image_url"]["url"] for part in asked["messages"][1]["content"] if part["type"] == "image_url"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]


def texts_in(asked: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in asked["messages"][1]["content"] if part["type"] == "text")


def numbers(verdict: Verdict) -> dict[str, tuple[float | None, int]]:
    return {name.removeprefix("judge/"): (score.value, score.n) for name, score in verdict.scores.items()}


def test_votes_are_averaged(open_judge: Any, endpoint: Endpoint) -> None:
    endpoint.reply = lambda asked, _: (200, GOOD | {"aesthetics": (0.1, 0.2, 0.9)[asked["seed"]]})
    with open_judge(judge_price_in=2.0, judge_price_out=10.0) as judge:
        verdict = judge(frames_of(), 8.0, "somebody waves", "clip0")
        assert set(verdict.scores) == {f"judge/{axis}" for axis in AXES}
        assert numbers(verdict)["aesthetics"] == (pytest.approx(0.4), 3)
        assert numbers(verdict)["motion_naturalness"] == (1.0, 3)
        assert [vote.reason for vote in verdict.votes] == ["a bit dark"] * 3
        said = judge.to_json()
    assert json.loads(json.dumps(said)) == said
    assert (said["requests"], said["cached"], said["valid"], said["tokens_in"], said["tokens_out"]) == (3, 0, 3, 3000, 150)
    assert said["cost"] == said["cost_with_cached"] == pytest.approx((3000 * 2 + 150 * 10) / 1e6)
    assert said["failures"] == {}
    assert [asked["seed"] for asked in endpoint.asked] == [0, 1, 2]
    assert all(asked["temperature"] == 0.7 and asked["model"] == "eye" for asked in endpoint.asked)


def test_what_is_sent(open_judge: Any, endpoint: Endpoint) -> None:
    with open_judge(judge_votes=1, judge_frames=5) as judge:
        judge(frames_of(7), 8.0, "she nods\nand smiles", "clip7")
    (asked,) = endpoint.asked
    assert asked["messages"][0] == {"role": "system", "content": RUBRIC.read_text()}
    pictures = pictures_in(asked)
    # frames 0, 4, 8, 12 and 16 of 17; 64 px become 256
    assert [round(float(picture[..., 0].mean())) for picture in pictures] == pytest.approx([0, 40, 80, 120, 160], abs=2)
    assert {picture.shape for picture in pictures} == {(256, 192, 3)}
    text = texts_in(asked)
    assert "<prompt>\nshe nods\nand smiles\n</prompt>" in text
    assert "17 frames of 48 x 64 pixels at 8 frames per second, 2.12 s" in text
    for line in ("Frame 0, at 0.00 s", "Frame 4, at 0.50 s", "Frame 16, at 2.00 s"):
        assert line in text
    assert all(axis in asked["messages"][0]["content"] for axis in AXES)


def test_sizes_and_numbers_of_frames() -> None:
    def shapes(frames: np.ndarray, most: int) -> list[tuple[int, ...]]:
        parts = question(frames, 8.0, "", most)
        return [picture.shape[:2] for picture in pictures_in({"messages": [None, {"content": parts}]})]

    assert shapes(frames_of(count=3, height=480, width=832), 8) == [(295, 512)] * 3  # fewer frames than asked for: all
    assert shapes(frames_of(count=9, height=512, width=300), 2) == [(512, 300)] * 2
    assert shapes(frames_of(count=1, height=256, width=100), 8) == [(256, 100)]
    assert shapes(frames_of(count=2, height=100, width=255), 1) == [(200, 510)]
    for frames, fps in ((frames_of()[:0], 8.0), (frames_of(), 0.0)):
        with pytest.raises(BadRequest, match="frames"):
            question(frames, fps, "", 8)


def test_a_second_run_sends_nothing(open_judge: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    clips = [clip(number) for number in range(3)]
    with open_judge() as judge:
        first = list(judge_all(judge, clips))
    assert len(endpoint.asked) == 9

    def unread() -> Any:
        raise AssertionError("a clip whose votes are kept is not read")

    with open_judge(judge_price_in=1.0, judge_price_out=1.0) as judge:
        again = list(judge_all(judge, [Clip(hash=one.hash, prompt=one.prompt, read=unread) for one in clips]))
        said = judge.to_json()
    assert again == first
    assert len(endpoint.asked) == 9
    assert (said["requests"], said["cached"], said["valid"], said["tokens_in"]) == (0, 9, 9, 0)
    assert (said["cost"], said["cost_with_cached"]) == (0, pytest.approx(9 * 1050 / 1e6))
    # a vote more is one request; anything else that matters asks anew
    for changes, new in (({"judge_votes": 4}, 1), ({"judge_frames": 4}, 3), ({"judge_model": "other"}, 3), ({}, 0)):
        before = len(endpoint.asked)
        with open_judge(**changes) as judge:
            judge.judge(clips[0])
        assert len(endpoint.asked) - before == new, changes
    with open_judge(judge_votes=1) as judge:
        before = len(endpoint.asked)
        judge.judge(clip(0, "another prompt"))
        assert len(endpoint.asked) == before + 1
        next((tmp_path / "cache").glob("*.safetensors")).write_bytes(b"cut")
    with open_judge() as judge:  # a damaged file is no vote
        before = len(endpoint.asked)
        list(judge_all(judge, [*clips, clip(0, "another prompt")]))
        assert len(endpoint.asked) > before


def test_order_and_threads_do_not_matter(open_judge: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    def reply(asked: dict[str, Any], _: int) -> tuple[int, Any]:
        blue = float(pictures_in(asked)[0][..., 2].mean())
        return 200, GOOD | {"aesthetics": round((blue / 80 + asked["seed"] / 10) / 2, 3)}

    endpoint.reply = reply
    clips = [clip(20 * number) for number in range(5)]
    with open_judge(judge_parallel=1) as judge:
        forward = list(judge_all(judge, clips))
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    with open_judge(judge_parallel=4) as judge:
        backward = list(judge_all(judge, clips[::-1]))
    assert backward[::-1] == forward
    assert len({numbers(one)["aesthetics"] for one in forward}) == 5
    # the same clip under two names is asked for once
    before = len(endpoint.asked)
    with open_judge(judge_parallel=4) as judge:
        twins = list(judge_all(judge, [clip(99)] * 6))
        assert len(endpoint.asked) == before + 3
        assert twins == [twins[0]] * 6
        assert judge.to_json()["tokens_in"] == 3000
        assert judge.to_json()["cached_tokens_in"] == 0


@pytest.mark.parametrize(
    ("content", "failure"),
    [
        ("The clip is rather good, I would say 0.8.", "answered prose"),
        ("", "answered nothing"),
        (GOOD | {"aesthetics": 1.01}, "out of range"),
        (GOOD | {"aesthetics": -0.1}, "out of range"),
        (json.dumps(GOOD).replace("0.25", "NaN"), "out of range"),
        (GOOD | {"aesthetics": "0.5"}, "mark is no number"),
        (GOOD | {"aesthetics": True}, "mark is no number"),
        (GOOD | {"aesthetics": None}, "mark is no number"),
        ({name: mark for name, mark in GOOD.items() if name != "aesthetics"}, "mark missing"),
        ({"score": 0.5}, "mark missing"),
        (completion(GOOD, finish_reason="content_filter"), "refused"),
        (completion("", refusal="I can't help with that."), "refused"),
        (completion(json.dumps(GOOD)[:30], finish_reason="length"), "cut off"),
        (completion(GOOD) | {"choices": []}, "answered nothing"),
    ],
)
def test_answers_that_are_no_vote(open_judge: Any, endpoint: Endpoint, content: Any, failure: str) -> None:
    endpoint.reply = lambda asked, _: (200, GOOD if asked["seed"] == 1 and "mixed" in texts_in(asked) else content)
    with open_judge() as judge:
        verdict = judge.judge(clip(0))
        assert numbers(verdict) == dict.fromkeys(AXES, (None, 0))
        assert {score.reason for score in verdict.scores.values()} == {f"no valid vote: 3 x {failure}"}
        mixed = judge.judge(clip(0, "mixed"))
        assert numbers(mixed) == {axis: (GOOD[axis], 1) for axis in AXES}  # not a third of it
        said = judge.to_json()
        assert said["failures"] == {failure: 5}
        assert (said["requests"], said["valid"], said["tokens_in"]) == (6, 1, 6000)
        # within a run a failed vote is not asked for again; in the next run it is
        assert judge.judge(clip(0)) == verdict
        assert len(endpoint.asked) == 6
    with open_judge() as judge:
        endpoint.reply = lambda _asked, _number: (200, GOOD)
        assert numbers(judge.judge(clip(0)))["aesthetics"] == (0.25, 3)
        judge.judge(clip(0, "mixed"))
        assert judge.to_json()["cached"] == 1


def test_marks_among_other_text() -> None:
    marks = {axis: GOOD[axis] for axis in AXES}
    text = json.dumps(GOOD)
    for answer in (
        f"```json\n{text}\n```",
        f"<think>maybe {json.dumps(GOOD | {'aesthetics': 1})} {{no}}</think>\nHere you are: {text} Bye {{}}.",
        json.dumps(GOOD, indent=2),
        "{" + text,
    ):
        assert marks_in(answer) == (marks, "a bit dark")
    assert marks_in('{"a":' * 5000) == (None, "answered prose")
    assert marks_in(json.dumps(marks | {"reason": None})) == (marks, "")


def test_a_judge_that_is_too_slow(open_judge: Any, endpoint: Endpoint) -> None:
    def reply(asked: dict[str, Any], _: int) -> tuple[int, Any]:
        if asked["seed"] == 0:
            endpoint.waiting.wait(30)
        return 200, GOOD

    endpoint.reply = reply
    with open_judge(judge_votes=2, judge_timeout=0.3) as judge:
        assert numbers(judge.judge(clip(0)))["aesthetics"] == (0.25, 1)
        assert judge.to_json()["failures"] == {"timed out": 1}
    assert len(endpoint.asked) == 4  # two repeats by the client


def test_a_judge_that_never_answers_ends_the_run(open_judge: Any, endpoint: Endpoint) -> None:
    endpoint.reply = lambda *_: endpoint.waiting.wait(30) and (200, GOOD)
    with open_judge(judge_votes=4, judge_timeout=0.05, judge_parallel=1) as judge:
        with pytest.raises(LynxError, match=r"did not answer 12 questions .* --judge-timeout"):
            list(judge_all(judge, [clip(number) for number in range(6)]))
        assert judge.tally.failures == {"timed out": 11}


def test_trouble_that_passes_and_trouble_that_stays(open_judge: Any, endpoint: Endpoint) -> None:
    busy = {"error": {"message": f"slow down, {KEY}"}}
    endpoint.reply = lambda _asked, number: (429, busy) if number < 2 else (200, GOOD)
    with open_judge(judge_votes=1) as judge:
        assert numbers(judge.judge(clip(0)))["aesthetics"] == (0.25, 1)
        assert judge.to_json()["failures"] == {}
    for status in (500, 429, 400):
        endpoint.reply = lambda _asked, _number, status=status: (status, busy)
        with open_judge() as judge:
            verdict = judge.judge(clip(status % 256))
            assert verdict.scores["judge/aesthetics"].reason == f"no valid vote: 3 x http {status}"
            assert judge.to_json()["failures"] == {f"http {status}": 3}
            assert judge.to_json()["examples"] == {f"http {status}": "slow down, ***"}
    endpoint.reply = lambda _asked, _number: (400, {"error": {"message": "no", "code": "content_filter"}})
    with open_judge() as judge:
        judge.judge(clip(1))
        assert judge.to_json()["failures"] == {"refused": 3}


def test_parameters_that_an_endpoint_does_not_know(open_judge: Any, endpoint: Endpoint) -> None:
    def reply(asked: dict[str, Any], _: int) -> tuple[int, Any]:
        for name in ("seed", "temperature"):
            if name in asked:
                return 400, {"error": {"message": f'Unknown name "{name}": cannot find field.'}}
        return 200, GOOD

    endpoint.reply = reply
    with open_judge() as judge:
        assert numbers(judge.judge(clip(0)))["aesthetics"] == (0.25, 3)
        assert judge.to_json()["left_out"] == ["seed", "temperature"]
        assert judge.to_json()["failures"] == {}
    assert len(endpoint.asked) == 5


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_says_no_ends_the_run(open_judge: Any, endpoint: Endpoint, status: int) -> None:
    endpoint.reply = lambda _asked, _number: (status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with open_judge(judge_parallel=2) as judge:
        with pytest.raises(BadRequest, match=rf"{endpoint.url}.*HTTP {status}") as caught:
            list(judge_all(judge, [clip(number) for number in range(50)]))
        assert ("JUDGE_KEY" if status < 404 else "'eye'") in str(caught.value)
        assert len(endpoint.asked) <= 4  # no word about the other clips
        assert KEY not in "".join(traceback.format_exception(caught.value))
        assert judge.to_json()["failures"] == {}


def test_a_403_after_an_answer_is_about_one_clip(open_judge: Any, endpoint: Endpoint) -> None:
    no = {"error": {"message": "flagged"}}
    endpoint.reply = lambda asked, _: (403, no) if "flagged" in texts_in(asked) else (200, GOOD)
    for _ in range(2):  # the second time the answer is one that was kept
        with open_judge() as judge:
            assert numbers(judge.judge(clip(0)))["aesthetics"] == (0.25, 3)
            assert judge.judge(clip(1, "flagged")).scores["judge/aesthetics"].reason == "no valid vote: 3 x http 403"


def test_check(open_judge: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_judge() as judge:
        judge.check()
        assert endpoint.paths == ["/v1/models"]
    endpoint.models = 401, {"error": {"message": KEY}}
    with open_judge() as judge, pytest.raises(BadRequest, match="refuses the key in JUDGE_KEY"):
        judge.check()
    monkeypatch.delenv("JUDGE_KEY")
    with open_judge() as judge, pytest.raises(BadRequest, match="JUDGE_KEY is not set"):
        judge.check()
    assert endpoint.keys == [f"Bearer {KEY}"] * 2 + ["Bearer none"]
    for answer in (
        (404, {"detail": "Not Found"}),
        (403, {"error": {"message": "scope"}}),
        (200, b"<html>"),
    ):  # no list of models
        endpoint.models, endpoint.reply = answer, lambda _asked, _number: (200, completion("ok"))
        endpoint.asked.clear()
        with open_judge() as judge:
            judge.check()
            assert len(endpoint.asked) == 1
            assert judge.to_json()["failures"] == {}
            assert judge.to_json()["tokens_in"] == 1000
    endpoint.reply = lambda _asked, _number: (200, b"<html>welcome</html>")
    with open_judge() as judge, pytest.raises(BadRequest, match="no chat completion: check --judge-url"):
        judge.check()
    endpoint.reply = lambda _asked, _number: (404, {"error": {"message": "no such model"}})
    with open_judge() as judge, pytest.raises(BadRequest, match="'eye'"):
        judge.check()


def test_nobody_there(open_judge: Any, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        free = f"http://127.0.0.1:{server.server_port}/v1"
    with open_judge(judge_url=free, judge_parallel=1) as judge:
        for ask in (judge.check, lambda: list(judge_all(judge, [clip(0), clip(1)]))):
            with pytest.raises(LynxError, match=rf"{free} can't be reached \(.*refused") as caught:
                ask()
            assert not isinstance(caught.value, BadRequest)
    assert not list(tmp_path.glob("cache/*"))


def test_clips_that_cannot_be_read(open_judge: Any) -> None:
    def cut() -> Any:
        raise BadRequest("clip.mp4: cut off.")

    with open_judge() as judge:
        verdicts = list(judge_all(judge, [Clip(hash="a", prompt="", read=cut), clip(0)]))
        assert verdicts[0].scores["judge/aesthetics"].value is None
        assert verdicts[0].scores["judge/aesthetics"].reason == "clip.mp4: cut off."
        assert numbers(verdicts[1])["aesthetics"] == (0.25, 3)
        assert judge.to_json()["failures"] == {"clip not readable": 1}


def test_the_key_is_nowhere(
    open_judge: Any, endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    answers = {0: (200, GOOD | {"reason": f"your key is {KEY}"}), 1: (200, f"prose about {KEY}"), 2: (500, {"error": KEY})}
    endpoint.reply = lambda asked, _: answers[asked["seed"]]
    with open_judge() as judge:
        verdict = judge.judge(clip(0))
        texts = [repr(judge), repr(judge.config), repr(vars(judge)), repr(verdict), json.dumps(judge.to_json())]
        assert "your key is ***" in texts[3]
    assert endpoint.keys[0] == f"Bearer {KEY}"  # it was sent, so there was something to leak
    files = [file.read_bytes().decode("latin1") for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert files
    assert caplog.text
    out, err = capfd.readouterr()
    for text in (*texts, *files, caplog.text, out, err):
        assert KEY not in text


def test_config() -> None:
    assert JudgeConfig().judge_url is None
    good = {"judge_url": "http://localhost:8000/v1", "judge_model": "eye"}
    for changes, why in (
        ({"judge_model": None}, "judge_model"),
        ({"judge_url": None}, "judge_url"),
        ({"judge_url": "localhost:8000"}, "http address"),
        ({"judge_votes": 0}, "judge_votes must be a whole number from 1"),
        ({"judge_frames": 2.5}, "judge_frames"),
        ({"judge_parallel": True}, "judge_parallel"),
        ({"judge_timeout": 0}, "judge_timeout"),
        ({"judge_timeout": float("nan")}, "judge_timeout"),
        ({"judge_price_in": 1.0}, "go together"),
        ({"judge_price_in": -1.0, "judge_price_out": 1.0}, "judge_price_in"),
    ):
        with pytest.raises(BadRequest, match=why):
            JudgeConfig(**(good | changes))
    for changes in ({"judge_url": f"http://me:{KEY}@host/v1"}, {"judge_url": f"http://host/v1?key={KEY}"}, {"judge_key": KEY}):
        with pytest.raises(BadRequest) as caught:
            JudgeConfig(**(good | changes))
        assert KEY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(BadRequest, match="no judge without"):
        Judge(JudgeConfig(), Path("nowhere"))


def test_a_key_that_is_none_and_a_client_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = JudgeConfig(judge_url="http://localhost:1/v1", judge_model="eye", judge_key="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nä")
    with pytest.raises(BadRequest, match="JUDGE_KEY holds characters") as caught:
        Judge(config, tmp_path)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[evaluate\]'"):
        Judge(config, tmp_path)
