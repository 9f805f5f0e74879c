"""A folder becomes numbers and a page: with a judge, without, twice, in any order; what is wrong is counted, never averaged away."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from lynx_video.errors import BadOutput, BadRequest, BadWeights, LynxError, MissingDependency
from lynx_video.evaluation.assessment import Request, assess, check, made_with, table
from lynx_video.evaluation.config import ScoreConfig
from lynx_video.evaluation.metrics.judge import JudgeConfig
from lynx_video.evaluation.scorer import known_by
from lynx_video.pipeline.models import MODELS


@pytest.fixture
def request_of(planted, tmp_path):
    def make(**changes):
        settings = {
            "folder": planted,
            "output": tmp_path / "scores",
            "faces": partial(MODELS["nano"].faces, Path("models")),
            "probe": MODELS["nano"].probe,
            "system": "planted",
        }
        return Request(**(settings | changes))

    return make


def results(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_every_planted_fault_is_counted(request_of, here_pool, tmp_path):
    result = assess(request_of(), here_pool)
    summary = result.summary
    assert summary.clips == 16
    assert sum(summary.failures.values()) == summary.failed == 4
    assert {reason.split(":")[0] for reason in summary.failures} == {
        "does not decode", "no frame has a face", "the clip is not there",
    }  # fmt: skip
    similarity = summary.metrics["similarity/nano judge"]
    # "nobody" has no face in its reference: left out; the four that failed count as 0
    assert (similarity.n, similarity.worst, similarity.left_out) == (15, 4, 1)
    records = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    told = [record["scores"]["similarity/nano judge"] for record in records if record["scores"].get("similarity/nano judge")]
    assert similarity.mean == pytest.approx(sum(told) / 15, abs=1e-5)
    assert [problem.reason for problem in result.problems] == ["missing clip"]
    assert "1 problems" in result.cautions[0] or "missing clip" in result.cautions[0]
    text = table(summary)
    assert "n = 15 of 3 subjects (few subjects: too narrow), 4 of them failed and counted as the worst, 1 left out" in text
    assert text.count("failed: 1 x ") == 4
    page = (tmp_path / "scores" / "report.html").read_text()
    for name in ("cut", "text", "empty", "gone", "nobody"):
        assert name in page
    before = results(tmp_path / "scores")
    shutil.rmtree(tmp_path / "scores" / "work")
    assess(request_of(), here_pool)
    assert results(tmp_path / "scores") == before, "scored anew, the same bytes"


def judged(endpoint, **changes):
    return JudgeConfig(**({"judge_url": endpoint.url, "judge_model": "eye", "judge_key": "NO_KEY_AT_ALL"} | changes))


def test_a_judge_takes_the_place_of_the_probes(request_of, here_pool, endpoint):
    def reply(_, number):
        return (200, "I would rather not.") if number % 5 == 4 else (200, dict.fromkeys(NAMES, 0.5))

    endpoint.reply = reply
    result = assess(request_of(judge=judged(endpoint)), here_pool)
    axes = {axis.name: axis for axis in result.summary.axes}
    assert {axes[name].measure for name in ("prompt", "aesthetics", "motion", "quality")} == {f"judge/{name}" for name in NAMES}
    # 13 of 16 clips decode (one of them twice: the same bytes are asked for once), 3 votes each; what does not decode is not sent
    aesthetics = result.summary.metrics["judge/aesthetics"]
    assert (aesthetics.n, aesthetics.worst) == (16, 3)
    assert aesthetics.mean == pytest.approx(0.5 * 13 / 16)
    tally = result.summary.about["judge"]
    prose = sum(number % 5 == 4 for number in range(len(endpoint.asked)))
    assert any(f"{len(endpoint.asked)} questions asked" in caution for caution in result.cautions)
    assert tally["tokens_in"] >= 1000 * (len(endpoint.asked) - prose)
    assert set(tally["failures"]) == {"answered prose"}
    assert tally["failures"]["answered prose"] >= prose > 0
    endpoint.reply = lambda *_: (200, dict.fromkeys(NAMES, 0.5))
    asked = len(endpoint.asked)
    assess(request_of(judge=judged(endpoint)), here_pool)
    assert len(endpoint.asked) - asked == prose, "only what was no vote is asked again"


NAMES = ("prompt_following", "aesthetics", "motion_naturalness", "video_quality")


def test_kept_votes_need_no_endpoint(request_of, here_pool, endpoint, tmp_path):
    endpoint.reply = lambda *_: (200, dict.fromkeys(NAMES, 1))
    assess(request_of(judge=judged(endpoint)), here_pool)
    first = (tmp_path / "scores" / "scores.jsonl").read_bytes()
    paths = len(endpoint.paths)
    assess(request_of(judge=judged(endpoint)), here_pool)
    assert len(endpoint.paths) == paths, "not even the list of models"
    assert (tmp_path / "scores" / "scores.jsonl").read_bytes() == first


def test_a_judge_that_is_not_there_ends_it_and_keeps_the_scores(request_of, here_pool, tmp_path):
    nowhere = JudgeConfig(judge_url="http://127.0.0.1:9/v1", judge_model="eye", judge_key="NO_KEY_AT_ALL")
    with pytest.raises(LynxError, match="can't be reached"):
        assess(request_of(judge=nowhere), here_pool)
    assert not (tmp_path / "scores" / "report.html").exists()
    assert len(list((tmp_path / "scores" / "work" / "scores").glob("*.safetensors"))) == 16


def test_bad_requests(request_of, here_pool, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="is a file"):
        assess(request_of(output=tmp_path / "file"), here_pool)
    with pytest.raises(BadRequest, match="two recognisers are called"):
        assess(request_of(extra=("nano judge=" + str(toy(tmp_path)),)), here_pool)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "skimage" else name)
    with pytest.raises(MissingDependency, match=r"scikit-image.*lynx-video\[evaluate\]"):
        assess(request_of(), here_pool)


def toy(folder):
    """A recogniser of mean colours."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 112, 112]), ("y", [1, 48]))]
    graph = helper.make_graph(nodes, "mean", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "toy.onnx")
    return folder / "toy.onnx"


