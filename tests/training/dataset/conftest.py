"""What the tests of the training-set builder share: drawn people, files made of them, and nano's models."""

import dataclasses
import random
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
import torch
from sources import FPS, NANO, fill, shelf_in

from lynx_video.cli.console import hush_libraries
from lynx_video.nano import captions, faces
from lynx_video.nano.recipe import data
from lynx_video.training.dataset.config import Bucket, DatasetConfig
from lynx_video.training.dataset.source import Item, item_key

PEOPLE, CLIPS, PHOTOS = 6, 3, 2
BUCKETS = (Bucket(1, 64, 64), Bucket(9, 64, 64))


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


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries():
    """As the command line has it."""
    hush_libraries()


@pytest.fixture(scope="session")
def build_here(here_pool):
    """build_here(source, out, seed=1, ...) makes a set with nano, in this process; its card. Arguments of `build` go in `how`."""
    from lynx_video.training.dataset import build

    @contextmanager
    def here(workers=None, address=None):  # noqa: ARG001
        yield here_pool

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


@pytest.fixture
def crowd(shelve, drawn):
    """crowd(people, clips, photos) fills the source folder; the names of the files."""
    return partial(fill, shelve, drawn)
