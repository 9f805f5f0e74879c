"""From records to numbers: what counts, what is left out, what stands behind an axis, and files that no order changes."""

import csv
import json
import random

import numpy as np
import pytest
from made import record, records

from lynx_video.errors import BadData, BadRequest
from lynx_video.evaluation.charts import histogram_png, radar_png
from lynx_video.evaluation.statistics import Estimate
from lynx_video.evaluation.summary import read_scores, read_summary, summarise, write_summary
from lynx_video.media.image import read_picture


def scored(key, subject="anna", **scores):
    return record(key, subject, scores={name.replace("__", "/"): value for name, value in scores.items()})


def axes(*found, conditioned_on=()):
    return {axis.label: axis for axis in summarise(found, conditioned_on=conditioned_on).axes}


def test_a_failed_clip_counts_as_the_worst():
    found = summarise(
        [
            scored("a", similarity__judge=0.8, coverage=1.0, flicker=0.01),
            record("b", scores={"coverage": 0.0, "flicker": 0.5}, failure="no frame has a face"),
            record("c", scores={}, failure="c.mp4: does not decode (cut).", frames=0),
            record("d", "ben", scores={}, failure="/far/c.mp4/d.mp4: does not decode (cut).", frames=0),
        ]
    )
    similarity = found.metrics["similarity/judge"]
    assert (similarity.mean, similarity.n, similarity.worst, similarity.left_out) == (pytest.approx(0.2), 4, 3, 0)
    assert found.metrics["coverage"].mean == pytest.approx(0.25)
    assert found.metrics["coverage"].worst == 2, "that of the clip without a face was measured"
    # flicker has no worst: left out where it was not measured; what was measured of a clip that failed stands
    flicker = found.metrics["flicker"]
    assert (flicker.mean, flicker.n, flicker.left_out, flicker.worst) == (pytest.approx(0.255), 2, 2, 0)
    assert found.failures == {"does not decode (cut).": 2, "no frame has a face": 1}
    assert found.missing == {"flicker": {"the clip failed": 2}}
    assert (found.clips, found.failed, found.subjects) == (4, 3, ("anna", "ben"))
    assert found.by_subject["ben"]["similarity/judge"].mean == 0.0
    assert found.by_subject["anna"]["similarity/judge"].mean == pytest.approx(0.8 / 3)


def test_a_missing_score_is_left_out_and_counted():
    found = summarise(
        [
            scored("a", judge__aesthetics=0.8, coverage=1.0),
            record("b", scores={"judge/aesthetics": None, "coverage": 1.0}, missing={"judge/aesthetics": "timed out"}),
            record("c", scores={"coverage": float("nan")}),
        ]
    )
    aesthetics = found.metrics["judge/aesthetics"]
    assert (aesthetics.mean, aesthetics.n, aesthetics.left_out, aesthetics.worst) == (0.8, 1, 2, 0)
    assert found.missing["judge/aesthetics"] == {"no score in the record": 1, "timed out": 1}
    assert found.missing["coverage"] == {"the score is no finite number": 1}
    assert found.metrics["coverage"].n == 2


def test_what_nobody_measured_is_never_a_zero():
    """A judge that was not there: a clip that failed is no reason to call the quality 0."""
    found = summarise(
        [
            record("a", missing={"judge/video_quality": "no judge"}),
            record("b", scores={}, failure="no frame has a face", missing={"judge/video_quality": "no judge"}),
        ]
    )
    assert found.metrics["judge/video_quality"] == Estimate(mean=None, n=0, subjects=0, left_out=2)
    quality = found.axes[-1]
    assert (quality.name, quality.measure, quality.estimate) == ("quality", "", None)
    # but where all clips failed, they are the worst there is
    ruined = summarise([record("a", scores={"similarity/judge": None}, failure="does not decode")])
    assert (ruined.metrics["similarity/judge"].mean, ruined.metrics["similarity/judge"].worst) == (0.0, 1)


