"""An evaluation on one page: what stands on it, that foreign text stays text, what is carried and what is linked."""

import base64
import dataclasses
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from made import Page, drawn, record, records

from lynx_video.errors import BadOutput, MissingDependency
from lynx_video.evaluation.page import number
from lynx_video.evaluation.report import write_report
from lynx_video.evaluation.summary import summarise
from lynx_video.media.image import read_picture, write_picture
from lynx_video.nano.people import portrait

HOSTILE = '</script><b onclick="x">&\'"$body'


def page_of(found, clips, output, about=None, conditioned_on=("seen",), **settings):
    write_report(summarise(found, about, conditioned_on), found, output, clips=clips, **settings)
    return Page(output)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """4 x 3 clips with their records; one without a face, one that does not decode."""
    folder = tmp_path_factory.mktemp("clips")
    found = records()
    found[4] = dataclasses.replace(found[4], failure="no frame has a face", scores={"coverage": 0.0, "flicker": 0.1})
    found[7] = dataclasses.replace(found[7], failure="prompt 1.mp4: does not decode (cut).", scores={}, frames=0)
    found[0] = dataclasses.replace(
        found[0], missing={"judge/aesthetics": "timed out"}, scores={"coverage": 0.9, "similarity/judge": 0.61}
    )
    found = drawn(folder, found)
    (folder / found[7].clip).write_bytes(b"no video")
    return folder, found


@pytest.fixture(scope="module")
def page(clips, tmp_path_factory):
    folder, found = clips
    about = {"system": "toy", "versions": {"torch": "2.9"}, "commands": ["evaluate run <x>", "evaluate score"], "none": None}
    return page_of(found, folder, tmp_path_factory.mktemp("page") / "report.html", about)


