"""A set on disk: the same examples are the same bytes, every one is found again, and what is damaged is named."""

import dataclasses
import errno
import json
import tarfile

import pytest
import torch

from lynx_video.errors import BadData
from lynx_video.training import shards
from lynx_video.training.shards import Conditions, Shards, write_shards
from lynx_video.types import Example

COUNT = 7


def example(number):
    random = torch.Generator().manual_seed(number)
    return Example(
        key=f"clip-{number:03d}",
        latents=torch.randn(12, 5, 16, 16, generator=random).half(),
        frames=9,
        height=64,
        width=64,
        text=torch.randn(3 + number, 64, generator=random).bfloat16(),
        caption=f"a person, ünïcode {number}",
        faces=torch.nn.functional.normalize(torch.randn(2, 512, generator=random), dim=1),
        references=torch.randn(2, 12, 1, 16, 16, generator=random).half(),
        person="ann",
        source=f"{number}.mp4",
        sources=("a.mp4", "b.png"),
    )


CONDITIONS = Conditions(
    empty_text=torch.zeros(48, 64).bfloat16(),
    reference_text=torch.ones(48, 64).bfloat16(),
    nobody_reference=torch.ones(12, 1, 16, 16).half(),
)


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "set", map(example, range(COUNT)), CONDITIONS, {"note": "x"}, shard_bytes=60_000)
    return tmp_path / "set"


def test_every_example_is_found_again(folder):
    opened = Shards(folder)
    assert len(opened) == COUNT
    assert len({entry.shard for entry in opened.entries}) > 1
    for number in (3, 0, 6, 3):
        entry, expected = opened.entries[number], example(number)
        assert (entry.latent, entry.text_tokens) == ((5, 16, 16), 3 + number)
        found = opened.read(entry)
        for field in dataclasses.fields(Example):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
            assert same, field.name
    for field in dataclasses.fields(Conditions):
        assert torch.equal(getattr(opened.conditions, field.name), getattr(CONDITIONS, field.name))
    assert opened.card == {"format": 1, "examples": COUNT, "note": "x"}


def test_the_same_examples_are_the_same_bytes(folder, tmp_path):
    write_shards(tmp_path / "again", map(example, range(COUNT)), CONDITIONS, {"note": "x"}, shard_bytes=60_000)
    for file in folder.rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file.name
    assert Shards(folder).card_hash == Shards(tmp_path / "again").card_hash


def test_a_shorter_set_leaves_no_shard_of_a_longer_one(folder):
    write_shards(folder, [example(0)], CONDITIONS, {})
    assert len(list((folder / "shards").iterdir())) == 1
    assert len(Shards(folder)) == 1


def test_a_tar_holds_plain_files(folder):
    with tarfile.open(folder / "shards" / "00000.tar") as tar:
        names, member = tar.getnames(), tar.getmembers()[0]
        words = json.load(tar.extractfile("clip-000.json"))
    assert names[:2] == ["clip-000.safetensors", "clip-000.json"]
    assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert words["caption"] == "a person, ünïcode 0"


def test_a_key_comes_once(tmp_path):
    with pytest.raises(ValueError, match="two examples have the key 'clip-001'"):
        write_shards(tmp_path, map(example, [0, 1, 1]), CONDITIONS, {})
    with pytest.raises(BadData, match="is not a finished training set"):
        Shards(tmp_path)


def test_a_shard_cut_short_is_named(folder):
    last = sorted((folder / "shards").iterdir())[-1]
    end = max(entry.offset + entry.size for entry in Shards(folder).entries if entry.shard == last.name)
    whole = last.read_bytes()
    last.write_bytes(whole[:end])  # what comes after the last tensors is not needed
    Shards(folder)
    last.write_bytes(whole[: end - 1])
    with pytest.raises(BadData, match=rf"{last.name} is cut short: {end - 1} bytes, and its last example ends at {end}"):
        Shards(folder)
    last.unlink()
    with pytest.raises(BadData, match=f"{last.name} is not there"):
        Shards(folder)


def test_damage_inside_a_shard_is_found_on_reading(folder):
    opened = Shards(folder)
    entry = opened.entries[2]
    file = folder / "shards" / entry.shard
    data = bytearray(file.read_bytes())
    data[entry.offset : entry.offset + 8] = b"\xff" * 8
    file.write_bytes(data)
    with pytest.raises(BadData, match=rf"example {entry.key} can't be read"):
        opened.read(entry)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dataset.json", None, "is not a finished training set"),
        ("dataset.json", "{", "is not the card of a training set"),
        ("dataset.json", "[]", "is not the card of a training set"),
        ("dataset.json", '{"format": 99}', "format 99, this version reads format 1"),
        ("index.jsonl", "{}\n", "is not the index of a training set"),
        ("index.jsonl", None, "is not the index of a training set"),
        ("conditions.safetensors", "x", "does not hold the conditions"),
    ],
)
def test_a_set_that_is_none_is_refused(folder, name, content, said):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(BadData, match=said):
        Shards(folder)


@pytest.mark.parametrize("where", ["_add", "asdict"])
def test_a_set_that_could_not_be_finished_is_no_set(folder, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(folder, map(example, range(COUNT)), CONDITIONS, {})
    assert not list(folder.rglob(".*")), "nothing half-written is left"
    with pytest.raises(BadData, match="is not a finished training set"):
        Shards(folder)
