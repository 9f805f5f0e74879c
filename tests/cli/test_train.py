"""`lynx-video dataset draw`, `train`, `train-report`, and `generate` with what was trained."""

import json

import pytest

from lynx_video.cli.main import run
from lynx_video.training.journal import read_log

QUICK = [
    "--preset",
    "nano-video",
    "--initial",
    "zero",
    "--steps",
    "2",
    "--no-compile",
    "--held-out",
    "4",
    "--tokens",
    "1280",
    "--quiet",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A training set of 32 drawn clips and 32 stills."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    assert run(["dataset", "draw", str(folder), "--clips", "32", "--stills", "32"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """A finished run of two steps with one validation clip."""
    from lynx_video.media.image import write_picture
    from lynx_video.nano.people import portrait

    folder = tmp_path_factory.mktemp("trained")
    write_picture(folder / "ann.png", portrait(9))
    subject = {"portrait": "ann.png", "prompt": "a person nods wearing a red shirt in front of a blue wall"}
    (folder / "people.jsonl").write_text(json.dumps(subject) + "\n")
    assert run(["train", str(drawn), str(folder / "run"), *QUICK, "--validation", str(folder / "people.jsonl")]) == 0
    return folder / "run"


def test_training_validates_with_clips(trained):
    line = next(line for line in read_log(trained) if line["kind"] == "validation")
    facts = line["facts"]
    assert {"loss_none", "loss_identity", "loss_reference", "loss_both", "similarity", "coverage", "prompt_following"} <= set(
        facts
    )
    assert facts["loss_none"] > 0
    assert (trained / line["clips"]["00-ann"]).is_file()
    assert (trained / "validation" / "00-ann-reference.png").is_file()


def test_the_adapter_generates(trained, tmp_path, capsys):
    portrait = trained / "validation" / "00-ann-reference.png"
    arguments = ["--adapter-path", str(trained / "adapter"), "--subject-image", str(portrait), "--prompt", "a person smiles"]
    clip = tmp_path / "clip.mp4"
    assert run(["generate", *arguments, "--num-inference-steps", "2", "-o", str(clip), "--json"]) == 0
    assert clip.stat().st_size > 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_the_adapter_of_another_base_warns(trained, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (trained / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    facts = json.loads((adapter / "lynx.json").read_text())
    (adapter / "lynx.json").write_text(json.dumps(facts | {"base_hash": "0", "base": "another"}))
    portrait = trained / "validation" / "00-ann-reference.png"
    arguments = ["--adapter-path", str(adapter), "--subject-image", str(portrait), "--prompt", "a person smiles"]
    assert run(["generate", *arguments, "--num-inference-steps", "1", "-o", str(tmp_path / "clip.mp4"), "--json"]) == 0
    assert any("trained on another base (another)" in warning for warning in json.loads(capsys.readouterr().out)["warnings"])


def test_report(trained, tmp_path):
    assert run(["train-report", str(trained), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "loss both" in page
    assert "data:video/mp4" in page


def test_dry_run_says_what_would_be(drawn, tmp_path, capsys):
    assert run(["train", str(drawn), str(tmp_path / "run"), *QUICK, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trained_parameters"]["identity"] == 449_280
    assert facts["tokens_a_step"] <= 1280
    assert not (tmp_path / "run").exists()
    assert run(["train", str(drawn), str(tmp_path / "run"), *QUICK, "--dry-run"]) == 0
    assert "Fits: about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none", "{tmp}/run"], "none is not a finished training set"),
        (["{set}", "{tmp}/file"], "is a file; name a folder"),
        (["{set}", "{tmp}/run", "--tokens", "100"], "320 video tokens, a pack holds 100"),
        (["{set}", "{tmp}/run", "--start", "{tmp}/none"], "none is not there"),
        (["{set}", "{tmp}/run", "--drop-text", "2"], "--drop-text is a share"),
        (["{set}", "{tmp}/run", "--validation", "{tmp}/none.jsonl"], "none.jsonl: can't be read"),
        (["{set}", "{tmp}/run", "--validation", "{tmp}/file"], "file, line 1: expected"),
    ],
)
def test_bad_requests(drawn, tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("not json\n")
    filled = [one.format(set=drawn, tmp=tmp_path) for one in arguments]
    assert run(["train", *filled[:2], *QUICK, *filled[2:]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_report_of_nothing(tmp_path, capsys):
    assert run(["train-report", str(tmp_path / "none")]) == 2
    assert "is not there" in capsys.readouterr().err


def test_a_drawn_set_can_be_shown(drawn, tmp_path, capsys):
    assert run(["dataset", "show", str(drawn), "--sheet", str(tmp_path / "sheet.png"), "--check"]) == 0
    assert "9x64x64" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def test_draw_keeps_what_is_there(drawn, capsys):
    assert run(["dataset", "draw", str(drawn)]) == 2
    assert "--overwrite" in capsys.readouterr().err