def test_another_recogniser_is_an_axis_of_its_own(request_of, here_pool, tmp_path):
    result = assess(request_of(extra=(str(toy(tmp_path)),)), here_pool)
    assert [axis.measure for axis in result.summary.axes[:3]] == [
        "similarity/toy", "similarity/nano judge", "similarity/nano second judge",
    ]  # fmt: skip
    assert len(result.summary.about["scored_by"]["recognisers"]["toy"]) == 64
    assert result.summary.about["scored_by"]["faces"].startswith("the largest face of a frame")


def test_what_conditioned_the_model_comes_last_and_is_marked_where_it_is_known(request_of, here_pool):
    unknown = assess(request_of(), here_pool)
    assert [axis.label for axis in unknown.summary.axes[:3]] == [
        "face: nano judge", "face: nano second judge", "face: nano encoder",
    ]  # fmt: skip
    assert unknown.summary.about["conditioned_on"] == "not known"
    told = assess(request_of(conditioned_on=("nano judge",)), here_pool)
    assert [axis.label for axis in told.summary.axes[:3]] == [
        "face: nano second judge", "face: nano encoder", "face: nano judge †",
    ]  # fmt: skip


def test_an_encoder_that_a_run_did_not_use_is_not_marked(request_of, here_pool):
    made = {"model": "nano", "adapter_hash": "a", "face_encoder": known_by(MODELS["nano"].faces(Path()).encoder())}
    marked = [
        assess(request_of(made_with=made | more), here_pool).summary.conditioned_on
        for more in ({"ip_scale": 1.0}, {"ip_scale": 0.0}, {"ip_scale": 1.0, "face_encoder": "another"})
    ]
    assert marked == [("nano encoder",), (), ()]
    named = assess(request_of(conditioned_on=("nanno judge",)), here_pool)
    assert any("'nanno judge' is none of the recognisers" in caution for caution in named.cautions)


def subset(planted, name, *ids):
    """A manifest of some of the planted clips; removed by the caller."""
    lines = [json.loads(line) for line in (planted / "manifest.jsonl").read_text().splitlines()]
    manifest = planted / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines if line["prompt_id"] in ids))
    return manifest


def test_where_every_clip_fails_they_count_as_the_worst(request_of, here_pool, planted):
    manifest = subset(planted, "bad", "cut", "text")
    try:
        found = assess(request_of(manifest=manifest), here_pool).summary
    finally:
        manifest.unlink()
    assert found.metrics["similarity/nano judge"].mean == 0.0
    assert (found.axes[0].label, found.axes[0].estimate.n) == ("face: nano judge", 2)


def test_a_photo_that_cannot_be_used_is_no_clips_fault_even_if_the_clip_is_gone(request_of, here_pool, planted):
    lines = [json.loads(line) for line in (planted / "manifest.jsonl").read_text().splitlines()]
    good = next(line for line in lines if line["prompt_id"] == "honest-0-0")
    gone = next(line for line in lines if line["prompt_id"] == "gone") | {"reference": "subjects/nobody.png"}
    manifest = planted / "nobody.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in (good, gone)))
    try:
        found = assess(request_of(manifest=manifest), here_pool).summary
    finally:
        manifest.unlink()
    similarity = found.metrics["similarity/nano judge"]
    assert (similarity.n, similarity.worst, similarity.left_out) == (1, 0, 1)
    assert found.metrics["coverage"].worst == 1


