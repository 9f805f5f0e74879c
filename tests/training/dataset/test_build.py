"""Building a set, in this process: what is in it and in its card, that it goes on where it was, and what is refused."""

import dataclasses
import errno
import json

import numpy as np
import pytest
import torch
from sources import NANO, contents, dropped, fill, nobody, shelf_in

from lynx_video import work
from lynx_video.errors import BadData, BadOutput, BadRequest
from lynx_video.training import shards
from lynx_video.training.dataset import build as building
from lynx_video.training.dataset import encode, scan
from lynx_video.training.dataset.config import DatasetConfig
from lynx_video.training.shards import Shards


def test_a_set_holds_clips_and_stills_of_people_with_references_from_elsewhere(build, crowd):
    names = crowd(people=3, clips=2, photos=1)
    out, card = build()
    opened = Shards(out)
    assert len(opened) == card["examples"] == 12
    assert card["counts"] == {
        "seen": len(names),
        "targets": 6,
        "clips": 6,
        "references_only": 3,
        "dropped": 0,
        "people": 3,
        "people_named": 0,
    }
    assert card["examples_by_bucket"] == {"1x64x64": 6, "9x64x64": 6}
    assert card["examples_by_references"] == {"2": 12}
    assert dropped(out) == {}
    assert [entry.key for entry in opened.entries] == sorted(entry.key for entry in opened.entries)
    for entry in opened.entries:
        example = opened.read(entry)
        who = example.source.split("/")[0]
        assert {source.split("/")[0] for source in example.sources} == {who}
        assert example.source not in example.sources
        assert example.latents.shape == (12, (example.frames + 1) // 2, 16, 16)
        assert example.faces.shape == (2, 512)
        assert example.references.shape == (2, 12, 1, 16, 16)
        torch.testing.assert_close(example.faces.norm(dim=1), torch.ones(2))
        assert 1 < len(example.text) < 48
        assert all(torch.isfinite(tensor.float()).all() for tensor in (example.latents, example.references, example.text))
    assert not (out / "work").exists()
    assert (out / "sheet.png").stat().st_size > 10_000
    text = (out / "card.md").read_text()
    for words in ("| items seen ", "| 9x64x64 ", "nano", "Nothing was noted."):
        assert words in text
    assert str(out.parent) not in text + (out / "dataset.json").read_text(), "paths of this machine stay out of the card"


def test_a_captioned_photo_is_learned_and_a_manifest_names_people(build, shelve, drawn):
    for number in range(2):
        shelve(f"a{number}.png", drawn.photos[number][0])
        shelve(f"b{number}.mp4", drawn.clips[number][0])
    lines = [
        {"file": "a0.png", "caption": "a person", "person": "ann"},
        {"file": "a1.png", "caption": "a person", "person": "ann"},
        {"file": "b0.mp4", "caption": "a person nods", "person": "bob"},
        {"file": "b1.mp4", "caption": "a person nods", "person": "bob"},
        {"file": "b1.mp4", "capton": ""},
    ]
    manifest = shelve.root / "set.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    out, card = build(source=manifest, licence="all agreed | in writing", augment="none", references=1)
    assert (card["counts"]["people"], card["counts"]["people_named"]) == (2, 2)
    assert card["settings"]["augment"] == []
    assert {entry.person: entry.sources for entry in Shards(out).entries if entry.source in ("a0.png", "b0.mp4")} == {
        "ann": ("a1.png",),
        "bob": ("b1.mp4",),
    }
    assert dropped(out) == {
        "set.jsonl:5": ("malformed line", "unknown key 'capton'; the keys are file, caption, person, start, stop")
    }
    assert "all agreed | in writing" in (out / "card.md").read_text()


def test_everything_seen_is_learned_from_a_reference_or_dropped_by_name(build, crowd, shelve, drawn):
    crowd(people=2, clips=2, photos=1)
    shelve("lonely.mp4", drawn.clips[0][4], "a person nods")
    shelve("silent.mp4", drawn.clips[2][0])
    shelve("wall.mp4", np.stack([nobody()] * 9), "a wall")
    shelve("short.mp4", drawn.clips[2][1][:5], "a person nods")
    (shelve.root / "broken.mp4").write_bytes((shelve.root / "silent.mp4").read_bytes()[:600])
    (shelve.root / "broken.txt").write_text("a person")
    (shelve.root / "p0" / "photo0-copy.png").write_bytes((shelve.root / "p0" / "photo0.png").read_bytes())
    (shelve.root / "notes.doc").write_text("x")
    out, card = build()
    found = dropped(out)
    assert {item: reason for item, (reason, _) in found.items()} == {
        "lonely.mp4": "one photo only",
        "silent.mp4": "no caption",
        "wall.mp4": "no face",
        "short.mp4": "too short",
        "broken.mp4": "unreadable",
        "p0/photo0-copy.png": "duplicate",
        "notes.doc": "unknown kind of file",
    }
    assert found["p0/photo0-copy.png"][1] == "the same bytes as p0/photo0.png"
    counts = card["counts"]
    assert counts["dropped"] == len(found) == sum(card["dropped_by_reason"].values())
    assert counts["seen"] == counts["targets"] + counts["references_only"] + counts["dropped"]


@pytest.fixture(scope="module")
def source(drawn, tmp_path_factory):
    """A folder of two people, drawn once: an encoder of clips that works in parallel does not repeat itself to the byte."""
    folder = tmp_path_factory.mktemp("whole") / "source"
    fill(shelf_in(folder), drawn, people=2, clips=2, photos=1)
    return folder


@pytest.fixture(scope="module")
def whole(build_here, source):
    """The files of an undisturbed run, by name."""
    build_here(source, source.parent / "out")
    return contents(source.parent / "out")


@pytest.fixture
def disturbed(build, source):
    """disturbed() builds a set from the same source as `whole`, and goes on with it when called again; its files."""
    return lambda **settings: contents(build("disturbed", source=source, **settings)[0])


class Killed(BaseException):
    """What no part of the builder catches."""


def killing(function, after):
    """The function, which ends the process at its call number `after`."""
    calls = iter(range(after))

    def call(*arguments, **settings):
        if next(calls, None) is None:
            raise Killed
        return function(*arguments, **settings)

    return call


KILLS = [
    (scan.Scanner, "__call__", 4),
    (encode.Encoder, "__call__", 5),
    (encode.Encoder, "conditions", 0),
    (building, "write_shards", 0),
]


@pytest.mark.parametrize(("owner", "name", "after"), KILLS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_killed_anywhere_it_goes_on_and_ends_the_same(disturbed, whole, monkeypatch, owner, name, after):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), after))
        with pytest.raises(Killed):
            disturbed()
    assert disturbed() == whole


