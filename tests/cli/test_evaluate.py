"""`lynx-video evaluate`: a small grid from nothing to its page, folders of others, comparisons, and (slow) a run killed twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lynx_video.media.image import write_picture
from lynx_video.media.video import read_metadata, write_video
from lynx_video.nano.people import album
from lynx_video.work import WORK

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ("--people", "2", "--tasks", "3", "--num-inference-steps", "2", "--workers", "1", "--json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with six clips, scored."""
    from lynx_video.cli.main import run

    out = tmp_path_factory.mktemp("evaluated") / "both"
    assert run(["evaluate", "run", str(out), *SMALL]) == 0
    return out


def test_a_grid_from_nothing_to_its_page(ran):
    assert sorted(file.name for file in ran.iterdir()) == [
        "clips", "failures.jsonl", "manifest.jsonl", "scores", "subjects", "work",
    ]  # fmt: skip
    results = {file.name for file in (ran / "scores").iterdir()}
    assert {"scores.jsonl", "scores.csv", "summary.json", "radar.png", "report.html", "work"} <= results
    records = [json.loads(line) for line in (ran / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        said = read_metadata(ran / record["clip"])
        assert (said["prompt"], said["seed"]) == (record["prompt"], record["seed"])
    summary = json.loads((ran / "scores" / "summary.json").read_text())
    assert (summary["clips"], summary["failed"]) == (6, 0)
    assert [axis["name"] for axis in summary["axes"]] == ["face", "face", "face", "prompt", "aesthetics", "motion", "quality"]
    assert [axis["conditioned"] for axis in summary["axes"][:3]] == [False, False, True]
    assert summary["about"]["scored_by"]["conditioned"] == "nano encoder"
    assert summary["about"]["made_with"]["num_inference_steps"] == 2
    page = (ran / "scores" / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_nothing_is_made_or_scored_twice(lynx, ran):
    before = {file: file.stat().st_mtime_ns for file in [*ran.rglob("*.mp4"), *ran.rglob("*.safetensors")]}
    page = (ran / "scores" / "report.html").read_bytes()
    done = lynx("evaluate", "run", ran, *SMALL)
    assert done.code == 0, done.err
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (ran / "scores" / "report.html").read_bytes() == page


def test_scored_again_elsewhere_the_numbers_are_the_same(lynx, ran, tmp_path):
    done = lynx("evaluate", "score", ran, "-o", tmp_path / "again", "--workers", "1", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "again" / "scores.jsonl").read_bytes() == (ran / "scores" / "scores.jsonl").read_bytes()
    assert json.loads(done.out)["clips"] == 6


@pytest.mark.slow
def test_two_systems_compared(lynx, ran, tmp_path):
    none = tmp_path / "none"
    done = lynx("evaluate", "run", none, *SMALL, "--ip-scale", "0", "--ref-scale", "0")
    assert done.code == 0, done.err
    done = lynx("evaluate", "compare", none, ran, "-o", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    assert {"comparison.json", "comparison.html"} <= {file.name for file in (tmp_path / "c").iterdir()}
    done = lynx("evaluate", "compare", none, ran, "-o", tmp_path / "c")
    assert "n = 6 of 2 subjects" in done.out


@pytest.fixture
def foreign(tmp_path):
    """Clips laid out as OpenS2V-Eval has them: one good, one that is no video, one without a face, one of nobody's photo."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
    try:
        from planted import filmed
    finally:
        sys.path.pop(0)
    data, clips = tmp_path / "data", tmp_path / "their clips"
    items = {}
    for i in range(4):
        name = f"singlehuman_{i + 1}"
        image = f"Images/human/man/{i}.png"
        write_picture(data / image, album(i, 0)[0] if i < 3 else np.full((128, 128, 3), 80, np.uint8))
        items[name] = {"img_paths": [image], "prompt": "A person nods.", "synthesis_flag": False, "class_label": ["man"]}
    (data / "Human-Domain_Eval.json").write_text(json.dumps(items))
    write_video(clips / "singlehuman_1.mp4", filmed(0, 1), 8.0)
    (clips / "singlehuman_2.mp4").write_bytes(b"no video")
    write_video(clips / "singlehuman_3.mp4", np.full((9, 64, 64, 3), 200, np.uint8), 8.0)
    write_video(clips / "singlehuman_4.mp4", filmed(3, 1), 8.0)
    return clips, data


def test_a_folder_of_others_is_scored_as_it_is(lynx, foreign, tmp_path):
    clips, data = foreign
    before = sorted(clips.rglob("*"))
    done = lynx(
        *("evaluate", "score", clips, "--manifest", data / "Human-Domain_Eval.json", "--references", data),
        *("--model", "nano", "-o", tmp_path / "out", "--workers", "1", "--json"),
    )
    assert done.code == 0, done.err
    assert sorted(clips.rglob("*")) == before
    facts = json.loads(done.out)
    assert facts["clips"] == 4
    assert facts["failed"] == 2
    assert sum(facts["failures"].values()) == 2
    assert not any(axis["conditioned"] for axis in facts["axes"])
    assert facts["about"]["conditioned_on"] == "not known"
    face = next(axis for axis in facts["axes"] if axis["name"] == "face")["estimate"]
    # the good clip, two that count as the worst, and the one whose photo shows nobody, left out
    assert (face["n"], face["worst"], face["left_out"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "OUT", "--people", "0"), "people must be a whole number from 1"),
        (("run", "OUT", "--model", "lynx-full"), "--subjects FOLDER"),
        (("run", "OUT", "--workers", "0"), "--workers must be 1 or more"),
        (("run", "OUT", "--workers", "1", "--ray-address", "x:1"), "give one of the two"),
        (("run", "OUT", "--judge-model", "x"), "judge_url"),
        (("run", "OUT", "--prompts", "nowhere.txt"), "nowhere.txt"),
        (("run", "OUT", "--height", "65"), "height must be a multiple of 8"),
        (("run", "OUT", "--face-index", "1"), "no such option --face-index"),
        (("run", "OUT", "--seed", "1"), "no such option --seed; did you mean --seeds"),
        (("run", "OUT", "--recogniser", "nowhere.onnx"), "nowhere.onnx is not there"),
        (("run", "OUT", "--device", "cuda:1"), "say --device cuda"),
        (("score", "nowhere"), "nowhere"),
        (("score", "EMPTY"), "no clips in it"),
        (("score", "EMPTY", "--frames", "0"), "frames must be 1 or more"),
        (("compare", "EMPTY"), "2 to 6 evaluations, got 1"),
        (("compare", "EMPTY", "nowhere"), "EMPTY"),
    ],
)
def test_bad_requests_are_one_sentence(lynx, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    done = lynx("evaluate", *arguments)
    assert done.code == 2, done.err
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not Path("OUT/clips").exists()


def start(folder, *arguments):
    """The command in a process of its own, in a folder of its own: what it is called is the same everywhere."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "lynx_video", "evaluate", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder):
    """The bytes of everything but the work folders."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {name: file.read_bytes() for file in files if "work" not in (name := file.relative_to(folder).as_posix()).split("/")}


@pytest.mark.slow
def test_killed_twice_it_ends_in_the_same_report(tmp_path):
    command = ("run", "out", "--people", "4", "--tasks", "4", "--num-inference-steps", "2", "--workers", "2", "--quiet")
    whole = start(tmp_path / "whole", *command)
    _, err = whole.communicate(timeout=900)
    assert whole.returncode == 0, err
    for pattern, enough in (("clips/*/*.mp4", 5), (f"scores/{WORK}/scores/*.safetensors", 5)):
        running = start(tmp_path / "killed", *command)
        while len(list((tmp_path / "killed" / "out").glob(pattern))) < enough:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert not (tmp_path / "killed" / "out" / "scores" / "report.html").exists()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").rglob("*.mp4")}
    last = start(tmp_path / "killed", *command)
    _, err = last.communicate(timeout=900)
    assert last.returncode == 0, err
    assert {file: file.stat().st_mtime_ns for file in made} == made, "no clip is made twice"
    mine, theirs = results(tmp_path / "killed"), results(tmp_path / "whole")
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    # a report that was thrown away comes back from the kept scores, byte for byte
    page = tmp_path / "whole" / "out" / "scores" / "report.html"
    before = page.read_bytes()
    page.unlink()
    again = start(tmp_path / "whole", *command)
    again.communicate(timeout=900)
    assert again.returncode == 0
    assert page.read_bytes() == before
    shutil.rmtree(tmp_path / "killed")