def test_what_the_scorer_stumbles_over_is_left_out_and_tried_again(request_of, here_pool, planted, monkeypatch):
    from lynx_video.evaluation.metrics import picture

    def stumble(_):
        raise RuntimeError("a library\ncrashed")

    manifest = subset(planted, "two", "honest-0-0", "honest-1-0")
    try:
        with monkeypatch.context() as patch:
            whole, seen = picture.flicker, []
            patch.setattr(picture, "flicker", lambda frames: stumble(frames) if seen else seen.append(1) or whole(frames))
            found = assess(request_of(manifest=manifest), here_pool).summary
        again = assess(request_of(manifest=manifest), here_pool).summary
    finally:
        manifest.unlink()
    similarity = found.metrics["similarity/nano judge"]
    assert (similarity.n, similarity.worst, similarity.left_out) == (1, 0, 1)
    assert found.failures == {"could not be scored: RuntimeError: a library crashed": 1}
    assert found.missing["flicker"] == {"could not be scored": 1}
    assert (again.failed, again.metrics["similarity/nano judge"].n) == (0, 2)


def test_of_a_run_clips_without_a_usable_photo_are_left_out_and_named_once(request_of, here_pool, planted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(planted, folder)
    (folder / "clips" / "honest-1-0.mp4").unlink()
    key = "person001/honest-1-0"
    reason = "the reference photo cannot be used: No face was found in it"
    (folder / "failures.jsonl").write_text(json.dumps({"key": key, "failure": reason}) + "\n")
    result = assess(request_of(folder=folder, made_with={"model": "nano"}), here_pool)
    assert result.summary.clips == 15
    assert [problem.reason for problem in result.problems if "honest-1-0" in problem.item] == ["unusable reference"]


def test_a_judge_that_says_nothing_of_a_clip_without_a_face_is_no_zero(request_of, here_pool, endpoint, planted):
    def reply(asked, _):
        return (200, dict.fromkeys(NAMES, 0.9)) if "nods" in json.dumps(asked) else (200, "no")

    endpoint.reply = reply
    manifest = planted / "one.jsonl"
    lines = [json.loads(line) for line in (planted / "manifest.jsonl").read_text().splitlines()]
    few = [line for line in lines if line["prompt_id"] in ("honest-0-0", "empty")]
    few[1]["prompt"] = "a wall"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in few))
    try:
        result = assess(request_of(judge=judged(endpoint), manifest=manifest), here_pool)
    finally:
        manifest.unlink()
    aesthetics = result.summary.metrics["judge/aesthetics"]
    assert (aesthetics.mean, aesthetics.n, aesthetics.left_out, aesthetics.worst) == (pytest.approx(0.9), 1, 1, 0)
    assert result.summary.metrics["similarity/nano judge"].worst == 1


def test_relative_paths_of_manifest_and_references_are_those_of_the_caller(
    request_of, here_pool, planted, tmp_path, monkeypatch
):
    (tmp_path / "grid").mkdir()
    shutil.copy(planted / "manifest.jsonl", tmp_path / "grid" / "m.jsonl")
    shutil.copytree(planted / "subjects", tmp_path / "photos" / "subjects")
    monkeypatch.chdir(tmp_path)
    result = assess(request_of(manifest=Path("grid/m.jsonl"), references=Path("photos")), here_pool)
    assert all(Path(record.reference).is_absolute() for record in result.records)
    assert "no such file" not in (tmp_path / "scores" / "report.html").read_text().replace("gone.mp4: no such file", "")


def test_files_of_others_are_not_taken_for_those_of_a_run(request_of, here_pool, planted, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(planted, folder)
    (folder / "failures.jsonl").write_text("not ours\n")
    (folder / "work").mkdir()
    (folder / "work" / "settings.json").write_text('{"model": ["x"]}')
    assert made_with(folder) == {}
    assert assess(request_of(folder=folder), here_pool).summary.clips == 16


def test_a_moved_folder_is_not_scored_again(request_of, here_pool, planted, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(planted, first)
    assess(request_of(folder=first), here_pool)
    first.rename(second)

    class Nobody:
        def run(self, name, _work, jobs, _progress, **_):
            assert not jobs, f"{name}: {len(jobs)} jobs"

    before = (tmp_path / "scores" / "scores.jsonl").read_bytes()
    assess(request_of(folder=second), Nobody())
    assert (tmp_path / "scores" / "scores.jsonl").read_bytes() == before


def test_everything_that_can_be_refused_is_refused_before_the_work(request_of, tmp_path):
    check(request_of())
    with pytest.raises(BadWeights, match="is not there"):
        check(request_of(extra=("nowhere.onnx",)))
    with pytest.raises(BadWeights, match="no such folder"):
        check(request_of(config=ScoreConfig(clip_model=str(tmp_path / "no clip"))))
    with pytest.raises(LynxError, match="can't be reached"):
        check(request_of(judge=JudgeConfig(judge_url="http://127.0.0.1:9/v1", judge_model="eye", judge_key="NO_KEY_AT_ALL")))
