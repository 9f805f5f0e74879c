"""Face records there and back, and every way in which one can be wrong."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from lynx_video.errors import BadOutput, BadRequest
from lynx_video.face.record import read_record, write_record

POINTS = np.array([[198.1, 104], [246, 106], [224, 130.3], [202, 150], [243, 151]], dtype=np.float32)


@pytest.fixture
def embedding():
    vector = np.random.default_rng(0).normal(size=512).astype(np.float32)
    return vector / np.linalg.norm(vector)


@pytest.fixture
def good(embedding):
    return {"points": POINTS.tolist(), "embedding": embedding.tolist()}


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_there_and_back_exactly(tmp_path, embedding, convert):
    path = tmp_path / "face.json"
    write_record(path, POINTS, convert(embedding))
    back = read_record(path)
    assert back.points.dtype == back.embedding.dtype == np.float32
    np.testing.assert_array_equal(back.points, POINTS)
    np.testing.assert_array_equal(back.embedding, embedding)
    plain = json.loads(path.read_text())
    assert sorted(plain) == ["embedding", "points"]
    assert np.shape(plain["points"]) == (5, 2)
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_other_keys_and_rounded_numbers_are_taken(tmp_path, good):
    path = tmp_path / "face.json"
    path.write_text(json.dumps(good | {"embedding": [round(x, 4) for x in good["embedding"]], "note": "Alice"}))
    assert read_record(path).embedding.shape == (512,)


def test_replaces_a_file_only_when_the_new_one_is_whole(tmp_path, embedding, monkeypatch):
    path = tmp_path / "face.json"
    path.write_text("old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BadOutput, match="No space left"):
        write_record(path, POINTS, embedding)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_record(path, POINTS, embedding)
    assert read_record(path).points.shape == (5, 2)


def test_place_that_cannot_be_written(tmp_path, embedding):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOutput, match="file"):
        write_record(tmp_path / "file" / "face.json", POINTS, embedding)
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadOutput, match="folder"):
        write_record(tmp_path / "folder", POINTS, embedding)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_the_file_mode_mask_is_left_alone(tmp_path, embedding, monkeypatch):
    """The mask belongs to the whole process: another thread would write files for everybody meanwhile."""

    def changed(mask):
        raise AssertionError(f"umask was set to {mask}")

    monkeypatch.setattr(os, "umask", changed)
    write_record(tmp_path / "new" / "face.json", POINTS, embedding)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["face.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": None}, "points.*5 x 2 numbers"),
        ({"points": POINTS[:4].tolist()}, "points.*not 4 x 2"),
        ({"points": POINTS.ravel().tolist()}, "points.*not 10"),
        ({"points": [[1, 2], [3]]}, "points.*5 x 2 numbers"),
        ({"points": [["1", "2"]] * 5}, "points.*nothing else"),
        ({"points": [[True, False]] * 5}, "points.*nothing else"),
        ({"points": [[float("nan"), 1.0]] * 5}, "points.*finite"),
        ({"points": [[1e300, 1.0]] * 5}, "points.*finite"),
        ({"points": 3}, "points.*one number"),
        ({"embedding": [0.1] * 511}, "embedding.*not 511"),
        ({"embedding": [float("inf")] * 512}, "embedding.*finite"),
        ({"embedding": [0.0] * 512}, "embedding.*length 0, not 1"),
        ({"embedding": [1.0] * 512}, "embedding.*length 22.63, not 1"),
        ({"embedding": {}}, "embedding.*512 numbers"),
    ],
)
def test_wrong_values(tmp_path, good, change, words):
    path = tmp_path / "face.json"
    path.write_text(json.dumps(good | change))
    with pytest.raises(BadRequest, match=words) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_norm_is_held_to_a_thousandth(tmp_path, good, embedding):
    path = tmp_path / "face.json"
    for factor, fine in ((1.0009, True), (0.9991, True), (1.0011, False), (0.9989, False)):
        path.write_text(json.dumps(good | {"embedding": (embedding.astype(float) * factor).tolist()}))
        if fine:
            read_record(path)
        else:
            with pytest.raises(BadRequest, match="length"):
                read_record(path)


@pytest.mark.parametrize("key", ["points", "embedding"])
def test_missing_key(tmp_path, good, key):
    path = tmp_path / "face.json"
    del good[key]
    path.write_text(json.dumps(good))
    with pytest.raises(BadRequest, match=f"no key {key}"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100000])
def test_not_json(tmp_path, content):
    path = tmp_path / "face.json"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="not valid JSON"):
        read_record(path)


def test_not_an_object_or_not_there(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BadRequest, match="JSON object"):
        read_record(tmp_path / "list.json")
    with pytest.raises(BadRequest, match=r"nowhere\.json cannot be read"):
        read_record(tmp_path / "nowhere.json")
    with pytest.raises(BadRequest, match="cannot be read"):
        read_record(tmp_path)


def test_writing_refuses_what_reading_would(tmp_path, embedding):
    for points, vector in ((POINTS[:4], embedding), (POINTS, embedding * 2), (POINTS * np.nan, embedding)):
        with pytest.raises(BadRequest):
            write_record(tmp_path / "face.json", points, vector)
    assert list(tmp_path.iterdir()) == []
