"""The gallery: what lies in the folder, newest first, by its own records; and nothing else of that folder."""

import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from lynx_video.errors import BadRequest
from lynx_video.media.video import write_video
from lynx_video.ui.gallery import Entry, entries, find_entry, lend, still

RECORD = {"prompt": "the person  smiles\n", "seed": 3, "num_inference_steps": 2, "similarity": 0.9}


@pytest.fixture
def folder(tmp_path):
    """Three clips, of which the middle one is a webp, and what is none of ours."""
    for age, (name, record) in enumerate([("c.mp4", RECORD), ("b.webp", {**RECORD, "prompt": None}), ("a.mp4", RECORD)]):
        frames = np.full((3, 32, 48, 3), 50 * age + 20, np.uint8)
        write_video(tmp_path / name, frames, 8, record)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    write_video(tmp_path / "holiday.mp4", np.zeros((3, 32, 32, 3), np.uint8), 8, {"title": "not ours"})
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / ".c.0123.mp4").write_bytes((tmp_path / "c.mp4").read_bytes())
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


def test_newest_first_and_ours_alone(folder):
    found, older = entries(folder, 10)
    assert [entry.name for entry in found] == ["c.mp4", "b.webp", "a.mp4"]
    assert older == 0
    assert [entry.title for entry in found][:2] == ["the person smiles", "private: the prompt is not told"]
    newest, older = entries(folder, 1)
    assert len(newest) == 1
    assert older >= 2
    assert entries(folder / "nowhere", 10) == ([], 0)


def test_a_clip_that_was_replaced_is_read_anew(folder):
    before = entries(folder, 10)[0][-1]
    dark = still(before).mean()
    write_video(folder / "a.mp4", np.full((3, 32, 48, 3), 250, np.uint8), 8, {**RECORD, "seed": 99})
    after = find_entry(folder, "a.mp4")
    assert (before.record["seed"], after.record["seed"]) == (3, 99)
    assert still(after).mean() > 200 > dark


def test_a_still_is_the_first_frame(folder):
    for entry, value in zip(entries(folder, 10)[0], (20, 70, 120), strict=True):
        picture = still(entry)
        assert picture.shape == (213, 320, 3)
        assert abs(int(picture.mean()) - value) <= 3


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/etc/passwd", "secret.txt", "nothing.mp4", "", ".", "..", "link.mp4", "folder.mp4"]
)
def test_no_name_leads_elsewhere(folder, name):
    (folder / "link.mp4").symlink_to(folder / "c.mp4")
    (folder.parent / "secret.mp4").write_bytes((folder / "c.mp4").read_bytes())
    with pytest.raises(BadRequest, match="no such clip"):
        find_entry(folder, name)
    assert "link.mp4" not in [entry.name for entry in entries(folder, 10)[0]]


def test_a_clip_is_lent_as_a_copy_with_its_settings(folder, tmp_path_factory):
    lent = tmp_path_factory.mktemp("lent")
    entry = find_entry(folder, "c.mp4")
    clip, settings = lend(entry, lent)
    assert clip.read_bytes() == entry.path.read_bytes()
    assert json.loads(settings.read_text()) == RECORD
    assert lend(entry, lent) == (clip, settings)
    assert {file.name for file in lent.rglob("*") if file.is_file()} == {"c.mp4", "c.json"}
    entry.path.unlink()
    assert lend(entry, lent)[0] == clip
    gone = find_entry(folder, "b.webp")
    gone.path.unlink()
    with pytest.raises(BadRequest, match=r"b\.webp: can't be shown"):
        lend(gone, lent)


def test_a_record_cannot_bring_html_into_the_page(folder):
    from lynx_video.ui import view

    hostile = {**RECORD, "prompt": "<img src=x onerror=alert(1)>", "judge": "<b>", "model": "<i>", "consent": "<script>"}
    shown = view.facts(hostile, alike=0.8, cautions=["<u>"], origin="<s>")
    assert not any(f"<{tag}" in shown for tag in ("img", "b>", "i>", "script", "u>", "s>"))
    assert "&lt;img src=x" in shown
    assert Path(folder).is_dir()


def test_one_odd_file_does_not_empty_the_gallery(folder, monkeypatch):
    from PIL import Image

    before = [entry.name for entry in entries(folder, 10)[0]]
    Image.new("RGB", (600, 600)).save(folder / "huge.webp")
    (folder / "closed.mp4").write_bytes(b"not for everybody")
    opened = Path.open

    def guarded(self, *given, **named):
        if self.name == "closed.mp4":
            raise PermissionError(13, "Permission denied")
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", guarded)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert [entry.name for entry in entries(folder, 10)[0]] == before
    huge = Entry(path=folder / "huge.webp", record={}, made=datetime.now(), stamp=(1, 1))
    assert still(huge) is None
