"""`lynx-video dataset`: what is refused before any work, what `show` says of a set, and (slow) a build killed twice."""

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
import torch

from lynx_video.media.image import read_picture, write_picture
from lynx_video.media.video import write_video
from lynx_video.nano import captions, faces
from lynx_video.nano.recipe import data
from lynx_video.training.shards import Conditions, Shards, write_shards
from lynx_video.types import Example


@pytest.fixture
def made(tmp_path):
    """A set of four examples of noise, with a card like that of a build with nano."""
    from lynx_video.pipeline.load import survey
    from lynx_video.training.dataset.card import make_card
    from lynx_video.training.dataset.config import Bucket
    from lynx_video.training.dataset.encode import Job
    from lynx_video.training.dataset.framing import View
    from lynx_video.training.dataset.source import Drop, Item

    random_ = torch.Generator().manual_seed(0)
    jobs = [
        Job(
            kind="still",
            item=Item(key=f"a{number}", file=f"a{number}.png", caption="a person", person="ann"),
            view=View(bucket=Bucket(1, 64, 64), times=(), scaled=(64, 64), corner=(0, 0)),
            person="ann",
            references=("b",),
            sources=("b.png",),
            contents=(),
        )
        for number in range(4)
    ]
    examples = [
        Example(
            key=job.key,
            latents=torch.randn(12, 1, 16, 16, generator=random_).half(),
            frames=1,
            height=64,
            width=64,
            text=torch.ones(3, 64).bfloat16(),
            caption="a person",
            faces=torch.ones(1, 512),
            references=torch.randn(1, 12, 1, 16, 16, generator=random_).half(),
            person="ann",
            source=job.item.file,
            sources=job.sources,
        )
        for job in jobs
    ]
    conditions = Conditions(
        empty_text=torch.zeros(48, 64), reference_text=torch.zeros(48, 64), nobody_reference=torch.zeros(12, 1, 16, 16)
    )
    model = {"name": "nano", "base_hash": survey("nano", device="cpu").base_hash}
    made_with = {"model": model, "settings": {"licence": "all agreed", "augment": ["light", "jitter"]}}
    drops = [Drop(item=f"{number}.mp4", reason="no face", detail="none in 5 looks") for number in range(2)]
    write_shards(tmp_path / "set", examples, conditions, make_card(made_with, 6, [], jobs, drops))
    return tmp_path / "set"


def test_show_prints_the_card_and_checks_the_shards(lynx, made):
    done = lynx("dataset", "show", made)
    assert done.code == 0
    for words in ("| items seen ", "| no face | 2 ", "| 1x64x64 ", "light, jitter", "all agreed", "4 examples in 1 shards"):
        assert words in done.out
    assert lynx("dataset", "show", made, "--quiet").out == f"{made}: 4 examples in 1 shards, none cut short\n"
    facts = json.loads(lynx("dataset", "show", made, "--json").out)
    assert (facts["examples"], facts["dropped_by_reason"], facts["shards"]) == (4, {"no face": 2}, 1)


def test_show_names_a_shard_that_is_cut_short(lynx, made):
    file = made / "shards" / "00000.tar"
    file.write_bytes(file.read_bytes()[:30_000])
    done = lynx("dataset", "show", made)
    assert done.code == 2
    assert "00000.tar is cut short: 30000 bytes" in done.err
    assert "Traceback" not in done.err


def test_show_finds_damage_when_it_reads_every_example(lynx, made):
    entry = Shards(made).entries[2]
    file = made / "shards" / entry.shard
    whole = bytearray(file.read_bytes())
    whole[entry.offset : entry.offset + 4] = b"\xff" * 4
    file.write_bytes(whole)
    assert lynx("dataset", "show", made).code == 0
    done = lynx("dataset", "show", made, "--check")
    assert done.code == 2
    assert f"example {entry.key} can't be read" in done.err


