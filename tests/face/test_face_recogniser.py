"""Recognisers on toy ONNX graphs whose vectors are known: how crops are fed, what stays the same, what is refused and how."""

import hashlib
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lynx_video.errors import BadPicture, BadRequest, BadWeights, MissingDependency
from lynx_video.face.likeness import signed
from lynx_video.face.recogniser import OnnxRecogniser, load_recogniser

CROPS = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
POOL = helper.make_node("AveragePool", ["scaled"], ["pooled"], kernel_shape=[56, 56], strides=[56, 56])
FLAT = helper.make_node("Flatten", ["pooled"], ["vector"])
PLAIN = [helper.make_node("Identity", ["crop"], ["scaled"]), POOL, FLAT]
MXNET = [
    helper.make_node("Sub", ["crop", "mean"], ["zero"]),
    helper.make_node("Mul", ["zero", "scale"], ["scaled"]),
    POOL,
    FLAT,
]

FLAT_CROP = helper.make_node("Flatten", ["crop"], ["flat"])
SHAPED = [  # to a shape that only a run tells
    *PLAIN[:-1],
    helper.make_node("ReduceMax", ["crop"], ["most"], keepdims=0),
    helper.make_node("Mul", ["most", "zero"], ["nothing"]),
    helper.make_node("Add", ["nothing", "rows"], ["sizes"]),
    helper.make_node("Cast", ["sizes"], ["whole"], to=TensorProto.INT64),
    helper.make_node("Reshape", ["pooled", "whole"], ["vector"]),
]


def save(
    path,
    nodes=PLAIN,
    shape=("n", 3, 112, 112),
    outputs=(("vector", ["n", 12]),),
    constants=None,
    kind=TensorProto.FLOAT,
    **how,
):
    """A network whose vector holds the mean red, green and blue of the four quarters of a crop."""
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("crop", kind, list(shape))],
        [helper.make_tensor_value_info(name, kind, sizes) for name, sizes in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path, **how)
    return path


def means(crops):
    """What the toy network gives, by numpy."""
    quarters = (crops.astype(np.float64) / 127.5 - 1).reshape(-1, 2, 56, 2, 56, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    vectors = quarters.reshape(len(crops), 12)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_crop_is_fed_in_rgb_from_minus_one_to_one(tmp_path, batch):
    recogniser = OnnxRecogniser(save(tmp_path / "toy.onnx", shape=(batch, 3, 112, 112), outputs=[("vector", [batch, 12])]))
    vectors = recogniser(signed(CROPS))
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors, means(CROPS), atol=1e-4)
    assert (vectors.norm(dim=1) - 1).abs().max() < 1e-6
    assert recogniser.width == 12
    red = np.zeros((1, 112, 112, 3), np.uint8)
    red[..., 0] = 255
    assert (recogniser(signed(red))[0, :4] > 0).all()  # red is the first channel
    assert (recogniser(signed(red))[0, 4:] < 0).all()


def test_a_network_that_scales_by_itself_gets_pixels(tmp_path):
    """As MXNet's exports do; the constants differ from ours a little, as theirs do."""
    constants = {"mean": np.float32(127.5), "scale": np.float32(1 / 128)}
    own, plain = (
        OnnxRecogniser(save(tmp_path / "own.onnx", MXNET, constants=constants)),
        OnnxRecogniser(save(tmp_path / "p.onnx")),
    )
    np.testing.assert_allclose(own(signed(CROPS)), plain(signed(CROPS)), atol=1e-4)
    late = [helper.make_node("Identity", ["crop" if i == 0 else f"x{i}"], [f"x{i + 1}"]) for i in range(8)]
    late += [
        helper.make_node("Sub", ["x8", "mean"], ["zero"]),
        helper.make_node("Mul", ["zero", "scale"], ["scaled"]),
        POOL,
        FLAT,
    ]
    zero = {"mean": np.float32(0), "scale": np.float32(1)}
    inside = OnnxRecogniser(save(tmp_path / "late.onnx", late, constants=zero))  # as a network may do anywhere further in
    assert torch.equal(inside(signed(CROPS)), plain(signed(CROPS)))


