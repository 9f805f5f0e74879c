"""A run on one page: what stands on it, what it needs (nothing), and the curves as a picture."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lynx_video.errors import BadData, BadOutput, BadRequest
from lynx_video.media.image import read_picture, write_picture
from lynx_video.media.video import write_video
from lynx_video.nano.people import portrait
from lynx_video.training import report
from lynx_video.training.journal import Journal, StepFacts
from lynx_video.training.report import Axis, curves_png, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart: its elements with attributes, its text, and whether every element that was opened is closed."""

    def __init__(self, file):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def all(self, tag, **wanted):
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]

    def rows(self):
        """The tables as a dictionary."""
        cells = re.findall(r"<th[^>]*>(.*?)</th><td>(.*?)</td>", self.source)
        return dict(cells)


def page_of(run, output):
    write_report(run, output)
    return Page(output)


def log(run, steps=200, bad=(), metrics=None, clips=None, lift=0.0):
    rng = np.random.default_rng(0)
    with Journal(run, total_steps=steps, quiet=True) as journal:
        for step in range(1, steps + 1):
            loss = math.nan if step in bad else lift + 0.2 + 0.3 * math.exp(-step / 50) + 0.02 * rng.random()
            journal.step(
                StepFacts(
                    step=step,
                    stage="image" if step <= steps // 2 else "video",
                    loss=loss,
                    learning_rate=1e-5,
                    gradient_norm=0.5,
                    samples=2,
                    tokens=1000,
                    seconds=0.25,
                    skipped=sum(one <= step for one in bad),
                    peak_memory=3 * 2**30,
                )
            )
            if metrics and step in metrics:
                journal.validation(step, metrics[step], (clips or {}).get(step))
    return run