def test_axes_and_what_stands_behind_them():
    scores = {"judge__prompt_following": 0.7, "probe__prompt": 1.0, "probe__motion": 0.5, "judge__aesthetics": None}
    found = axes(scored("a", **scores))
    assert list(found) == ["face", "prompt", "aesthetics", "motion: probe", "quality"]
    assert found["prompt"].measure == "judge/prompt_following"  # before the probe
    assert found["motion: probe"].measure == "probe/motion"
    assert found["face"].estimate is None
    assert found["aesthetics"].estimate is None
    assert found["prompt"].estimate.mean == 0.7


def test_faces_by_recognisers_the_model_was_not_conditioned_on():
    scores = {f"similarity__{name}": 0.5 for name in ("a seen one", "curricular", "arcface", "zz")}
    found = axes(scored("a", coverage=0.75, **scores), conditioned_on=["a seen one"])
    assert list(found)[:4] == ["face: arcface", "face: curricular", "face: zz", "prompt"]
    del scores["similarity__zz"]
    found = axes(scored("a", coverage=0.75, **scores), conditioned_on=["a seen one"])
    assert list(found)[:3] == ["face: arcface", "face: curricular", "face: a seen one †"]
    assert [axis.conditioned for axis in found.values()][:4] == [False, False, True, False]
    assert all(axis.coverage.mean == 0.75 for axis in list(found.values())[:3])
    assert found["prompt"].coverage is None


def test_breakdowns():
    found = summarise(records(subjects=4, prompts=3))
    assert list(found.by_subject) == [f"person {i}" for i in range(4)]
    assert all(row["coverage"].n == 3 and row["coverage"].low is None for row in found.by_subject.values())
    assert list(found.by_prompt) == [f"prompt {i}" for i in range(3)]
    assert all(row["similarity/judge"].n == 4 and row["similarity/judge"].low is not None for row in found.by_prompt.values())
    means = [row["similarity/judge"].mean for row in found.by_prompt.values()]
    assert np.mean(means) == pytest.approx(found.metrics["similarity/judge"].mean)
    assert found.prompts["prompt 1"] == "A person: prompt 1."
    names = list(found.metrics)
    assert names[:3] == ["similarity/judge", "similarity/seen", "coverage"]  # as in the catalogue
    assert names.index("flicker") < names.index("judge/aesthetics") < names.index("probe/prompt")


def test_files_do_not_depend_on_the_order_of_records(tmp_path):
    found = records()
    found[2] = record(found[2].key, found[2].subject, found[2].prompt_id, failure="does not decode", scores={})
    about = {"system": "toy", "commands": ["a", "b"]}
    for name in ("one", "two"):
        write_summary(summarise(found, about, ["seen"]), found, tmp_path / name)
        random.Random(3).shuffle(found)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == ["radar.png", "scores.csv", "summary.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_summary_is_read_back(tmp_path):
    found = summarise(records(), {"system": "toy", "judge": {"calls": 3}}, ["seen"])
    write_summary(found, records(), tmp_path)
    assert read_summary(tmp_path / "summary.json") == found
    for damage in ("{", "[]", "{}", json.dumps(found.to_json() | {"axes": [{"name": "face"}]})):
        (tmp_path / "summary.json").write_text(damage)
        with pytest.raises(BadData, match=r"summary\.json"):
            read_summary(tmp_path / "summary.json")
    with pytest.raises(BadData, match=r"none\.json"):
        read_summary(tmp_path / "none.json")


def test_csv_holds_what_counts(tmp_path):
    found = [
        record("b", scores={}, failure='"broken", badly', prompt='comma, "quote"\nand line'),
        record("a", scores={"similarity/judge": 0.1 + 0.2, "flicker": None}, seed=None),
    ]
    write_summary(summarise(found), found, tmp_path)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == ["a", "b"]
    assert [float(row["similarity/judge"]) for row in rows] == [0.1 + 0.2, 0.0]
    assert (rows[0]["flicker"], rows[0]["seed"], rows[0]["failure"]) == ("", "", "")
    assert (rows[1]["failure"], rows[1]["prompt"]) == (found[0].failure, found[0].prompt)
    assert list(rows[0])[:4] == ["key", "subject", "prompt_id", "prompt"]


def test_scores_are_read_line_by_line(tmp_path):
    file = tmp_path / "scores.jsonl"
    found = [record("a", prompt="one\u2028two"), record("b")]
    text = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
    file.write_text(text, encoding="utf-8")
    assert read_scores(file) == found
    odd = json.dumps(record("c").to_json() | {"scores": {"coverage": "all"}}) + "\n"
    for damage, message in (
        ("", "holds no scores"),
        (text[:-30], "line 2: no JSON"),
        (text + "{}\n", "line 3: no record"),
        (text + odd, "line 3: the score coverage is no number: 'all'"),
    ):
        file.write_text(damage, encoding="utf-8")
        with pytest.raises(BadData, match=message):
            read_scores(file)
    with pytest.raises(BadData, match="no scores can be read"):
        read_scores(tmp_path / "none.jsonl")


def test_bad_records():
    with pytest.raises(BadData, match="no record"):
        summarise([])
    with pytest.raises(BadData, match="two records have the key 'a'"):
        summarise([record("a"), record("b"), record("a")])


def test_an_unknown_metric_is_shown_as_it_is():
    found = summarise([scored("a", novel__x=3.0), record("b", scores={}, failure="does not decode")])
    assert (found.metrics["novel/x"].mean, found.metrics["novel/x"].left_out) == (3.0, 1)


def series(picture, colour):
    return np.abs(picture.astype(int) - colour).max(axis=2) < 12


BLUE, ORANGE = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)


