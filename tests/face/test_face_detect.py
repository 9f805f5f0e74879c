"""Detectors on toy ONNX graphs whose outputs are known, the second look with a margin, the choice and the drawing."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lynx_video.errors import BadPicture, BadRequest, BadWeights, MissingDependency, NoFace
from lynx_video.face.detect import (
    SCRFD,
    YuNet,
    choose_face,
    decode_scrfd,
    draw_faces,
    face_of_row,
    find_faces,
    letterbox,
    load_detector,
    strongest,
)
from lynx_video.types import Face

OFFSETS = np.array([-1, -1, 1, -1, 0, 0, -0.5, 1, 0.5, 1], dtype=np.float32)  # five points around a cell, in strides


def save(path, nodes, constants, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def scrfd_model(path, side="h", shuffle=False):
    """A network in SCRFD's shape: at stride 8 the score of a cell is its mean red, elsewhere -1; boxes reach 2 cells."""
    constants = {
        "red": np.array([0], np.int64),
        "as_column": np.array([-1, 1], np.int64),
        "as_flat": np.array([12800, 1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["picture", "red"], ["red_only"], axis=1),
        helper.make_node("AveragePool", ["red_only"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["cells", "as_column"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "as_flat"], ["score_8"]),
    ]
    outputs = []
    for stride in (8, 16, 32):
        count = 2 * (640 // stride) ** 2
        values = {
            f"score_{stride}": np.full((count, 1), -1, np.float32),
            f"box_{stride}": np.full((count, 4), 2, np.float32),
            f"kps_{stride}": np.tile(OFFSETS, (count, 1)),
        }
        for name, value in values.items():
            if name != "score_8":
                constants[f"{name}_value"] = value
                nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
            outputs.append((name, list(value.shape)))
    if not shuffle:
        outputs.sort(key=lambda output: ("score", "box", "kps").index(output[0].split("_")[0]))
    return save(path, nodes, constants, [("picture", [1, 3, side, side])], outputs)


def yunet_model(path, skip=()):
    """A network in YuNet's shape: the class score of a cell is its mean red (channel 2 of BGR), the box 4 cells wide."""
    nodes, constants, outputs = [], {}, []
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node("AveragePool", ["input"], [f"p{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        biases = {"cls": [0.0], "obj": [1.0], "bbox": [0.5, 0.5, np.log(4), np.log(4)], "kps": OFFSETS}
        for kind, bias in biases.items():
            name = f"{kind}_{stride}"
            if name in skip:
                continue
            weight = np.zeros((len(bias), 3, 1, 1), np.float32)
            if kind == "cls" and stride == 8:
                weight[0, 2] = 1 / 255
            constants |= {f"w_{name}": weight, f"b_{name}": np.array(bias, np.float32)}
            constants[f"s_{name}"] = np.array([1, -1, len(bias)], np.int64)
            nodes += [
                helper.make_node("Conv", [f"p{stride}", f"w_{name}", f"b_{name}"], [f"c_{name}"]),
                helper.make_node("Transpose", [f"c_{name}"], [f"t_{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t_{name}", f"s_{name}"], [name]),
            ]
            outputs.append((name, [1, "n", len(bias)]))
    return save(path, nodes, constants, [("input", [1, 3, 640, 640])], outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="module")
def scrfd(folder):
    return SCRFD(scrfd_model(folder / "det_10g.onnx"))


@pytest.fixture(scope="module")
def yunet(folder):
    return YuNet(yunet_model(folder / "yunet.onnx"))


def dot(height, width, left, top, side, colour):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top : top + side, left : left + side] = colour
    return image


def face(left, top, right, bottom, score=0.9):
    centre = np.array([(left + right) / 2, (top + bottom) / 2], dtype=np.float32)
    points = centre + OFFSETS.reshape(5, 2) * np.float32((right - left) / 4)
    return Face(box=(left, top, right, bottom), points=points, score=score)


# --- SCRFD


def test_scrfd_finds_the_red_cell_where_it_is(scrfd):
    faces = scrfd(dot(320, 160, 40, 100, 4, (255, 0, 0)))  # twice the size: one cell at column 10, row 25
    assert len(faces) == 1  # both predictions of the cell agree, the suppression leaves one
    assert faces[0].box == (32.0, 92.0, 48.0, 108.0)  # 2 cells of 8 px each way, at half the size
    assert faces[0].points.dtype == np.float32
    np.testing.assert_array_equal(faces[0].points, [[36, 96], [44, 96], [40, 100], [38, 104], [42, 104]])
    assert 0.5 < faces[0].score < 1
    assert scrfd.name == "scrfd"


def test_scrfd_sees_rgb_and_a_black_margin(scrfd):
    assert scrfd(dot(320, 160, 40, 100, 4, (0, 0, 255))) == []
    assert scrfd(dot(160, 320, 40, 100, 4, (0, 255, 0))) == []
    assert scrfd(np.zeros((1, 1, 3), np.uint8)) == []
    # (255 - 127.5) / 128 of a plain red picture; its cells are the only ones above the threshold
    assert {found.score for found in scrfd(np.full((640, 640, 3), (255, 0, 0), np.uint8))} == {0.99609375}
    assert all(found.box[1] < 320 for found in scrfd(np.full((320, 640, 3), 255, np.uint8)))


def test_scrfd_takes_outputs_in_any_order_and_a_folder(folder):
    (folder / "buffalo_l").mkdir()
    scrfd_model(folder / "buffalo_l" / "det_10g.onnx", side=640, shuffle=True)
    for path in (folder / "buffalo_l", folder):
        assert len(SCRFD(path)(dot(320, 160, 40, 100, 4, (255, 0, 0)))) == 1


def test_scrfd_threshold(folder, scrfd):
    image = dot(320, 160, 40, 100, 4, (255, 0, 0))
    score = scrfd(image)[0].score
    assert SCRFD(folder / "det_10g.onnx", threshold=score + 1e-3)(image) == []


@pytest.mark.parametrize(
    ("height", "width", "inner", "scale"),
    [(320, 160, (640, 320), 2.0), (480, 640, (480, 640), 1.0), (1000, 3000, (213, 640), 213 / 1000), (1, 4000, (1, 640), 1.0)],
)
def test_letterbox(height, width, inner, scale):
    square, factor = letterbox(np.full((height, width, 3), 200, np.uint8))
    assert square.shape == (640, 640, 3)
    assert factor == scale
    assert (square[: inner[0], : inner[1]] == 200).all()
    assert square.sum() == 200 * 3 * inner[0] * inner[1]


def test_decode_numbers_of_every_stride():
    levels = []
    for stride in (8, 16, 32):
        count = 2 * (640 // stride) ** 2
        levels.append((np.zeros((count, 1), np.float32), np.zeros((count, 4), np.float32), np.zeros((count, 10), np.float32)))
    # (level, cell row, cell column, prediction): column 3, row 2 of 80; column 39, row 0 of 40; column 7, row 19 of 20
    for level, per_row, row, column, second, score in ((0, 80, 2, 3, 1, 0.5), (1, 40, 0, 39, 0, 0.9), (2, 20, 19, 7, 1, 0.7)):
        at = 2 * (row * per_row + column) + second
        levels[level][0][at] = score
        levels[level][1][at] = [1, 2, 3, 4]
        levels[level][2][at] = np.arange(10) / 10
    levels[0][0][5] = 0.49  # below the threshold
    faces = decode_scrfd(levels, 0.5, 0.5)
    assert [round(found.score, 3) for found in faces] == [0.9, 0.7, 0.5]
    assert [found.box for found in faces] == [
        ((624 - 16) * 2, (0 - 32) * 2, (624 + 48) * 2, (0 + 64) * 2),
        ((224 - 32) * 2, (608 - 64) * 2, (224 + 96) * 2, (608 + 128) * 2),
        ((24 - 8) * 2, (16 - 16) * 2, (24 + 24) * 2, (16 + 32) * 2),
    ]
    offsets = np.arange(10).reshape(5, 2) / 10
    np.testing.assert_allclose(faces[2].points, (np.array([24, 16]) + offsets * 8) * 2, rtol=1e-6)
    np.testing.assert_allclose(faces[1].points, (np.array([224, 608]) + offsets * 32) * 2, rtol=1e-6)


def test_suppression():
    boxes = np.array([[0, 0, 99, 99], [0, 0, 99, 56], [0, 60, 99, 99], [300, 0, 320, 20], [0, 0, 99, 38]], dtype=np.float32)
    scores = np.array([0.6, 0.9, 0.8, 0.7, 0.85], dtype=np.float32)
    # 1 is strongest and shares .57 with 0 and .68 with 4; 2 shares nothing with 1, and 3 nothing with any
    assert strongest(boxes, scores, 0.4) == [1, 2, 3]
    assert strongest(boxes, scores, 0.6) == [1, 2, 3, 0]
    assert strongest(boxes[:0], scores[:0], 0.4) == []
    at_the_limit = np.array([[0, 0, 99, 99], [0, 0, 99, 39]], dtype=np.float32)  # share exactly .4 with the edge pixels counted
    assert strongest(at_the_limit, scores[:2] * [1, 0.5], 0.4) == [0, 1]


def test_scrfd_files_that_cannot_be_used(tmp_path):
    with pytest.raises(BadWeights, match=r"nowhere\.onnx is not there"):
        SCRFD(tmp_path / "nowhere.onnx")
    with pytest.raises(BadWeights, match=r"det_10g\.onnx is not there"):
        SCRFD(tmp_path)
    (tmp_path / "text.onnx").write_text("not a model\n")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    scrfd_model(tmp_path / "whole.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "whole.onnx").read_bytes()[:90000])
    for name, word in {"text": "not an ONNX", "empty": "empty", "pointer": "LFS pointer", "cut": "not an ONNX"}.items():
        with pytest.raises(BadWeights, match=word) as caught:
            SCRFD(tmp_path / f"{name}.onnx")
        assert f"{name}.onnx" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_scrfd_of_another_shape(tmp_path):
    with pytest.raises(BadWeights, match="12 outputs"):
        SCRFD(yunet_model(tmp_path / "yunet.onnx"))
    with pytest.raises(BadWeights, match="320, 320"):
        SCRFD(scrfd_model(tmp_path / "small.onnx", side=320))
    # Nine outputs of the right widths, but of the wrong length, which shows only when it runs
    outputs = [(f"o{i}", ["n", width]) for i, width in enumerate([1, 4, 10] * 3)]
    values = {f"v{i}": np.zeros((7, output[1][1]), np.float32) for i, output in enumerate(outputs)}
    nodes = [helper.make_node("Identity", [f"v{i}"], [f"o{i}"]) for i in range(9)]
    detector = SCRFD(save(tmp_path / "short.onnx", nodes, values, [("picture", [1, 3, "h", "w"])], outputs))
    with pytest.raises(BadWeights, match=r"no output \[12800, 1\]"):
        detector(np.zeros((9, 9, 3), np.uint8))


def test_scrfd_without_onnxruntime(tmp_path, monkeypatch):
    path = scrfd_model(tmp_path / "det_10g.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[face\]'"):
        SCRFD(path)


# --- YuNet


@pytest.mark.parametrize("size", [(320, 320), (300, 200)])
def test_yunet_finds_the_red_cell_where_it_is(yunet, size):
    faces = yunet(dot(*size, 80, 160, 8, (255, 0, 0)))
    assert len(faces) == 1
    assert faces[0].box == pytest.approx((84 - 16, 164 - 16, 84 + 16, 164 + 16))
    np.testing.assert_allclose(faces[0].points, np.array([80, 160]) + OFFSETS.reshape(5, 2) * 8)
    assert faces[0].score == pytest.approx(1.0)
    assert yunet.name == "yunet"


def test_yunet_sees_bgr_inside_and_rgb_outside(yunet):
    assert yunet(dot(320, 320, 80, 160, 8, (0, 0, 255))) == []


def test_yunet_shrinks_large_pictures_and_maps_back(yunet):
    faces = yunet(dot(1280, 800, 160, 320, 16, (255, 0, 0)))
    assert len(faces) == 1
    assert faces[0].box == pytest.approx((2 * (84 - 16), 2 * (164 - 16), 2 * (84 + 16), 2 * (164 + 16)))
    np.testing.assert_allclose(faces[0].points, 2 * (np.array([80, 160]) + OFFSETS.reshape(5, 2) * 8))


def test_yunet_takes_a_picture_of_one_pixel(yunet):
    assert yunet(np.zeros((1, 1, 3), np.uint8)) == []


def test_yunet_row_becomes_a_face():
    row = np.array([10, 20, 30, 40, *range(1, 11), 0.75], dtype=np.float32)
    found = face_of_row(row, 2.0, 3.0)
    assert found.box == (20, 60, 80, 180)
    # The person's right eye comes first, and is the viewer's left one: nothing is swapped.
    np.testing.assert_array_equal(found.points, [[2, 6], [6, 12], [10, 18], [14, 24], [18, 30]])
    assert found.score == 0.75


def test_yunet_files_that_cannot_be_used(tmp_path, capfd):
    (tmp_path / "text.onnx").write_text("not a model\n")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for path, word in (
        (tmp_path / "nowhere.onnx", "not there"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.onnx", "not an ONNX"),
        (tmp_path / "empty.onnx", "empty"),
        (scrfd_model(tmp_path / "scrfd.onnx"), "no YuNet"),
        (yunet_model(tmp_path / "partial.onnx", skip=("kps_16",)), "no YuNet"),
    ):
        with pytest.raises(BadWeights, match=word) as caught:
            YuNet(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenCV would log the same again


# --- finding, choosing, drawing


class Framed:
    """Finds the white square of a picture, if grey or black is all around it; keeps what it was shown."""

    name = "framed"

    def __init__(self):
        self.seen = []

    def __call__(self, image, /):
        self.seen.append(image)
        rows, columns = np.nonzero((image == 255).all(axis=2))
        if not rows.size or rows.min() == 0 or columns.min() == 0:
            return []
        return [face(float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))]


def test_tight_crop_is_padded_and_tried_again():
    detector = Framed()
    image = np.zeros((31, 20, 3), np.uint8)
    image[:12, :10] = 255  # touches two edges, so only the second look finds it
    found = find_faces(image, detector)
    assert [look.shape for look in detector.seen] == [(31, 20, 3), (31 + 32, 20 + 20, 3)]
    assert found[0].box == (0, 0, 10, 12)
    np.testing.assert_array_equal(found[0].points, face(0, 0, 10, 12).points)
    margin = detector.seen[1].copy()
    np.testing.assert_array_equal(margin[16:47, 10:30], image)
    margin[16:47, 10:30] = 127
    assert (margin == 127).all()


def test_no_second_look_where_a_face_was_found_and_no_face_is_an_empty_list():
    detector = Framed()
    assert len(find_faces(dot(32, 32, 8, 8, 8, 255), detector)) == 1
    assert len(detector.seen) == 1
    assert find_faces(np.zeros((4, 4, 3), np.uint8), detector) == []


def test_faces_come_largest_first():
    faces = [face(0, 0, 10, 10), face(20, 0, 60, 30), face(0, 50, 20, 60)]

    assert find_faces(np.zeros((99, 99, 3), np.uint8), lambda _: faces) == [faces[1], faces[2], faces[0]]


def test_find_faces_refuses_what_is_no_picture():
    with pytest.raises(BadPicture, match="uint8"):
        find_faces(np.zeros((9, 9), np.uint8), Framed())


def test_choice():
    faces = [face(20, 0, 60, 30), face(0, 50, 20, 60), face(0, 0, 10, 10)]
    assert choose_face(faces) is faces[0]
    assert choose_face(faces[::-1]) is faces[0]
    assert choose_face(faces, 2) is faces[2]
    assert choose_face(faces, 0) is faces[0]
    for index in (3, -1):
        with pytest.raises(BadRequest, match=r"3 faces were found.*0 to 2"):
            choose_face(faces, index)
    with pytest.raises(BadRequest, match="1 face was found"):
        choose_face(faces[:1], 1)
    for index in (None, 0):
        with pytest.raises(NoFace, match="No face"):
            choose_face([], index)


def test_drawing_marks_each_face_and_leaves_the_picture_alone():
    image = np.zeros((120, 200, 3), np.uint8)
    faces = [face(10, 40, 60, 90), face(120, -20, 230, 140)]
    drawn = draw_faces(image, faces)
    assert not image.any()
    assert drawn.shape == image.shape
    assert drawn[40, 30].tolist() == drawn[70, 10].tolist() == drawn[70, 120].tolist() == [0, 255, 0]
    assert drawn[65, 35].tolist() == [255, 0, 255]  # the nose
    yellow = (drawn[..., 0] > 128) & (drawn[..., 2] < 64)
    assert yellow[:40, :60].any()  # the number above the first box
    assert yellow[:30, 120:].any()  # and inside the picture for a box that leaves it
    np.testing.assert_array_equal(draw_faces(image, []), image)


def test_a_detector_is_told_by_its_outputs(tmp_path, capfd):
    assert type(load_detector(yunet_model(tmp_path / "face.onnx"))) is YuNet
    assert type(load_detector(scrfd_model(tmp_path / "not_yunet.onnx"))) is SCRFD
    (tmp_path / "yunets").mkdir()
    scrfd_model(tmp_path / "yunets" / "det_10g.onnx")
    assert type(load_detector(tmp_path / "yunets")) is SCRFD
    (tmp_path / "no.onnx").write_bytes(b"no model")
    for path in (tmp_path / "gone.onnx", tmp_path / "no.onnx", yunet_model(tmp_path / "partial.onnx", skip=("kps_16",))):
        with pytest.raises(BadWeights, match=path.name):
            load_detector(path)
    assert capfd.readouterr().err == ""


def test_photograph_faces_take_a_yunet_of_any_name(tmp_path):
    from lynx_video.pipeline.models import photograph_faces

    faces = photograph_faces(tmp_path, detector=yunet_model(tmp_path / "face.onnx"))
    assert type(faces.detector()) is YuNet