def test_show_draws_the_sheet_from_what_is_stored(lynx, made, tmp_path):
    assert lynx("dataset", "show", made, "--sheet", tmp_path / "sheet.png").code == 0
    sheet = read_picture(tmp_path / "sheet.png")
    assert sheet.shape[0] == 4 * (128 + 2 * 16 + 3 * 6)
    assert sheet.std() > 30
    done = lynx("dataset", "show", made, "--sheet", tmp_path / "sheet.png")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert lynx("dataset", "show", made, "--sheet", tmp_path / "sheet.bmp").code == 2


def test_a_sheet_is_drawn_by_the_right_vae_or_not_at_all(lynx, made, tmp_path):
    golden = Path(__file__).parents[1] / "golden" / "base"
    done = lynx("dataset", "show", made, "--sheet", tmp_path / "sheet.png", "--base-model-path", golden)
    assert done.code == 2
    assert "is not the base the set was made with (nano" in done.err
    card = json.loads((made / "dataset.json").read_text())
    card["model"]["name"] = "Wan-of-my-own"
    (made / "dataset.json").write_text(json.dumps(card))
    done = lynx("dataset", "show", made, "--sheet", tmp_path / "sheet.png")
    assert done.code == 2
    assert "say --base-model-path" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--bucket", "9x64"), "bucket must be FRAMESxHEIGHTxWIDTH"),
        (("--bucket", "8x64x64"), "frames must be 1 more than a multiple of 2"),
        (("--bucket", "9x62x64"), "height and width must be multiples of 8"),
        (("--augment", "glitter"), "unknown augmentation 'glitter'"),
        (("--references", "0"), "references must be from 1 to 1000"),
        (("--workers", "0"), "--workers must be 1 or more"),
        (("--workers", "1", "--ray-address", "x:1"), "give one of the two"),
        (("--model", "lynx-full", "--models", "/nowhere"), "lynx-video download"),
        (("--face-detector", "nowhere.onnx"), "nowhere.onnx"),
        (("--seeds", "1"), "did you mean --seed"),
    ],
)
def test_a_bad_request_is_one_sentence_and_leaves_nothing(lynx, tmp_path, more, said):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.png").write_bytes(b"x")
    done = lynx("dataset", "build", tmp_path / "clips", tmp_path / "out", *more)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["build", "show"])
def test_what_is_not_there_is_named(lynx, tmp_path, command):
    arguments = [tmp_path / "gone"] if command == "show" else [tmp_path / "gone", tmp_path / "out"]
    done = lynx("dataset", command, *arguments)
    assert done.code == 2
    assert f"{tmp_path}/gone" in done.err


def test_both_commands_have_help(lynx):
    assert "build" in lynx("dataset", "--help").out
    said = lynx("dataset", "build", "--help").out
    for option in ("--bucket", "--same-person", "--licence", "--ray-address", "--augment"):
        assert option in said
    assert "--check" in lynx("dataset", "show", "--help").out


def command_line(*arguments):
    """The command in a process of its own, as a shell would start it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return subprocess.Popen(
        [sys.executable, "-m", "lynx_video", "dataset", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder):
    """The bytes of all files in a folder by their names."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


PEOPLE, CLIPS = 20, 4