def clip(file, seed=3, side=64, frames=5, noise=False):
    if noise:
        picture = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    else:
        picture = np.stack([np.roll(portrait(seed, side), shift, 1) for shift in range(frames)])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, picture, 8.0)
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything: two stages, skipped steps, validation, clips of two people."""
    run = tmp_path_factory.mktemp("runs") / "likeness"
    shots = run / "validation"
    clips = {step: {"anna": clip(shots / f"{step}" / ".." / f"a{step}.mp4", 3)} for step in (100, 200)}
    clip(shots / "ben-000100.webp", 4)
    write_picture(shots / "anna.png", portrait(3, 64))
    write_picture(shots / "reference-ben.png", portrait(4, 64))
    (shots / "readme.txt").write_text("no clip")
    metrics = {step: {"loss_900": 1 / step, "similarity": step / 400, "coverage": 1.0} for step in (100, 200)}
    log(run, 200, bad=(40, 120), metrics=metrics, clips=clips)
    (run / "config.json").write_text(
        json.dumps({"optimizer": {"lr": 1e-05, "betas": [0.9, 0.99]}, "name": "<b>&", "resume": None, "stages": [{"steps": 3}]})
    )
    return run


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return page_of(run, tmp_path_factory.mktemp("page") / "report.html")


def test_facts(page):
    rows = page.rows()
    assert rows["Steps"] == "200"
    assert rows["Samples"] == "400"
    assert rows["Video tokens"] == "200,000"
    assert rows["Time"] == "50 s"
    assert rows["Speed"] == "4,000 tokens/s"
    assert rows["Skipped steps"] == "2"
    assert rows["Peak memory"] == "3.00 GiB"
    assert 0.2 < float(rows["Smoothed loss"]) < 0.3
    assert rows["optimizer.lr"] == "1e-05"
    assert rows["optimizer.betas"] == "0.9, 0.99"
    assert rows["name"] == "&lt;b&gt;&amp;"
    assert rows["resume"] == ""
    assert rows["stages.0.steps"] == "3"
    assert page.all("title")
    assert "likeness" in page.text


def test_needs_nothing_from_outside(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "poster", "data"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
    assert tag != "link"
    assert not re.search(r"https?://|@import|url\(|fetch\(", page.source)


def test_curves(page):
    titles = re.findall(r"<figure[^>]*><h3>(.*?)</h3>", page.source)
    assert titles == ["Loss", "Learning rate", "Gradient norm", "loss 900", "similarity", "coverage"]
    assert "(40, 120)" in page.text
    assert len(page.all("path", class_="lost")) == 2
    assert len(page.all("path", class_="stage")) == 1
    assert [name for name in ("image", "video") if f">{name}</span>" in page.source] == ["image", "video"]
    plots = page.all("div", class_="plot")
    assert len(plots) == 6
    for plot in plots:
        assert plot["tabindex"] == "0"
        assert plot["aria-label"]
    similarity = json.loads(plots[4]["data-points"])
    assert similarity == [[100, "0.25", 50.0], [200, "0.5", 100.0]]
    assert plots[4]["aria-label"] == "similarity: 0.25 at step 100, 0.5 at step 200."
    losses = json.loads(plots[0]["data-points"])
    assert [step for step, *_ in losses] == [step for step in range(1, 201) if step not in (40, 120)]
    for place in re.findall(r'd="M([\d. ]+)"', page.source):
        assert all(0 <= float(number) <= 1000 for number in place.split())


def test_clips_stand_beside_their_reference_in_the_order_of_time(page, run):
    section = page.source.split("<h2>Validation clips</h2>")[1].split("</main>")[0]
    people = re.findall(r'<div class="person"><h3>(.*?)</h3>(.*?)</div></div>', section)
    assert [name for name, _ in people] == ["anna", "ben"]
    assert [re.findall(r"<figcaption>(.*?)</figcaption>", shown) for _, shown in people] == [
        ["reference", "step 100", "step 200"],
        ["reference", "step 100"],
    ]
    data = {attrs["aria-label"]: attrs["src"] for attrs in page.all("video")}
    assert base64.b64decode(data["anna, step 200"].split(",")[1]) == (run / "validation" / "a200.mp4").read_bytes()
    assert data["anna, step 200"].startswith("data:video/mp4;base64,")
    assert [attrs["alt"] for attrs in page.all("img")] == ["anna, reference", "ben, reference", "ben, step 100"]
    assert page.all("img", alt="ben, step 100")[0]["src"].startswith("data:image/webp;")
    assert "left out" not in page.text


def test_the_page_stays_small(tmp_path, monkeypatch):
    run = log(tmp_path / "run", 3)
    for step in range(1, 10):
        for name in ("anna", "ben"):
            clip(run / "validation" / f"{name}-{step}.webp", step, noise=True)
        write_picture(run / "validation" / "anna.png", portrait(3, 64))
    size = (run / "validation" / "anna-1.webp").stat().st_size
    monkeypatch.setattr(report, "CLIP_BYTES", 7 * size)
    page = page_of(run, tmp_path / "report.html")
    shown = [attrs["alt"] for attrs in page.all("img")]
    # the reference, and of each person the last, the first and the middle
    assert shown == ["anna, reference", *(f"{name}, step {step}" for name in ("anna", "ben") for step in (1, 5, 9))]
    assert "12 of 19 files left out" in page.text


def test_the_real_limit_keeps_under_ten_megabytes(tmp_path):
    run = log(tmp_path / "run", 3)
    (run / "validation").mkdir()
    for step in range(20):
        (run / "validation" / f"anna-{step}.mp4").write_bytes(bytes(900_000))
    write_report(run, tmp_path / "report.html")
    assert 8_000_000 < (tmp_path / "report.html").stat().st_size < 10_000_000
    assert report.CLIP_BYTES * 4 / 3 < 9_500_000  # half a megabyte for the rest


def test_a_run_that_has_only_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").touch()
    page = page_of(run, tmp_path / "out" / "report.html")
    assert "no step has been logged yet" in page.text
    assert "config.json is not there" in page.text
    assert not page.all("svg")
    log(run, 1, bad=(1,))
    page = page_of(run, tmp_path / "out" / "report.html")
    assert page.rows()["Smoothed loss"] == "no finite loss yet"
    assert "No finite value has been logged yet" in page.text
    log(run, 1)
    assert len(page_of(run, tmp_path / "out" / "report.html").all("svg")) == 3


def test_a_cut_log_and_old_lines(tmp_path):
    run = log(tmp_path / "run", 5)
    lines = (run / "log.jsonl").read_text().splitlines()
    lines[0] = '{"kind": "step", "step": 1, "loss": 0.5}'  # of another version: what is missing is left out
    (run / "log.jsonl").write_text("\n".join(lines)[:-30])
    page = page_of(run, tmp_path / "report.html")
    assert page.rows()["Steps"] == "4"
    assert page.rows()["Samples"] == "6"


def test_a_step_measured_twice_counts_once(tmp_path):
    run = log(tmp_path / "run", 2, metrics={2: {"similarity": 0.1}})
    with Journal(run, total_steps=4, start=2, quiet=True) as journal:
        journal.validation(2, {"similarity": 0.3, "coverage": math.nan})
        journal.note("a <script>alert(1)</script> note")
    page = page_of(run, tmp_path / "report.html")
    assert json.loads(page.all("div", class_="plot")[3]["data-points"]) == [[2, "0.3", 100.0]]
    assert "coverage" not in page.source
    assert "a <script>alert(1)</script> note" in page.text  # as text
    assert len(page.all("script")) == 1


def test_bad_requests(tmp_path, run):
    with pytest.raises(BadData, match=r"log\.jsonl"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(BadOutput, match=r"report\.pdf: a report is written as \.html"):
        write_report(run, tmp_path / "report.pdf")
    damaged = log(tmp_path / "run", 2)
    (damaged / "config.json").write_text("{")
    with pytest.raises(BadData, match=r"config\.json: not a JSON file"):
        write_report(damaged, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_curves_as_a_picture(tmp_path, run):
    other = log(tmp_path / "other", 400, lift=0.3)
    curves_png([run, other], tmp_path / "curves.png", size=(800, 400))
    picture = read_picture(tmp_path / "curves.png").astype(int)
    assert picture.shape == (400, 800, 3)
    blue, orange = (np.abs(picture - colour).max(axis=2) < 40 for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)))
    low = slice(int(400 * 0.2), None)  # below the legend
    for drawn, last in ((blue, 0.5), (orange, 1.0)):
        columns = np.flatnonzero(drawn[low].any(axis=0))
        assert columns[0] < 60
        assert abs(columns[-1] - (50 + last * 730)) < 12  # as far as the run has come
    first, final = (np.flatnonzero(orange[low, column]).mean() for column in (58, 770))
    assert final > first + 100  # the loss falls
    assert (np.abs(picture - 0x44).max(axis=2) < 60).sum() > 200  # labels
    assert (np.ptp(picture, axis=2)[:, :40] < 8).all()  # nothing but grey labels left of the axis
    curves_png(run, tmp_path / "one.png", size=(400, 200))
    assert read_picture(tmp_path / "one.png").shape == (200, 400, 3)


def test_pictures_that_cannot_be_drawn(tmp_path, run):
    with pytest.raises(BadRequest, match="1 to 6 runs, got 7"):
        curves_png([run] * 7, tmp_path / "curves.png")
    with pytest.raises(BadRequest, match="got 0"):
        curves_png([], tmp_path / "curves.png")
    with pytest.raises(BadOutput, match=r"curves are written as \.png"):
        curves_png(run, tmp_path / "curves.jpg")
    with pytest.raises(BadData, match="no step with a finite loss"):
        curves_png([run, log(tmp_path / "bad", 1, bad=(1,))], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.12, 0.83], [0.2, 0.4, 0.6, 0.8]),
        ([3e-6, 1e-5], [4e-6, 6e-6, 8e-6, 1e-5]),
        ([0.001, 0.9], [0.001, 0.01, 0.1]),
        ([-3.0, 4.0], [-2.0, 0.0, 2.0, 4.0]),
        ([1.0], [0.9, 0.95, 1.0, 1.05, 1.1]),
        ([0.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([0.0, 40_000.0], [0.0, 1e4, 2e4, 3e4, 4e4]),
    ],
)
def test_axis(values, ticks):
    axis = Axis.over(values)
    assert axis.ticks() == pytest.approx(ticks)
    assert all(0 <= axis.place(value) <= 1 for value in (*values, *axis.ticks()))
    places = [axis.place(tick) for tick in axis.ticks()]
    assert places == sorted(places)
    assert np.ptp(np.diff(places)) < 1e-9
    assert Axis.over([1e-7, 1.0], may_log=False).place(0.5) == pytest.approx(0.5, abs=0.03)


def test_thinning_keeps_spikes():
    points = [(step, 1.0) for step in range(1, 10_001)]
    points[6543] = (6544, 9.0)
    points[6544] = (6545, -9.0)
    thin = report._thin(points, 100)
    assert len(thin) <= 100
    assert {(6544, 9.0), (6545, -9.0), points[-1]} <= set(thin)
    assert thin == sorted(thin)
    assert report._thin(points[:100], 100) == points[:100]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.25, "0.25"),
        (1e-5, "1e-5"),
        (1200, "1200"),
        (40_000, "40k"),
        (1.5e6, "1.5M"),
        (0, "0"),
        (3.14159, "3.142"),
        (-2, "-2"),
    ],
)
def test_numbers(value, shown):
    assert report._number(value) == shown
