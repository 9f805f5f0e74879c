"""`lynx-video batch`: a list and a grid from nothing to their tables, exit codes, bad requests, and (slow) batches that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lynx_video.media.image import write_picture
from lynx_video.media.video import read_metadata
from lynx_video.nano.people import album

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ("--num-frames", 5, "--num-inference-steps", 2)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """The folder we are in, with two portraits and a wall in `faces`."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("ann", "bob")):
        write_picture(Path("faces") / f"{name}.png", album(number, 0)[0])
    write_picture(Path("wall.png"), np.full((128, 128, 3), 90, np.uint8))
    return tmp_path


def table(folder):
    rows = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "a row for each request"
    return found


@pytest.mark.usefixtures("ray_pool")  # a Ray that runs already is used
def test_a_grid_then_a_list_in_the_same_folder(lynx, faces):
    Path("prompts.txt").write_text("a person nods\n")
    grid = ("--portraits", "faces/*.png", "--prompts", "prompts.txt", "--seeds", "1-2")
    done = lynx("batch", *grid, *SMALL, "-o", "out", "--workers", 1, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["requests"], facts["done"], facts["made_now"], facts["failed"]) == (4, 4, 4, 0)
    before = {one: one.stat().st_mtime_ns for one in Path("out/clips").iterdir()}
    Path("more.jsonl").write_text(
        json.dumps({"id": "x", "portrait": "faces/ann.png", "prompt": "a person nods", "seed": 1})
        + "\n"
        + json.dumps({"id": "y", "portrait": "wall.png", "prompt": "a person nods"})
    )
    done = lynx("batch", "more.jsonl", *SMALL, "-o", "out", "--workers", 1, "--quiet")
    assert done.code == 1
    assert done.out == f"out: 1 done, 1 failed; 1 made now; {faces / 'out' / 'results.jsonl'}\n"
    assert done.err == f"error: of 2 requests 1 failed; why is in {faces / 'out' / 'results.jsonl'}.\n"
    rows = table("out")
    assert list(rows)[:2] == ["x", "y"]
    assert len(rows) == 6
    assert rows["y"]["reason"].startswith(f"{faces / 'wall.png'}: No face was found")
    twin = next(row for row in rows.values() if row["id"].startswith("ann-") and row["seed"] == 1)
    assert rows["x"]["frames_hash"] == twin["frames_hash"], "a line and a grid ask for the same"
    assert {one: one.stat().st_mtime_ns for one in before} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("GOOD",), "name the folder of the clips: --output FOLDER"),
        (("-o", "out"), "name a requests file, or a grid"),
        (("absent.jsonl", "-o", "out"), "absent.jsonl: can't be read"),
        (("GOOD", "-o", "GOOD"), "good.jsonl is a file"),
        (("GOOD", "-o", "faces"), "ann.png, which no batch puts there"),
        (("GOOD", "-o", "out", "--seeds", "1-2"), "--seeds is for a grid"),
        (("GOOD", "-o", "out", "--height", "70"), "good.jsonl:1: height must be a multiple of"),
        (("GOOD", "-o", "out", "--preset", "turbo"), "turbo"),
        (("GOOD", "-o", "out", "--seed", "1"), "no such option --seed; did you mean --seeds?"),
        (("GOOD", "-o", "out", "--face-index", "1"), "no such option --face-index"),
        (("GOOD", "-o", "out", "--device", "cuda:1"), "say --device cuda"),
        (("GOOD", "-o", "out", "--workers", "0"), "--workers must be 1 or more"),
        (("GOOD", "-o", "out", "--signing-key", "absent.pem", "--signing-certificate", "no.pem"), ".pem"),
        (("BAD", "-o", "out"), "bad.jsonl:2: unknown key 'promt'; did you mean prompt? bad.jsonl:3: there is no prompt"),
        (("--portraits", "faces/*", "-o", "out"), "--prompts FILE, with a prompt a line, or --prompt TEXT"),
        (("--portraits", "faces/*", "--identities", "x*", "--prompt", "nods", "-o", "out"), "two batches"),
        (("--portraits", "none/*", "--prompt", "nods", "-o", "out"), "no file fits"),
        (("--portraits", "faces/*", "--prompts", "absent.txt", "-o", "out"), "the prompts absent.txt can't be read"),
        (("--portraits", "faces/*", "--prompt", "nods", "--seeds", "x", "-o", "out"), "or a range such as 1-10"),
    ],
)
def test_bad_requests_are_one_line_and_begin_nothing(lynx, faces, arguments, words):
    good = {"portrait": "faces/ann.png", "prompt": "a person nods"}
    Path("good.jsonl").write_text(json.dumps(good))
    Path("bad.jsonl").write_text("\n".join(map(json.dumps, [good, {**good, "promt": "x"}, {"portrait": "faces/ann.png"}])))
    before = sorted(faces.rglob("*"))
    done = lynx("batch", *({"GOOD": "good.jsonl", "BAD": "bad.jsonl"}.get(one, one) for one in arguments))
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.count("\n") == 1
    assert words in done.err
    assert sorted(faces.rglob("*")) == before


