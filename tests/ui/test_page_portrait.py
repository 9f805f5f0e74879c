"""A portrait on the page: its faces, how they are drawn and pointed at, and what is said of bad pictures."""

import numpy as np
import pytest

from lynx_video.errors import BadPicture, NoFace
from lynx_video.ui import view
from lynx_video.ui.portrait import CHOSEN, SHOWN_SIDE


def test_faces_are_numbered_from_the_largest(desk, pictures):
    found = desk.portrait(pictures["three"], "family.png")
    widths = [face.box[2] - face.box[0] for face, _ in found.faces]
    assert len(widths) == 3
    assert found.label(0).startswith("Face 0, the largest: ")
    assert "largest" not in found.label(1)
    assert max(found.shown.shape) == SHOWN_SIDE
    assert "3 faces found. Face 0 is chosen because it is the largest" in view.about_faces(found, 0)
    assert "Face 2 is chosen;" in view.about_faces(found, 2)


def test_a_click_finds_the_face_that_is_there(desk, pictures):
    for which in ("three", "one", "small"):  # shown smaller, and larger, than they are
        found = desk.portrait(pictures[which], "family.png")
        for index, (face, _) in enumerate(found.faces):
            left, top, right, bottom = (value * found.scale for value in face.box)
            assert found.at((left + right) / 2, (top + bottom) / 2) == index
            assert found.at(right - 2, bottom - 2) == index
        assert found.at(1, 1) is None


def test_the_chosen_face_is_drawn_in_colour_and_the_picture_stays(desk, pictures):
    found = desk.portrait(pictures["three"], "family.png")
    before = found.shown.copy()
    for index, (face, _) in enumerate(found.faces):
        drawn = found.drawn(index)
        x, y = round(face.box[0] * found.scale), round((face.box[1] + face.box[3]) / 2 * found.scale)
        assert tuple(drawn[y, x]) == CHOSEN
        assert (np.abs(drawn.astype(int) - np.array(CHOSEN)).sum(axis=2) == 0).sum() < drawn[..., 0].size / 10
    assert np.array_equal(found.shown, before)


def test_what_costs_likeness_is_said(desk, pictures):
    said = view.about_faces(desk.portrait(pictures["small"], "me.png"), 0)
    assert "This will cost likeness" in said
    assert "The face is small" in said
    assert "large, sharp and upright" in view.about_faces(desk.portrait(pictures["one"], "me.png"), 0)


@pytest.mark.parametrize(
    ("which", "error", "words"),
    [
        ("none", NoFace, "No face was found"),
        ("text", BadPicture, "not a picture"),
        ("dot", BadPicture, "at least 32"),
        ("huge", BadPicture, "100 megapixels"),
    ],
)
def test_a_bad_picture_is_refused_by_its_own_name(desk, pictures, tmp_path, which, error, words):
    kept = tmp_path / "0123456789abcdef.png"
    kept.write_bytes(pictures[which].read_bytes())
    with pytest.raises(error, match=words) as told:
        desk.portrait(kept, "my <b>holiday</b>.png")
    assert "my <b>holiday</b>.png" in str(told.value)
    assert str(tmp_path) not in str(told.value)
    assert "<b>" not in view.alert(str(told.value))