def cells(source):
    """The rows of a table as lists of text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", source, re.DOTALL)
    return [
        [" ".join(re.sub("<[^>]*>", " ", one).split()) for one in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_axes_with_interval_n_and_coverage(page, clips):
    summary = summarise(clips[1], conditioned_on=["seen"])
    rows = {row[0]: row[1:] for row in cells(page.section("The axes"))}
    judge = summary.metrics["similarity/judge"]
    mean, coverage, n = rows["face: judge face similarity (judge)"]
    assert mean == f"{judge.mean:.3f} [{judge.low:.3f}, {judge.high:.3f}]"
    assert coverage.startswith(f"{summary.metrics['coverage'].mean:.3f} [")
    assert n == "12 of 4 subjects (few subjects: too narrow) 2 failed, as worst"
    assert "face: seen † face similarity (seen) † conditioned on it, so it flatters" in rows
    aesthetics = rows["aesthetics judge model (aesthetics)"]
    assert aesthetics[1:] == ["", "10 of 4 subjects (few subjects: too narrow) 1 failed, as worst, 2 left out"]
    assert rows["motion not measured"] == ["not measured", "", "0"]
    charts = [attrs["aria-label"] for attrs in page.all("svg")]
    assert len(charts) == 2
    assert f"face: judge {judge}" in charts[0]
    assert "motion not measured" in charts[0]


def test_all_metrics_with_their_explanation(page):
    rows = {row[0]: row[1:] for row in cells(page.section("All metrics"))}
    assert len(rows) == 9
    similarity = next(name for name in rows if name.startswith("face similarity (judge)"))
    assert "Cosine between the face in a frame" in similarity
    assert "Higher is better" in similarity
    assert rows[similarity][2:] == ["2 as 0", "0"]
    flicker = next(name for name in rows if name.startswith("flicker"))
    assert "Lower is better" in flicker
    assert rows[flicker][1:] == ["10 of 4 subjects (few subjects: too narrow)", "0", "2"]


def test_breakdowns(page):
    people = cells(page.section("By subject"))
    assert [row[0] for row in people[1:]] == [f"person {i}" for i in range(4)]
    assert people[0] == ["subject", "n", "face: judge", "face: seen †", "coverage", "prompt: probe", "aesthetics"]
    assert all(row[1] == "3" and "[" not in row[2] for row in people[1:])
    assert people[1][-1].endswith("n = 2")  # one was left out
    prompts = cells(page.section("By prompt"))
    assert [row[0] for row in prompts[1:]] == [f"prompt {i} A person: prompt {i}." for i in range(3)]
    assert all("[" in row[2] and row[1] == "4 of 4 subjects" for row in prompts[1:])


def test_best_and_worst_play_beside_their_reference(page, clips):
    folder, found = clips
    best, worst = page.section("Best and worst").split("<h3>Worst</h3>")
    assert "By similarity x coverage (judge), of the clips that did not fail" in best
    shown = [re.findall(r"<h4>(.*?)</h4>.*?soft\">(.*?):", part) for part in (best, worst)]
    ranked = sorted((one for one in found if "kept/judge" in one.scores), key=lambda one: -one.scores["kept/judge"])
    names = [(one.subject, one.prompt_id) for one in ranked]
    assert shown[0] == names[: len(names) // 2]
    assert shown[1] == names[::-1][: len(names) // 2]
    assert "coverage 0.900" in best
    first = re.search(r'<img src="(.*?)".*?<video src="(.*?)"', best)
    assert base64.b64decode(first[2].split(",")[1]) == (folder / ranked[0].clip).read_bytes()
    assert first[1].startswith("data:image/jpeg;base64,")
    assert "autoplay loop muted playsinline" in best


def test_every_clip_is_a_row(page, clips):
    _, found = clips
    rows = page.all("tr")
    playable = [row for row in rows if "data-reference" in row]
    assert len(playable) == 12 + 2  # and the failures once more
    section = cells(page.section("All clips"))
    assert [row[1:4] for row in section[1:]] == [
        [one.subject, one.prompt_id, one.prompt] for one in sorted(found, key=lambda o: o.key)
    ]
    failed = next(row for row in section if row[-1] == "no frame has a face")
    assert failed[5:8] == ["0.000", "0.000", "0.000"]  # as it counts
    assert section[1][-2] == "–"
    # heads that sort are buttons, so that keys reach them
    heads = re.findall(r'<th scope="col" aria-sort=none><button type="button">(.*?)</button>', page.section("All clips"))
    assert heads == section[0][1:]
    sorts = re.findall(r'data-sort="([^"]*)"', page.section("All clips"))
    assert repr(found[1].scores["similarity/judge"]) in sorts
    media = page.media()
    links = page.all("a", "play")
    for link in links:
        data = media.get(link["data-number"])
        file = page_folder(page) / unquote(link["href"])
        if "linked" in link["class"]:
            assert data is None
        else:
            assert base64.b64decode(data.split(",")[1]) == file.read_bytes()
    assert {unquote(link["href"]).split("/")[-1] for link in links if "linked" in link["class"]} == {"prompt 1.mp4"}


def page_folder(page):
    return Path(page.file).parent


def test_failures_and_missing_scores_by_name_and_reason(page):
    section = page.section("Failures")
    rows = cells(section)
    assert ["person 1/prompt 1", "no frame has a face"] in rows
    assert ["person 2/prompt 1", "does not decode (cut)."] in rows
    assert "2 of 12 clips failed: does not decode (cut): 1, no frame has a face: 1." in section
    assert ["judge model (aesthetics)", "1", "timed out"] in rows


def test_what_ran(page):
    rows = dict(cells(page.section("What ran")))
    assert rows["versions.torch"] == "2.9"
    assert rows["commands"] == "evaluate run &lt;x&gt; evaluate score"
    assert rows["none"] == ""


def test_needs_nothing_from_outside(page):
    for tag, attrs in page.elements:
        for name in ("src", "srcset", "poster", "data"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
        assert attrs.get("href", "../").startswith(("../", "./")), (tag, attrs)
    assert not {"link", "iframe", "base", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(", page.source)
    assert "default-src 'none'" in page.source


def test_foreign_text_stays_text(tmp_path):
    """Names, prompts, reasons and what ran may hold anything: no element comes of it, not from within the JSON either."""
    found = [
        record(
            f"{i}{HOSTILE}",
            f"{HOSTILE}{i % 2}",
            HOSTILE,
            prompt=HOSTILE,
            clip=f"{i}.mp4",
            reference="a.png",
            failure=HOSTILE if i == 3 else "",
            scores={f"similarity/{HOSTILE}": 0.5 + i / 10, f"novel{HOSTILE}": 0.1, "coverage": None},
            missing={"coverage": HOSTILE},
        )
        for i in range(4)
    ]
    found = drawn(tmp_path / "clips", found)
    page = page_of(found, tmp_path / "clips", tmp_path / "report.html", {"system": HOSTILE, HOSTILE: [HOSTILE]})
    assert len(page.all("script")) == 2
    assert not page.all("b")
    assert not any("onclick" in attrs for _, attrs in page.elements)
    assert page.source.count("</script>") == 2
    assert page.text.count(HOSTILE) > 10
    assert page.media()
    captions = [attrs["data-caption"] for attrs in page.all("tr") if "data-caption" in attrs]
    assert all(HOSTILE in caption for caption in captions)


def weight(page):
    """Bytes of the files that a page carries."""
    return sum(len(base64.b64decode(data.split(",")[1])) for data in page.media().values())


def test_a_budget_and_links_beyond_it(clips, tmp_path):
    folder, found = clips
    whole = page_of(found, folder, tmp_path / "whole.html")
    assert "To keep the page small" not in whole.text
    everything = weight(whole)
    page = page_of(found, folder, tmp_path / "part.html", clip_bytes=everything // 2)
    assert everything // 3 < weight(page) <= everything // 2
    section = page.section("All clips")
    left, total = map(
        int, re.search(r"To keep the page small, (\d+) of (\d+) clips \(dotted\) are not in it", section).groups()
    )
    assert total == 12
    linked = {link["data-number"] for link in page.all("a", "play") if "linked" in link["class"]}
    assert 1 < left == len(linked) - 1 < 11  # one does not decode
    # the best have the first turn
    assert "<video" in page.section("Best and worst").split("<h3>Worst</h3>")[0]
    empty = page_of(found, folder, tmp_path / "none.html", clip_bytes=0)
    assert not empty.all("video")
    assert empty.media() == {}
    assert "11 of 12 clips (dotted) are not in it" in empty.text
    assert len(empty.all("a", "absent")) == 2 * len(re.findall("<h4>", empty.source))


def test_files_that_are_not_what_was_scored(tmp_path):
    found = drawn(tmp_path, [record(name) for name in "abcd"])
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").write_bytes((tmp_path / "c.mp4").read_bytes() + b"more")
    (tmp_path / "d.avi").write_bytes(b"x")
    found[3] = dataclasses.replace(found[3], clip="d.avi")
    (tmp_path / "people" / "anna.png").write_bytes(b"no picture")
    page = page_of(found, tmp_path, tmp_path / "report.html")
    text = page.section("All clips")
    assert "cannot be read (No such file" in text
    assert "the file has changed since it was scored" in text
    assert "browsers do not play .avi" in text
    assert [len(page.media()), text.count("linked")] == [1, 3]
    assert "anna.png" in page.section("Best and worst")  # why the photo is not there


def test_a_large_photo_is_carried_small(tmp_path):
    found = drawn(tmp_path, [record("a"), record("b")])
    write_picture(tmp_path / "people" / "anna.png", portrait(1, 1000)[:600])
    page = page_of(found, tmp_path, tmp_path / "report.html")
    data = page.all("img")[0]["src"]
    (tmp_path / "small.jpg").write_bytes(base64.b64decode(data.split(",")[1]))
    assert read_picture(tmp_path / "small.jpg").shape == (192, 320, 3)


def test_the_order_of_records_changes_no_byte(clips, tmp_path):
    folder, found = clips
    page_of(found, folder, tmp_path / "one.html")
    page_of(found[::-1], folder, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_sparse_evaluations(tmp_path):
    """Nothing but failures, or a single clip without any score: a page all the same."""
    ruined = page_of([record("a", failure="does not decode", scores={}, frames=0)], tmp_path, tmp_path / "a.html")
    assert "1 of 1 clips failed: does not decode: 1." in ruined.text
    assert "not measured" in ruined.text
    page = page_of([record("a", scores={"flicker": 0.1})], tmp_path, tmp_path / "b.html")
    assert "No clip failed" in page.text
    assert "1 of 1 subject (no interval)" in page.text
    assert not page.all("video")


def test_refusals(clips, tmp_path, monkeypatch):
    folder, found = clips
    with pytest.raises(BadOutput, match=r"report\.pdf: a report is written as \.html"):
        page_of(found, folder, tmp_path / "report.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[evaluate\]'"):
        page_of(found, folder, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.500"), (-0.25, "−0.250"), (None, "–"), (1.0, "1.000"), (12.345, "12.3"), (0.00123, "0.00123")]
)
def test_numbers(value, shown):
    assert number(value) == shown