def test_the_vector_of_a_crop_does_not_depend_on_its_neighbours(tmp_path):
    """Even of a network that looks across the batch."""
    nodes = [
        *PLAIN[:-1],
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["flat", "mean"], ["vector"]),
    ]
    recogniser = OnnxRecogniser(save(tmp_path / "across.onnx", nodes))
    together = recogniser(signed(CROPS))
    assert torch.equal(torch.cat([recogniser(signed(CROPS[i : i + 1])) for i in range(5)]), together)
    assert torch.equal(recogniser(signed(CROPS[::-1].copy())), together.flip(0))
    assert torch.equal(recogniser(signed(CROPS)), together)
    assert recogniser(torch.empty(0, 3, 112, 112)).shape == (0, 12)
    assert torch.equal(recogniser(signed(CROPS).double()), together)


def test_one_thread(tmp_path):
    options = OnnxRecogniser(save(tmp_path / "toy.onnx"))._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_of_two_outputs_the_first_is_the_vector(tmp_path):
    """As the original CurricularFace exports: the vector, and the map of features laid out flat."""
    nodes = [*PLAIN, helper.make_node("Flatten", ["crop"], ["map"])]
    recogniser = OnnxRecogniser(save(tmp_path / "two.onnx", nodes, outputs=[("vector", ["n", 12]), ("map", ["n", 37632])]))
    np.testing.assert_allclose(recogniser(signed(CROPS)), means(CROPS), atol=1e-4)


def test_name_and_hash(tmp_path):
    path = save(tmp_path / "w600k_r50.onnx")
    recogniser = OnnxRecogniser(path)
    assert recogniser.name == "w600k_r50"
    assert recogniser.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert OnnxRecogniser(str(path), "arcface").name == "arcface"


def test_weights_beside_the_file_count(tmp_path):
    nodes = [*PLAIN[:-1], helper.make_node("Flatten", ["pooled"], ["flat"]), helper.make_node("Mul", ["flat", "w"], ["vector"])]
    path, beside = tmp_path / "big.onnx", tmp_path / "big.onnx.data"
    save(path, nodes, constants={"w": np.full(1200, 2, np.float32)[:12]}, save_as_external_data=True, location=beside.name,
         size_threshold=0)  # fmt: skip
    recogniser = OnnxRecogniser(path)
    np.testing.assert_allclose(recogniser(signed(CROPS)), means(CROPS), atol=1e-4)
    assert recogniser.hash == hashlib.sha256(path.read_bytes() + beside.read_bytes()).hexdigest()
    beside.unlink()
    with pytest.raises(BadWeights, match=r"big\.onnx is not an ONNX model that can be read") as caught:
        OnnxRecogniser(path)
    assert "\n" not in str(caught.value)


