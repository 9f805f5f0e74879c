"""`lynx-video download`: the plan is shown, nothing is fetched unasked, and the end is counted. What a run does is tested below."""

import json

import pytest

from lynx_video.download import Outcome, Plan, PlannedFile, Progress
from lynx_video.hub import HubFile


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A plan of one file of 1 MB; the list holds the plans that were carried out."""
    file = tmp_path / "face" / "weights.pth"
    planned = PlannedFile(
        asset="face",
        repo="a/b",
        commit="0" * 40,
        remote=HubFile(path="weights.pth", bytes=10**6),
        path=file,
        convert=False,
        here=False,
    )
    plans = []

    def run(plan, progress):
        for done in (0, 500_000, 10**6):
            progress(Progress(path=file, stage="fetch", done=done, total=10**6))
        plans.append(plan)
        return [Outcome(path=file, action="fetched")]

    monkeypatch.setattr(
        "lynx_video.download.plan", lambda *_, **__: Plan(assets=("face",), models_dir=tmp_path, files=(planned,))
    )
    monkeypatch.setattr("lynx_video.download.run", run)
    return plans


def test_where_nobody_can_be_asked_yes_must_be_said(lynx, fetched, tmp_path):
    done = lynx("download", "face", "--models", tmp_path)
    assert (done.code, fetched) == (2, [])
    assert "--yes" in done.err
    for shown in ("licence: buffalo_l: non-commercial", "1.0 MB", "weights.pth"):
        assert shown in done.out


def test_yes_fetches_with_a_bar_and_says_how_it_went(lynx, fetched, tmp_path):
    done = lynx("download", "face", "--models", tmp_path, "--yes")
    assert (done.code, len(fetched)) == (0, 1)
    assert done.out.endswith(f"{tmp_path}: 1 fetched\n")
    assert "fetch weights.pth: 100%" in done.err
    assert lynx("download", "face", "-y", "--quiet").err == ""


def test_json_is_one_object(lynx, fetched, tmp_path):
    done = lynx("download", "face", "--models", tmp_path, "--yes", "--json")
    assert (done.code, done.err, len(fetched)) == (0, "", 1)
    facts = json.loads(done.out)
    assert (facts["fetched"], facts["kept"], facts["assets"]) == (1, 0, ["face"])
    assert facts["files"] == [{"path": str(tmp_path / "face" / "weights.pth"), "action": "fetched"}]
    unasked = lynx("download", "face", "--models", tmp_path, "--json")
    assert (unasked.code, unasked.out) == (2, "")
    assert "licence: buffalo_l: non-commercial" in unasked.err


@pytest.mark.usefixtures("fetched")
def test_interrupted_says_that_what_has_arrived_is_kept(lynx, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lynx_video.download.run", interrupted)
    done = lynx("download", "face", "--models", tmp_path, "--yes", "--quiet")
    assert done.code == 130
    assert "interrupted; what has arrived is kept" in done.err
    assert "nothing half-written" not in done.err
