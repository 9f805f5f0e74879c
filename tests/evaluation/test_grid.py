"""Subjects, prompts and seeds: names and noise that are the same for every system and however large the grid is."""

import hashlib

import numpy as np
import pytest

from lynx_video.errors import BadData, BadRequest
from lynx_video.evaluation.grid import GridConfig, draw_subjects, entries, read_subjects
from lynx_video.evaluation.prompts import NANO_PROMPTS, Prompt
from lynx_video.face.detect import find_faces
from lynx_video.media.image import read_picture
from lynx_video.pipeline.models import MODELS


def test_keys_and_noise_do_not_change_with_the_grid(tmp_path):
    people = draw_subjects(tmp_path / "a", 3)
    small = entries(tmp_path / "a", people[1:2], NANO_PROMPTS[4:6], 1)
    large = {one.key: one for one in entries(tmp_path / "b", draw_subjects(tmp_path / "b", 3), NANO_PROMPTS, 2)}
    assert len(large) == 3 * 20 * 2
    for entry in small:
        other = large[entry.key]
        assert (entry.seed, entry.prompt, entry.subject) == (other.seed, other.prompt, other.subject)
        assert entry.clip.relative_to(tmp_path / "a") == other.clip.relative_to(tmp_path / "b")
        assert entry.reference.read_bytes() == other.reference.read_bytes()
    assert len({one.seed for one in large.values()}) == len(large)
    assert len({one.clip for one in large.values()}) == len(large)


def test_drawn_subjects_stay_as_they_are_and_show_one_person(tmp_path):
    first = draw_subjects(tmp_path, 2)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert len(times) == 8
    (first[0].others[1]).unlink()
    content = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in times if file.exists()}
    again = draw_subjects(tmp_path, 3)
    assert again[:2] == first
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == digest for file, digest in content.items())
    faces = MODELS["nano"].faces(None)
    from lynx_video.face.align import arcface_crop
    from lynx_video.face.likeness import signed

    def vector(file):
        picture = read_picture(file)
        crop = arcface_crop(picture, find_faces(picture, faces.detector())[0].points)
        return faces.judge()(signed(crop[None]))[0].numpy()

    album = [np.stack([vector(file) for file in (one.reference, *one.others)]) for one in again]
    for i, mine in enumerate(album):
        assert (mine @ mine.T).min() > 0.6
        for other in album[:i]:
            assert (mine @ other.T).max() < 0.6


def test_subjects_in_a_folder(tmp_path):
    def put(*names):
        for name in names:
            file = tmp_path / "photos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")

    put("Ben.JPG", "anna/Reference.png", "anna/b.jpg", "anna/a.jpg", "anna/notes.txt", "carl/only.webp", ".hidden.png", "x.txt")
    put("dora di/reference.heic")
    found = {one.name: one for one in read_subjects(tmp_path / "photos")}
    assert sorted(found) == ["Ben", "anna", "carl", "dora-di"]
    assert found["anna"].reference.name == "Reference.png"
    assert [other.name for other in found["anna"].others] == ["a.jpg", "b.jpg"]
    assert found["carl"].reference.name == "only.webp"
    (tmp_path / "photos" / "frida").mkdir()
    (tmp_path / "photos" / "frida" / "reference.png").symlink_to("nowhere.png")
    (tmp_path / "photos" / "frida" / "other.jpg").mkdir()
    put("frida/b.png")
    assert {one.name: one for one in read_subjects(tmp_path / "photos")}["frida"].reference.name == "b.png"
    put("eva/1.png", "eva/2.png")
    with pytest.raises(BadData, match=r"eva has 2 photos"):
        read_subjects(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="holds no subject"):
        read_subjects(tmp_path / "empty")
    with pytest.raises(BadData, match="is not there"):
        read_subjects(tmp_path / "nowhere")


def test_bad_grids(tmp_path):
    people = draw_subjects(tmp_path, 1)
    with pytest.raises(BadRequest, match="subject 'person000' is there twice"):
        entries(tmp_path, people * 2, NANO_PROMPTS, 1)
    with pytest.raises(BadRequest, match="prompt 'a' is there twice"):
        entries(tmp_path, people, [Prompt(id="a", text="x"), Prompt(id="a", text="y")], 1)
    for name in ("people", "tasks", "seeds"):
        with pytest.raises(BadRequest, match=name):
            GridConfig(**{name: 0})