def test_radar_as_a_picture(tmp_path):
    """The mark of an axis stands where its mean says, and nothing is drawn where nothing was measured."""
    names = ["top", "right", "bottom", "left"]

    def at(*means):
        return [None if mean is None else Estimate(mean=mean, low=mean, high=mean, n=8, subjects=2) for mean in means]

    def extent(file):
        rows, columns = np.nonzero(series(read_picture(tmp_path / file), BLUE)[:780])  # above the legend
        return rows.min(), rows.max(), columns.min(), columns.max()

    radar_png(names, {"": at(1.0, 1.0, 1.0, 1.0)}, tmp_path / "full.png")
    top, bottom, left, right = extent("full.png")
    centre, radius = (left + right) / 2, (right - left) / 2
    assert (bottom - top) / 2 == pytest.approx(radius, abs=3)
    radar_png(names, {"": at(1.0, 0.5, 1.0, 0.0)}, tmp_path / "half.png")
    _, _, left, right = extent("half.png")
    assert (right - centre) / radius == pytest.approx(0.5, abs=0.03)
    assert (centre - left) / radius < 0.03
    radar_png(names, {"": at(1.0, None, None, 0.5)}, tmp_path / "gap.png")
    _, lowest, _, right = extent("gap.png")
    assert (right - centre) / radius < 0.03
    assert lowest < (top + bottom) / 2 + 20


def test_histogram_as_a_picture(tmp_path):
    """Columns as far right and as high as the counts say; names are no formulas."""
    values = {"_one $x$": [0.30, 0.31, 0.32, 0.6], "two": [0.7]}
    histogram_png(values, "similarity", tmp_path / "h.png")
    picture = read_picture(tmp_path / "h.png")
    left, right, top, bottom = 0.12 * 1056, 0.97 * 1056, 140, 585  # the axes, without the legend and the line at 0
    blue, orange = (series(picture[top:bottom], colour) for colour in (BLUE, ORANGE))
    rows, columns = np.nonzero(blue)
    assert columns.min() == pytest.approx(left, abs=4)  # the bar that holds three begins at 0.3, where the axis does
    rows_of_one, columns_of_one = np.nonzero(orange)
    assert columns_of_one.min() > left + 0.8 * (right - left)  # the only value of two, in the last of nine bars
    assert rows.min() < rows_of_one[columns_of_one > right - 30].min()


def test_charts_refuse(tmp_path):
    with pytest.raises(BadRequest, match="1 to 6 systems, got 7"):
        radar_png(["a"], {str(i): [None] for i in range(7)}, tmp_path / "r.png")
    with pytest.raises(BadRequest, match="no value of similarity"):
        histogram_png({"a": []}, "similarity", tmp_path / "h.png")
    with pytest.raises(BadRequest, match=r"charts are written as \.png"):
        radar_png(["a"], {"": [None]}, tmp_path / "r.jpg")
