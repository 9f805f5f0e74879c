"""`lynx-video faces` and `demo`, with nano's own face models."""

import json

import numpy as np
import pytest

from lynx_video.cli.demo import contact_sheet
from lynx_video.errors import BadOutput
from lynx_video.media.image import read_picture, write_picture
from lynx_video.media.video import read_metadata
from lynx_video.nano.people import portrait
from lynx_video.pipeline.models import NANO

needs_faces = pytest.mark.skipif(
    not (NANO / "face" / "detector.safetensors").is_file(), reason="nano's face models are not in the package"
)
needs_nano = pytest.mark.skipif(
    not (NANO / "lynx_full" / "resampler.safetensors").is_file(), reason="nano's weights are not in the package"
)


def test_people_are_the_same_for_the_same_seed_and_others_for_another():
    first, again, other = portrait(3), portrait(3), portrait(4)
    assert (first.shape, first.dtype) == ((256, 256, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_sheet_shows_the_portrait_and_frames_enlarged_without_blur():
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    sheet = contact_sheet(portrait(1), frames)
    assert sheet.shape == (256, 10 * 260 - 4, 3)
    assert np.array_equal(sheet[:, :256], portrait(1))
    assert np.array_equal(sheet[::4, 260:516:4], frames[0])
    assert np.array_equal(sheet[3::4, 9 * 260 + 3 :: 4], frames[8])


@pytest.fixture
def two_people(tmp_path):
    """A picture of two drawn people, the larger one on the right."""
    picture = np.full((256, 448, 3), 127, np.uint8)
    picture[64:256, :192] = portrait(5, 192)
    picture[:, 192:] = portrait(6)
    file = tmp_path / "two.png"
    write_picture(file, picture)
    return file


@needs_faces
def test_faces_are_listed_largest_first_and_drawn(lynx, two_people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = lynx("faces", two_people)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("   ")]
    assert lines[0].startswith("0: ")
    assert lines[1].startswith("1: ")
    assert lines[2] == "numbered picture: two-faces.png"
    assert not np.array_equal(read_picture(tmp_path / "two-faces.png"), read_picture(two_people))
    assert lynx("faces", two_people).code == 2  # the picture is there
    facts = json.loads(lynx("faces", two_people, "--overwrite", "--json").out)
    first, second = facts["faces"]
    assert first["size"] > second["size"]
    assert first["box"][0] > 192 > second["box"][0]


@needs_faces
def test_a_record_holds_the_chosen_face(lynx, two_people, tmp_path):
    from lynx_video.face.record import read_record

    points = {}
    for index in (0, 1):
        record = tmp_path / f"{index}.json"
        done = lynx("faces", two_people, "--record", record, "--face_index", index, "-o", tmp_path / "n.png", "--overwrite")
        assert done.code == 0, done.err
        points[index] = read_record(record).points
    assert points[0][:, 0].min() > 192 > points[1][:, 0].max()
    beyond = lynx("faces", two_people, "--face-index", 2, "-o", tmp_path / "m.png")
    assert (beyond.code, (tmp_path / "m.png").exists()) == (2, False)


@needs_faces
def test_a_record_stays_only_if_the_picture_could_be_written(lynx, two_people, tmp_path, monkeypatch):
    def full(*_):
        raise BadOutput("the disk is full.")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("lynx_video.media.image.write_picture", full)
        failed = lynx("faces", two_people, "--record", tmp_path / "new" / "r.json", "-o", tmp_path / "n.png", "--quiet")
    assert (failed.code, failed.err) == (2, "error: the disk is full.\n")
    assert sorted(tmp_path.iterdir()) == before
    done = lynx("faces", two_people, "--record", tmp_path / "new" / "r.json", "-o", tmp_path / "n.png", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "new" / "r.json").is_file()


@needs_nano
def test_a_demo_leaves_all_or_nothing_and_names_its_portrait(lynx, tmp_path, monkeypatch):
    def full(*_):
        raise BadOutput("the disk is full.")

    folder = tmp_path / "demo"
    request = ("demo", "--output-dir", folder, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("lynx_video.cli.demo.contact_sheet", full)
        assert lynx(*request).code == 2
        assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr("lynx_video.nano.people.portrait", lambda *_: np.full((256, 256, 3), 90, np.uint8))
        nobody = lynx(*request)
    assert nobody.code == 2
    assert nobody.err.startswith(f"error: {folder / 'portrait.png'}: No face was found")
    assert not folder.exists()


@needs_nano
def test_the_demo_draws_a_person_and_films_them(lynx, tmp_path):
    done = lynx("demo", "--output-dir", tmp_path / "demo", "--seed", 7)
    assert done.code == 0, done.err
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == ["clip.mp4", "portrait.png", "sheet.png"]
    assert np.array_equal(read_picture(tmp_path / "demo" / "portrait.png"), portrait(7))
    assert read_metadata(tmp_path / "demo" / "clip.mp4")["portrait"] == "portrait.png"
    assert read_metadata(tmp_path / "demo" / "clip.mp4")["face_index"] == 0
    assert "similarity" in done.out
    assert "lynx-video generate --subject-image" in done.out
