"""`generate --best-of`, `--min-similarity` and `--recogniser`."""

import json

import pytest

from lynx_video.media.image import write_picture
from lynx_video.media.video import read_metadata
from lynx_video.nano.people import portrait

PROMPT = "a person nods wearing a red shirt in front of a white wall"


@pytest.fixture
def base(tmp_path):
    write_picture(tmp_path / "me.png", portrait(5))
    return ["generate", "--subject-image", tmp_path / "me.png", "--prompt", PROMPT, "--num-inference-steps", "3"]


def test_the_best_of_three_is_kept_and_all_scores_are_written(lynx, base, tmp_path):
    done = lynx(*base, "--best-of", "3", "--seed", "7", "-o", tmp_path / "best.mp4", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [one["seed"] for one in facts["best_of"]] == [7, 8, 9]
    # wall, shirt and motion are known to nano
    assert all(one["prompt"] is not None for one in facts["best_of"])
    assert facts["seed"] == max(facts["best_of"], key=lambda one: one["score"])["seed"]
    kept = read_metadata(tmp_path / "best.mp4")
    assert kept["best_of"] == facts["best_of"]
    assert kept["seed"] == facts["seed"]
    assert [file.name for file in tmp_path.glob("*.mp4")] == ["best.mp4"]


def test_scores_are_told_and_the_default_name_says_best(lynx, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = lynx(*base, "--best-of", "2")
    assert done.code == 0, done.err
    assert "seed 42: score 0." in done.err
    assert "seed 43: score 0." in done.err
    assert (tmp_path / "results" / "me" / "demo-fr9-s42-best2.mp4").is_file()


def test_a_miss_is_kept_labelled_and_exit_code_1(lynx, base, tmp_path):
    done = lynx(*base, "--min-similarity", "0.999", "-o", tmp_path / "a.mp4", "--json")
    assert done.code == 1
    facts = json.loads(done.out)
    assert facts["missed"] == f"its similarity is {facts['similarity']:.3f}, below the 0.999 that was asked for"
    assert facts["missed"] in done.err
    assert read_metadata(tmp_path / "a.mp4")["missed"] == facts["missed"]
    done = lynx(*base, "--min-similarity", "-1", "-o", tmp_path / "b.mp4", "--json")
    assert done.code == 0
    assert json.loads(done.out)["missed"] is None
    assert "missed" not in read_metadata(tmp_path / "b.mp4")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--best-of", "0"), "--best-of must be a whole number from 1"),
        (("--best-of", "2", "--seed", str(2**63 - 2)), "seed must be a whole number"),
        (("--min-similarity", "1.5"), "--min-similarity is a cosine"),
        (("--min-similarity", "nan"), "--min-similarity is a cosine"),
        (("--recogniser", "nobody.onnx"), "nobody.onnx is not there"),
    ],
)
def test_bad_requests(lynx, base, tmp_path, flags, words):
    done = lynx(*base, *flags, "-o", tmp_path / "a.mp4")
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "a.mp4").exists()


def test_without_a_recogniser_nothing_is_generated(lynx, golden_request, tmp_path):
    done = lynx("generate", *golden_request, "--best-of", "2", "-o", tmp_path / "a.mp4")
    assert done.code == 2
    assert "lynx-video download face" in done.err
    assert not (tmp_path / "a.mp4").exists()


@pytest.fixture
def golden_request(record, cases):
    """The golden base and adapter, which have no recogniser."""
    from pathlib import Path

    golden = Path(__file__).parents[1] / "golden"
    return (
        "--subject-image", golden / "subject.png",
        "--face-record", record("full_three_pass"),
        "--base-model-path", golden / "base",
        "--adapter-path", golden / "lynx_full",
        "--prompt", cases["full_three_pass"]["prompt"],
    )  # fmt: skip


def test_another_recogniser_scores(lynx, base, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 112, 112]), ("y", [1, 48]))]
    graph = helper.make_graph(nodes, "mean", ends[:1], ends[1:])
    file = tmp_path / "mean colour.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    done = lynx(*base, "--recogniser", file, "-o", tmp_path / "a.mp4", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["judge"] == "mean colour"
    plain = json.loads(lynx(*base, "-o", tmp_path / "b.mp4", "--json").out)
    assert plain["judge"] == "nano judge"
    assert facts["similarity"] != plain["similarity"]