def start(folder, *arguments):
    """The command in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lynx_video", "batch", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return json.loads(out)


def times(clips):
    """When each clip was written; drafts have names that begin with a dot."""
    return {one: one.stat().st_mtime_ns for one in clips.glob("[!.]*.mp4")}


def wait_for(process, clips, enough):
    while len(times(clips)) < enough:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def below(pid):
    """The processes that a process started, and those that they started: id -> command line."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    found, grown = {pid}, True
    while grown:
        more = {one for one, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {one: names[one] for one in found}


def made(folder):
    """Of each clip its record, but for how long it took."""
    records = {one.stem: read_metadata(one) for one in sorted((folder / "clips").iterdir())}
    return {name: {key: value for key, value in record.items() if key != "seconds"} for name, record in records.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with 60 requests, and their batch, made by one worker without a pause."""
    folder = tmp_path_factory.mktemp("sixty")
    for number in range(3):
        write_picture(folder / "faces" / f"person{number}.png", album(number, 0)[0])
    line = {"portrait": "faces/*.png", "prompt": ["a person nods", "a person smiles"], "seed": "1-10", "num_inference_steps": 2}
    (folder / "requests.jsonl").write_text(json.dumps(line))
    facts = finish(start(folder, "requests.jsonl", "-o", "whole", "--workers", "1", "--json"))
    assert (facts["done"], facts["made_now"]) == (60, 60)
    return folder


def assert_the_same(folder, name):
    whole, here = table(folder / "whole"), table(folder / name)
    assert list(here) == list(whole), "60 results, each once, in order"
    for one, row in whole.items():
        for key in ("status", "reason", "clip", "seed", "similarity", "coverage", "frames_hash"):
            assert here[one][key] == row[key]
    assert len(made(folder / name)) == 60
    assert made(folder / name) == made(folder / "whole")
    assert not [one for one in (folder / name / "clips").iterdir() if one.name.startswith(".")], "nothing half-written is left"


@pytest.mark.slow
def test_60_requests_killed_three_times(undisturbed):
    clips = undisturbed / "killed" / "clips"
    before = {}
    for enough in (7, 23, 41):
        running = start(undisturbed, "requests.jsonl", "-o", "killed", "--workers", "1", "--quiet")
        wait_for(running, clips, enough)
        time.sleep(random.random())  # anywhere within a clip
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        now = times(clips)
        assert {one: now[one] for one in before} == before, "nothing is made twice, nothing is overwritten"
        before = now
    facts = finish(start(undisturbed, "requests.jsonl", "-o", "killed", "--workers", "1", "--json"))
    assert facts["done"] == 60
    assert facts["made_now"] <= 60 - len(before)
    assert {one: one.stat().st_mtime_ns for one in before} == before
    assert_the_same(undisturbed, "killed")
    again = finish(start(undisturbed, "requests.jsonl", "-o", "killed", "--workers", "1", "--json"))
    assert (again["done"], again["made_now"]) == (60, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_60_requests_on_two_workers_one_of_them_killed(undisturbed):
    clips = undisturbed / "two" / "clips"
    running = start(undisturbed, "requests.jsonl", "-o", "two", "--workers", "2", "--json")
    wait_for(running, clips, 20)
    workers = [pid for pid, name in below(running.pid).items() if name.startswith("ray::") and "_Worker" in name]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    before = times(clips)
    facts = finish(running)
    assert (facts["done"], facts["failed"]) == (60, 0)
    assert {one: one.stat().st_mtime_ns for one in before} == before
    assert_the_same(undisturbed, "two")
