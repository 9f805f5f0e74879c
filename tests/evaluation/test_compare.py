"""Systems on the same clips: pairs, differences with a known answer, ranks, refusals, and the page of it."""

import base64
import csv
import dataclasses
import json
import re

import pytest
from made import Page, drawn, evaluation, record, records

from lynx_video.errors import BadData, BadRequest
from lynx_video.evaluation.compare import compare, write_comparison
from lynx_video.evaluation.compare_page import write_compare_page


def changed(found, **changes):
    """Scores moved by so much: changed(found, **{"similarity/judge": 0.1})."""
    return [
        dataclasses.replace(one, scores={name: value + changes.get(name, 0) for name, value in one.scores.items()})
        for one in found
    ]


@pytest.fixture
def pair(tmp_path):
    """A first evaluation, and a later one 0.1 better by the judge and worse in flicker, without the last clip."""
    found = records()
    later = changed(found, **{"similarity/judge": 0.1, "flicker": 0.01})[:-1]
    return [evaluation(tmp_path / "a", found, ["seen"], system="base"), evaluation(tmp_path / "b", later, system="new")]


def test_pairs_and_differences(pair):
    found = compare(pair)
    assert [one.name for one in found.systems] == ["base", "new"]
    assert len(found.keys) == 11
    assert [one.only for one in found.systems] == [("person 3/prompt 2",), ()]
    row = found.differences["new"]
    better, worse, same = row["similarity/judge"], row["flicker"], row["coverage"]
    assert (better.mean.mean, better.mean.low, better.mean.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (better.mean.n, better.mean.subjects, better.mean.excludes_zero, better.wins.mean) == (11, 4, True, 1.0)
    assert worse.mean.mean == pytest.approx(0.01)
    assert worse.wins.mean == 0.0  # less flicker is better
    assert (same.mean.mean, same.mean.excludes_zero, same.wins.mean) == (0.0, False, 0.5)
    assert row["face_size"].wins is None  # neither way is better
    assert "face_size" not in found.ranks
    assert [found.ranks["similarity/judge"][name].place for name in ("base", "new")] == [2, 1]
    assert [found.ranks["flicker"][name].place for name in ("base", "new")] == [1, 2]
    # all numbers are of the pairs
    assert all(one.summary.clips == 11 for one in found.systems)
    first = found.systems[0].summary.metrics["similarity/judge"]
    assert better.mean.high - better.mean.low < 0.01 * (first.high - first.low)


def test_a_failed_clip_counts_in_its_pair(tmp_path):
    found = records()
    ruined = [dataclasses.replace(found[0], failure="no frame has a face", scores={}), *found[1:]]
    whole = compare([evaluation(tmp_path / "a", found), evaluation(tmp_path / "b", ruined)])
    row = whole.differences["b"]
    assert row["similarity/judge"].mean.mean == pytest.approx(-found[0].scores["similarity/judge"] / 12)
    assert row["similarity/judge"].mean.n == 12
    assert (row["flicker"].mean.n, row["flicker"].mean.left_out) == (11, 1)  # it has no worst
    assert [one.name for one in whole.systems] == ["a", "b"]  # by the folders


def test_what_only_some_measured_is_named(pair, tmp_path):
    extra = [dataclasses.replace(one, scores=one.scores | {"sharpness": 0.1}) for one in records()]
    found = compare([evaluation(tmp_path / "c", extra, system="sharp"), pair[0]])
    assert found.unshared == {"sharp": ["sharpness"], "base": []}
    assert "sharpness" not in found.metrics


def test_a_recogniser_any_was_conditioned_on_is_marked(pair):
    for folders in (pair, pair[::-1]):
        assert [axis.label for axis in compare(folders).axes][:2] == ["face: judge", "face: seen †"]


def test_files(pair, tmp_path):
    found = compare([*pair, pair[0]], ["one", "two", "three"])
    write_comparison(found, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "radar.png",
        "similarity.png",
    ]
    whole = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (whole["pairs"], whole["first"], [one["name"] for one in whole["systems"]]) == (11, "one", ["one", "two", "three"])
    assert whole["systems"][0]["not_paired"] == ["person 3/prompt 2"]
    difference = whole["differences"]["two"]["similarity/judge"]
    assert difference["difference"]["mean"] == pytest.approx(0.1)
    assert difference["difference"]["n"] == 11
    assert (difference["excludes_zero"], difference["wins"]["mean"]) == (True, 1.0)
    assert whole["ranks"]["similarity/judge"]["two"]["place"] == 1
    assert whole["axes"]["face: judge"] == "similarity/judge"
    with (tmp_path / "out" / "comparison.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 11 * len(found.metrics)
    assert float(rows[0]["two - one"]) == pytest.approx(0.1)
    assert float(rows[0]["three - one"]) == 0.0
    write_comparison(compare([*pair, pair[0]], ["one", "two", "three"]), tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_refusals(pair, tmp_path):
    found = records()
    with pytest.raises(BadRequest, match="2 to 6 evaluations, got 1"):
        compare(pair[:1])
    with pytest.raises(BadRequest, match="as many different names, got x, x"):
        compare(pair, ["x", "x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"empty: no scores\.jsonl there"):
        compare([pair[0], tmp_path / "empty"])
    bare = evaluation(tmp_path / "bare", found)
    (bare / "summary.json").unlink()
    with pytest.raises(BadData, match=r"bare: no summary\.json there"):
        compare([pair[0], bare])
    stranger = evaluation(tmp_path / "stranger", [dataclasses.replace(one, key=f"x{one.key}") for one in found])
    with pytest.raises(BadRequest, match="no key in common"):
        compare([pair[0], stranger])
    for what, changes in {"prompt": {"prompt": "Another."}, "subject": {"subject": "eve"}, "seed": {"seed": 7}}.items():
        other = evaluation(tmp_path / what, [dataclasses.replace(found[0], **changes), *found[1:]])
        with pytest.raises(BadRequest, match=f"same key with another {what}: 'person 0/prompt 0'"):
            compare([pair[0], other])
    plain = evaluation(tmp_path / "plain", [dataclasses.replace(one, scores={"similarity/other": 0.1}) for one in found])
    with pytest.raises(BadRequest, match=r"different recognisers \(base: judge, seen; plain: other\)"):
        compare([pair[0], plain])
    for noted, what in (({"recognisers": {"judge": "H"}}, "recogniser 'judge'"), ({"frames": "H"}, "`frames`")):
        changed_by = json.loads(json.dumps(noted).replace("H", "J"))
        folders = [
            evaluation(tmp_path / name, found, scored_by=by) for name, by in (("h", noted), ("j", changed_by), ("k", None))
        ]
        assert len(compare([folders[0], folders[2]]).keys) == 12  # where nothing was noted, nothing differs
        with pytest.raises(BadRequest, match=rf"{what} is not the same everywhere \(h: H; j: J\)"):
            compare(folders)


@pytest.mark.parametrize("name", ["model", "rubric", "votes", "frames", "temperature"])
def test_scores_of_another_judge_are_not_compared(tmp_path, name):
    judge = {"model": "eye", "rubric": "r", "votes": 3, "frames": 8, "temperature": 0.7, "valid": 36}
    first = evaluation(tmp_path / "a", records(), judge=judge)
    same = evaluation(tmp_path / "b", records(), judge=judge | {"valid": 35})
    assert len(compare([first, same]).keys) == 12
    other = evaluation(tmp_path / "c", records(), judge=judge | {name: "other"})
    with pytest.raises(BadRequest, match=f"the judge's {name} is not the same everywhere"):
        compare([first, other])


def test_equal_names_are_told_apart(tmp_path):
    folders = [evaluation(tmp_path / name, records(), system="lynx") for name in "ab"]
    assert [one.name for one in compare(folders).systems] == ["lynx (1)", "lynx (2)"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two drawn evaluations on one page; the later is better for one person and worse for another."""
    root = tmp_path_factory.mktemp("systems")
    first = drawn(root / "first" / "clips", records())
    gains = [0.01 * (i - 5.5) for i in range(12)]
    later = [changed([one], **{"similarity/judge": gain})[0] for one, gain in zip(first, gains, strict=True)]
    later[3] = dataclasses.replace(later[3], failure="<b>no face", scores={"coverage": 0.0})
    later = drawn(root / "later" / "clips", later)
    folders = [
        evaluation(root / name, found, ["seen"], system=f"<b>{name}", clips="clips")
        for name, found in {"first": first, "later": later[:-1]}.items()
    ]
    write_compare_page(compare(folders), root / "out" / "comparison.html")
    return Page(root / "out" / "comparison.html"), root


def test_page(page):
    page, _ = page
    assert not page.all("b")  # names are text
    assert "<b>later against <b>first" in page.text
    assert "11 clips are in every evaluation" in page.text
    assert "1 clips of <b>first do not pair" in page.text
    assert "<li>person 3/prompt 2</li>" in page.source
    assert len(page.all("svg")) == 2
    assert len(page.all("ul", "legend")) == 2
    assert re.search(r"rank \d \[\d, \d\] of 2", page.text)
    assert "11 of 4 subjects" in page.text
    assert (
        "Coverage: <b>first: 0.900 [0.900, 0.900], n = 11 of 4 subjects (few subjects: too narrow); <b>later: 0." in page.text
    )
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(", page.source)
    assert page.source.count("</script>") == 2


def test_page_shows_the_largest_differences_with_both_clips(page):
    page, root = page
    section = page.source.split("<h2>Largest differences")[1].split("<h2>")[0]
    gains, losses = section.split("<h3>Losses</h3>")
    shown = [re.findall(r'soft">(prompt \d): (.*?)</p>', part) for part in (gains, losses)]
    assert shown[0][0] == ("prompt 1", "+0.0450")  # person 3, the last that pairs
    assert shown[1][0][0] == "prompt 0"  # the one that failed counts as 0
    assert shown[1][1] == ("prompt 0", "−0.0550")
    card = gains.split("<article")[1]
    clips = re.findall(r'<video src="data:video/mp4;base64,(.*?)"', card)
    assert [base64.b64decode(one) for one in clips] == [
        (root / name / "clips" / "person 3" / "prompt 1.mp4").read_bytes() for name in ("first", "later")
    ]
    assert card.count("<img ") == 1
    assert card.count("coverage 0.900</figcaption>") == 2


def test_page_has_every_pair_as_a_row(page):
    page, _ = page
    rows = [row for row in page.all("tr") if "data-reference" in row]
    assert len(rows) == 11
    assert sum(row.get("class") == "failed" for row in rows) == 1
    links = page.all("a", "play")
    assert len(links) == 22
    media = page.media()
    assert all(link["data-number"] in media for link in links)
    assert {link["data-label"] for link in links} == {"<b>first", "<b>later"}


def test_one_subject_and_no_faces(tmp_path):
    """Little to compare: no face axis, no interval; a page and files all the same."""
    found = [record(name, scores={"judge/aesthetics": 0.5}) for name in "ab"]
    folders = [evaluation(tmp_path / name, found) for name in ("x", "y")]
    whole = compare(folders)
    write_comparison(whole, tmp_path / "out")
    assert not (tmp_path / "out" / "similarity.png").exists()
    write_compare_page(whole, tmp_path / "out" / "comparison.html", clip_bytes=0)
    text = Page(tmp_path / "out" / "comparison.html").text
    assert "2 of 1 subject (no interval)" in text
    assert "face not measured not measured in all" in text
