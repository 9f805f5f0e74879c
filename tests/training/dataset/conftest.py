"""What the tests of the training-set builder share: drawn people, files made of them, and nano's models."""

import dataclasses
import pickle
import random
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from lynx_video.cli.console import hush_libraries
from lynx_video.cli.dataset import EncoderFlags, survey_encoders
from lynx_video.media.image import write_picture
from lynx_video.media.video import write_video
from lynx_video.nano import captions, faces
from lynx_video.nano.recipe import data
from lynx_video.training.dataset.config import Bucket, DatasetConfig
from lynx_video.training.dataset.source import Item, item_key

PEOPLE, CLIPS, PHOTOS = 6, 3, 2
FPS = 8.0
BUCKETS = (Bucket(1, 64, 64), Bucket(9, 64, 64))
NANO = partial(survey_encoders, EncoderFlags(model="nano", device="cpu"))


class Drawn(NamedTuple):
    """clips[number][person] uint8 [9, 64, 64, 3], their captions, and photos[number][person] uint8 [128, 128, 3]."""

    clips: list
    captions: list
    photos: list


@pytest.fixture(scope="session")
def drawn():
    """The same few people, drawn for every test; treat as read-only."""
    rng, words = torch.Generator().manual_seed(11), random.Random(3)
    who = faces.people(PEOPLE, rng)
    who = dataclasses.replace(who, skin=torch.arange(PEOPLE) % 4, style=torch.arange(PEOPLE), hair=torch.arange(PEOPLE) % 7)
    made = [data.clips(who, rng) for _ in range(CLIPS)]
    photos = [data.stills(who, rng, 128)[0] for _ in range(PHOTOS)]
    return Drawn(
        clips=[[clip.permute(0, 2, 3, 1).contiguous().numpy() for clip in one.frames] for one in made],
        captions=[[captions.caption(one.scene, i, int(one.motion[i]), "", words) for i in range(PEOPLE)] for one in made],
        photos=[[photo.permute(1, 2, 0).contiguous().numpy() for photo in one] for one in photos],
    )


def shelf_in(root):
    """What `shelve` is, for another folder."""
    root.mkdir()

    def write(name, pixels, caption=None, fps=FPS):
        file = root / name
        if file.suffix in {".png", ".jpg"}:
            write_picture(file, pixels)
        else:
            write_video(file, pixels, fps)
        if caption is not None:
            file.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return file

    write.root = root
    return write


@pytest.fixture
def shelve(tmp_path):
    """shelve("a/b.mp4", frames, "a caption") writes a clip or, for .png, a picture into the source folder, with its caption."""
    return shelf_in(tmp_path / "source")


@pytest.fixture(scope="session")
def nano():
    """The nano model, surveyed."""
    return NANO()


@pytest.fixture
def look(shelve, nano):
    """look("a.mp4", caption="...") scans that file of the source folder; more arguments are of the config or the item."""
    from lynx_video.training.dataset.scan import Scanner

    def scan(name, caption="a person nods", start=None, stop=None, buckets=BUCKETS, **settings):
        scanner = Scanner(
            root=shelve.root,
            config=DatasetConfig(**settings),
            buckets=buckets,
            fps=FPS,
            reference_size=64,
            same_person=0.8,
            faces=nano.faces,
        )
        return scanner(Item(key=item_key(name, start, stop), file=name, caption=caption, start=start, stop=stop))

    return scan


class Here:
    """A pool of one, in this process: a stage's work and jobs travel as they would to a worker."""

    def run(self, name, work, jobs, progress, *, use_gpus=False):  # noqa: ARG002 (the pool's signature)
        do = pickle.loads(pickle.dumps(work)).open() if jobs else None
        for number, job in enumerate(jobs, 1):
            do(pickle.loads(pickle.dumps(job)))
            progress(name, number, len(jobs))


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries():
    """As the command line has it."""
    hush_libraries()


@pytest.fixture(scope="session")
def build_here():
    """build_here(source, out, seed=1, ...) makes a set with nano, in this process; its card. Arguments of `build` go in `how`."""
    from lynx_video.training.dataset import build

    @contextmanager
    def here(workers=None, address=None):  # noqa: ARG001
        yield Here()

    def call(source, out, how=None, **settings):
        config = DatasetConfig(**({"same_person": 0.8} | settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "open_pool", here)
            return build.build(source, out, config, name="nano", survey=NANO, **(how or {}))

    return call


@pytest.fixture
def build(build_here, tmp_path, shelve):
    """build("out", seed=1, ...) makes a set from the source folder in this process; its folder and card."""

    def call(name="out", source=None, how=None, **settings):
        return tmp_path / name, build_here(source or shelve.root, tmp_path / name, how, **settings)

    return call


def fill(shelve, drawn, people=3, clips=2, photos=1):
    """Fill a source folder with people in captioned clips and bare photos; the names of the files."""
    names = []
    for person in range(people):
        for number in range(clips):
            names.append(f"p{person}/clip{number}.mp4")
            shelve(names[-1], drawn.clips[number][person], drawn.captions[number][person])
        for number in range(photos):
            names.append(f"p{person}/photo{number}.png")
            shelve(names[-1], drawn.photos[number][person])
    return names


@pytest.fixture
def crowd(shelve, drawn):
    """crowd(people, clips, photos) fills the source folder; the names of the files."""
    return partial(fill, shelve, drawn)


def contents(folder: Path, *, but=()):
    """The bytes of all files in a folder by their names."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in but
    }


def dropped(out):
    """item -> (reason, detail) as `dropped.jsonl` has it."""
    import json

    lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len({line["item"] for line in lines}) == len(lines), "an item is dropped once"
    return {line["item"]: (line["reason"], line["detail"]) for line in lines}


def nobody(height=64, width=64, tone=60):
    """A picture of a wall in the sun."""
    row = np.linspace(tone, tone + 120, width).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))