def film(folder):
    """80 clips and 20 photos of 20 people, and 25 planted faults; item -> reason for each of these."""
    rng, words = torch.Generator().manual_seed(2024), random.Random(0)
    who = faces.people(PEOPLE, rng)
    for number in range(CLIPS):
        made = data.clips(who, rng)
        for person in range(PEOPLE):
            frames = made.frames[person].permute(0, 2, 3, 1).contiguous().numpy()
            file = folder / f"p{person:02d}" / f"clip{number}.mp4"
            write_video(file, frames, 8.0)
            file.with_suffix(".txt").write_text(captions.caption(made.scene, person, int(made.motion[person]), "", words))
    photos = data.stills(who, rng, 128)[0]
    for person in range(PEOPLE):
        write_picture(folder / f"p{person:02d}" / "photo.png", photos[person].permute(1, 2, 0).contiguous().numpy())

    wall = np.broadcast_to(np.linspace(60, 180, 64).astype(np.uint8)[None, :, None], (64, 64, 3))
    whole = (folder / "p00" / "clip0.mp4").read_bytes()
    strangers = data.clips(faces.people(6, rng), rng).frames.permute(0, 1, 3, 4, 2).contiguous().numpy()
    planted = {}

    def plant(name, reason, pixels=None, data=None, caption="a person nods"):
        file, planted[name] = folder / name, reason
        if pixels is not None:
            write_video(file, pixels, 8.0)
        else:
            file.write_bytes(data)
        if caption is not None:
            file.with_suffix(".txt").write_text(caption)

    for number in range(3):
        plant(f"wall{number}.mp4", "no face", np.stack([wall] * 9))
        plant(f"cut{number}.mp4", "unreadable", data=whole[: 500 + 700 * number])
        plant(f"lonely{number}.mp4", "one photo only", strangers[number])
        plant(f"short{number}.mp4", "too short", strangers[5][: 2 + number])
        plant(f"silent{number}.mp4", "no caption", strangers[4], caption=" \n" if number else None)
    for number in range(3):
        plant(f"copy{number}.mp4", "duplicate", data=(folder / f"p1{number}" / "clip1.mp4").read_bytes())
        plant(f"both{number}.mp4", "several people", np.concatenate(strangers[number : number + 2], axis=2))
        plant(f"text{number}.pdf", "unknown kind of file", data=b"x", caption=None)
    plant("lost.txt", "caption without a file", data=b"a person", caption=None)
    return planted


@pytest.mark.slow
def test_killed_twice_it_equals_an_undisturbed_run_and_every_fault_is_named(tmp_path):
    planted = film(tmp_path / "source")
    assert len(planted) >= 0.1 * (PEOPLE * (CLIPS + 1) + len(planted))
    running = command_line("build", tmp_path / "source", tmp_path / "whole", "--workers", 1, "--json")
    out, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    card = json.loads(out)
    assert card["counts"]["seen"] == PEOPLE * (CLIPS + 1) + len(planted)
    found = [json.loads(line) for line in (tmp_path / "whole" / "dropped.jsonl").read_text().splitlines()]
    reasons = {line["item"]: line["reason"] for line in found}
    assert {item: reasons.get(item) for item in planted} == planted
    assert set(reasons) - set(planted) <= {
        line["item"] for line in found if line["reason"] in ("one photo only", "nothing to pair with", "no target")
    }, "nothing good is lost but a picture that found no other of its person"
    assert len(set(reasons) - set(planted)) <= 5
    for entry in Shards(tmp_path / "whole").entries:
        mine = entry.source.split("/")[0]
        assert entry.source not in entry.sources
        assert {source.split("/")[0] for source in entry.sources} == {mine}, "the references are of the same person"

    killed = tmp_path / "killed"
    for stage, enough in (("scan", 40), ("encoded", 40)):
        running = command_line("build", tmp_path / "source", killed, "--workers", 2, "--quiet")
        while len(list((killed / "work" / stage).glob("*.safetensors"))) < enough:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert not (killed / "dataset.json").exists()
    running = command_line("build", tmp_path / "source", killed, "--workers", 1, "--quiet")
    _, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    assert contents(killed) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray", "ignore:`use_push_based_shuffle`:DeprecationWarning", "ignore::ResourceWarning"
)
def test_what_was_built_can_be_trained_on(lynx, tmp_path):
    """The joint between the two commands: the card says which base the set is for, and training asks it."""
    rng = torch.Generator().manual_seed(3)
    who = faces.people(6, rng)
    for take in range(2):
        made = data.clips(who, rng)
        for person in range(6):
            file = tmp_path / "clips" / f"p{person}-{take}.mp4"
            write_video(file, made.frames[person].permute(0, 2, 3, 1).contiguous().numpy(), 8.0)
            file.with_suffix(".txt").write_text("a person nods")
    assert lynx("dataset", "build", tmp_path / "clips", tmp_path / "set", "--workers", 1).code == 0
    done = lynx("train", tmp_path / "set", tmp_path / "run", "--preset", "nano-video", "--dry-run", "--json")
    assert done.code == 0, done.err