def test_load_by_path_and_by_name(tmp_path, monkeypatch):
    path = save(tmp_path / "glintr100.onnx")
    assert load_recogniser(str(path)).name == "glintr100"
    named = load_recogniser(f"my ArcFace = {path}")
    assert (named.name, named.path) == ("my ArcFace", path)
    odd = save(tmp_path / "a=b.onnx")
    assert load_recogniser(str(odd)).name == "a=b"
    assert load_recogniser(f"odd={odd}").path == odd
    monkeypatch.chdir(tmp_path)
    assert load_recogniser("a=b.onnx").name == "a=b"  # it is there
    for text, word in ((f"={path}", "no name"), ("arcface=", "no file"), ("", "no file")):
        with pytest.raises(BadRequest, match=word):
            load_recogniser(text)
    with pytest.raises(BadWeights, match=r"nowhere\.onnx is not there"):
        load_recogniser("arcface=nowhere.onnx")
    with pytest.raises(BadWeights, match=r"x=y\.onnx is not there"):
        load_recogniser("folder/x=y.onnx")


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model\n")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    whole = save(tmp_path / "whole.onnx", constants={"weights": np.zeros(9999, np.float32)}).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:9000])
    (tmp_path / "folder.onnx").mkdir()
    words = {"text": "not an ONNX", "empty": "empty", "pointer": "LFS pointer", "cut": "not an ONNX", "folder": "is a folder"}
    for name, word in words.items():
        with pytest.raises(BadWeights, match=word) as caught:
            OnnxRecogniser(tmp_path / f"{name}.onnx")
        assert f"{name}.onnx" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": ("n", 3, 96, 96)}, r"tensor\(float\) \[n, 3, 96, 96\], expected .* \[1, 3, 112, 112\]"),
        ({"shape": ("n", 112, 112, 3)}, r"\[n, 112, 112, 3\]"),
        ({"shape": (8, 3, 112, 112)}, r"\[8, 3, 112, 112\], expected one crop at a time"),
        ({"kind": TensorProto.FLOAT16}, r"tensor\(float16\)"),
        ({"outputs": [("pooled", ["n", 3, 2, 2])]}, r"gives \[n, 3, 2, 2\] for a crop, expected a face vector \[1, E\]"),
        (
            {"nodes": [helper.make_node("Flatten", ["crop"], ["vector"])], "outputs": [("vector", ["n", 37632])]},
            r"gives \[n, 37632\]",
        ),
        (
            {
                "nodes": [FLAT_CROP, helper.make_node("ReduceMean", ["flat"], ["vector"], axes=[1])],
                "outputs": [("vector", ["n", 1])],
            },
            r"gives \[n, 1\]",
        ),
        (
            {
                "nodes": SHAPED,
                "outputs": [("vector", ["n", "m"])],
                "constants": {"zero": np.float32(0), "rows": np.array([3, 4], np.float32)},
            },
            r"gives \[3, 4\] for a crop",
        ),  # undeclared, seen on the probe
    ],
)
def test_networks_of_another_shape(tmp_path, change, words):
    path = save(tmp_path / "other.onnx", **change)
    with pytest.raises(BadWeights, match=words) as caught:
        OnnxRecogniser(path)
    assert str(path) in str(caught.value)
    assert "w600k_r50.onnx" in str(caught.value)


def test_networks_that_fail_or_give_nothing(tmp_path):
    two = helper.make_graph(
        PLAIN,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 112, 112]) for name in ("crop", "more")],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 12])],
    )
    onnx.save(helper.make_model(two, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "two.onnx")
    with pytest.raises(BadWeights, match="takes 2 inputs"):
        OnnxRecogniser(tmp_path / "two.onnx")
    reshape = [*PLAIN[:-1], helper.make_node("Reshape", ["pooled", "five"], ["vector"])]
    with pytest.raises(BadWeights, match=r"fails on a crop \[1, 3, 112, 112\]") as caught:
        OnnxRecogniser(
            save(tmp_path / "five.onnx", reshape, constants={"five": np.array([1, 5])}, outputs=[("vector", ["n", "m"])])
        )
    assert "\n" not in str(caught.value)
    flat = [*PLAIN[:-1], helper.make_node("Flatten", ["pooled"], ["flat"])]
    nothing = [*flat, helper.make_node("Mul", ["flat", "w"], ["vector"])]
    for value, word in ((0.0, "length 0.0"), (np.inf, "length (inf|nan)")):
        with pytest.raises(BadWeights, match=word):
            OnnxRecogniser(save(tmp_path / "nothing.onnx", nothing, constants={"w": np.full(12, value, np.float32)}))
    black = OnnxRecogniser(save(tmp_path / "toy.onnx"))
    with pytest.raises(BadWeights, match=r"length 0\.0"):
        black(torch.zeros(1, 3, 112, 112))


@pytest.mark.parametrize("shape", [(1, 3, 96, 96), (3, 112, 112), (1, 112, 112, 3)])
def test_crops_of_another_shape(tmp_path, shape):
    with pytest.raises(BadPicture, match=r"takes crops \[B, 3, 112, 112\]"):
        OnnxRecogniser(save(tmp_path / "toy.onnx"))(torch.zeros(shape))


def test_without_onnxruntime(tmp_path, monkeypatch):
    path = save(tmp_path / "toy.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[face\]'"):
        OnnxRecogniser(path)