def test_killed_while_writing_a_shard_there_is_no_set_and_then_the_same(disturbed, whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_add", killing(shards._add, 5))
        with pytest.raises(Killed):
            disturbed()
    with pytest.raises(BadData, match="is not a finished training set"):
        Shards(tmp_path / "disturbed")
    assert disturbed() == whole


def test_what_is_done_is_not_done_again(disturbed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(encode.Encoder, "__call__", killing(encode.Encoder.__call__, 5))
        with pytest.raises(Killed):
            disturbed()
    looked, encoded = [], []
    real_look, real_encode = scan.Scanner.__call__, encode.Encoder.__call__
    monkeypatch.setattr(scan.Scanner, "__call__", lambda self, item: looked.append(item) or real_look(self, item))
    monkeypatch.setattr(encode.Encoder, "__call__", lambda self, job: encoded.append(job) or real_encode(self, job))
    disturbed()
    assert not looked
    assert len(encoded) == 8 - 5


def test_an_item_that_changed_between_two_runs_is_looked_at_again(build, crowd, shelve, drawn, monkeypatch):
    crowd(people=2, clips=2, photos=1)
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_shards", killing(building.write_shards, 0))
        with pytest.raises(Killed):
            build("killed")
    shelve("p0/clip0.mp4", drawn.clips[2][0], drawn.captions[2][0])
    out, _ = build("killed")
    fresh, _ = build("fresh")
    assert contents(out) == contents(fresh)


def test_a_crash_on_one_item_is_its_drop_and_not_the_end(build, crowd, monkeypatch):
    crowd(people=2, clips=2, photos=1)
    real_look, real_encode = scan.Scanner.__call__, encode.Encoder.__call__

    def look(self, item):
        if item.file == "p0/photo0.png":
            raise ZeroDivisionError("in the middle\nof it")
        return real_look(self, item)

    def make(self, job):
        if job.item.file == "p1/clip1.mp4" and job.kind == "still":
            raise RuntimeError("no way")
        return real_encode(self, job)

    monkeypatch.setattr(scan.Scanner, "__call__", look)
    monkeypatch.setattr(encode.Encoder, "__call__", make)
    out, card = build()
    assert dropped(out) == {
        "p0/photo0.png": ("failed", "ZeroDivisionError: in the middle of it"),
        "p1/clip1.mp4": ("failed", "RuntimeError: no way"),
    }
    assert "p1/clip1.mp4" not in {entry.source for entry in Shards(out).entries}
    counts = card["counts"]
    assert counts["seen"] == counts["targets"] + counts["references_only"] + counts["dropped"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = {
    "settings": (building, "claim_work"),
    "scan": None,
    "encoded": None,
    "card": (building, "to_markdown"),
    "sheet": ("PIL.Image.Image", "save"),
    "shards": (shards, "_add"),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(disturbed, whole, monkeypatch, where):
    real = work.Shelf.save
    with monkeypatch.context() as patch:
        if FULL[where] is None:
            patch.setattr(
                work.Shelf, "save", lambda self, *values: full() if self.folder.name == where else real(self, *values)
            )
        elif isinstance(FULL[where][0], str):
            patch.setattr(".".join(FULL[where]), full)
        else:
            patch.setattr(*FULL[where], full)
        with pytest.raises(BadOutput, match=r"the disk is full; make room and give the same command again") as caught:
            disturbed()
    assert "\n" not in str(caught.value)
    assert disturbed() == whole


def test_other_settings_are_refused_by_name_or_begin_anew(disturbed, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_shards", killing(building.write_shards, 0))
        with pytest.raises(Killed):
            disturbed()
    with pytest.raises(BadOutput, match="was begun with seed 42, now it is 7"):
        disturbed(seed=7)
    other = disturbed(seed=7, how={"overwrite": True})
    assert other.keys() == whole.keys()
    assert other["shards/00000.tar"] != whole["shards/00000.tar"]


def test_a_finished_set_is_refused_and_overwritten_only_when_asked(disturbed, whole, tmp_path):
    disturbed()
    with pytest.raises(BadOutput, match="holds a finished training set"):
        disturbed()
    (tmp_path / "disturbed" / "my notes.txt").write_text("x")
    found = disturbed(how={"overwrite": True, "keep_work": True})
    assert {name.split("/")[1] for name in found if name.startswith("work/")} == {"settings.json", "scan", "encoded"}
    assert found.pop("my notes.txt") == b"x", "only what belongs to the set is removed"
    assert {name: data for name, data in found.items() if not name.startswith("work/")} == whole


def test_a_folder_with_something_else_in_it_is_left_alone(build, crowd, tmp_path):
    crowd(people=1)
    (tmp_path / "mine" / "shards").mkdir(parents=True)
    (tmp_path / "mine" / "shards" / "precious.tar").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(BadOutput, match="is not empty, and what is in it is no training set"):
            build("mine", how={"overwrite": overwrite})
    assert (tmp_path / "mine" / "shards" / "precious.tar").read_bytes() == b"x"
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BadOutput, match="is a file"):
        build("file")
    with pytest.raises(BadOutput, match="lies in"):
        build("source/out")


def test_a_source_of_which_nothing_is_left_says_why(build, shelve, drawn, tmp_path):
    shelve("a.mp4", drawn.clips[0][0], "a person nods")
    shelve("b.mp4", np.stack([nobody()] * 9), "a wall")
    with pytest.raises(BadData, match="nothing is left to learn from: 1 one photo only, 1 no face; each by name in"):
        build()
    assert set(dropped(tmp_path / "out")) == {"a.mp4", "b.mp4"}
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bucket": ("8x64x64",)}, "frames must be 1 more than a multiple of 2"),
        ({"bucket": ("9x60x64",)}, "height and width must be multiples of 8"),
        ({"augment": "light,glitter"}, "unknown augmentation 'glitter'"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_any_work(build, crowd, tmp_path, settings, said):
    crowd(people=1)
    with pytest.raises(BadRequest, match=said):
        build(**settings)
    assert not (tmp_path / "out").exists()


def test_several_buckets(build, crowd):
    crowd(people=2, clips=2, photos=1)
    out, card = build(bucket=("5x64x64", "9x64x64", "1x32x32"))
    assert card["examples_by_bucket"] == {"1x32x32": 4, "9x64x64": 4}
    assert {entry.latent for entry in Shards(out).entries} == {(1, 8, 8), (5, 16, 16)}


def test_the_config_refuses_what_cannot_work():
    for field, value in [("references", 0), ("present", 1.5), ("enlargement", 0.5), ("turned", float("nan")), ("seed", -1)]:
        with pytest.raises(BadRequest, match=field):
            DatasetConfig(**{field: value})
    for text in ("9x64", "0x64x64", "axbxc", "9x64x64x3", "9×64×64"):
        with pytest.raises(BadRequest, match="bucket must be FRAMESxHEIGHTxWIDTH"):
            DatasetConfig(bucket=(text,))
    assert all(field.name for field in dataclasses.fields(DatasetConfig))


def test_the_survey_is_called_anew_where_it_is_needed():
    assert NANO().base_hash == NANO().base_hash
