"""Making the clips of a grid: those that are missing, each once, and never from something else than was asked."""

import json
from functools import partial

import pytest

from lynx_video.cli.console import hush_libraries
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadOutput, Refused
from lynx_video.evaluation import run
from lynx_video.evaluation.grid import draw_subjects, entries
from lynx_video.evaluation.layouts import read_folder
from lynx_video.evaluation.prompts import NANO_PROMPTS, Prompt
from lynx_video.media.image import write_picture
from lynx_video.media.video import read_metadata, read_video
from lynx_video.pipeline.load import survey

CONFIG = GenerateConfig(num_inference_steps=2)


@pytest.fixture(autouse=True)
def quiet():
    hush_libraries()


@pytest.fixture
def grid(tmp_path):
    """Two people, two prompts, one seed."""
    return entries(tmp_path / "out", draw_subjects(tmp_path / "out", 2), NANO_PROMPTS[:2], 1)


@pytest.fixture
def make(tmp_path, here_pool):
    def call(grid, config=CONFIG, name="out", **how):
        return run.make_clips(
            tmp_path / name, grid, config, name="nano", survey=partial(survey, "nano", device="cpu"), pool=here_pool, **how
        )

    return call


def contents(folder):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*.mp4"))}


def test_a_run_makes_every_clip_once_and_goes_on_where_it_was(make, grid, tmp_path):
    facts = make(grid[:3])
    assert (facts["clips"], facts["made_now"], facts["failures"]) == (3, 3, 0)
    before = contents(tmp_path / "out")
    assert len(before) == 3
    assert make(grid)["made_now"] == 1
    after = contents(tmp_path / "out")
    assert len(after) == 4
    assert {file: after[file] for file in before} == before, "nothing is made twice"
    for entry in grid:
        said = read_metadata(entry.clip)
        assert (said["prompt"], said["seed"], said["benchmark_key"]) == (entry.prompt, entry.seed, entry.key)
        assert read_video(entry.clip)[0].shape == (9, 64, 64, 3)
    found, problems = read_folder(tmp_path / "out")
    assert found == sorted(grid, key=lambda one: one.key)
    assert problems == []


def test_a_clip_that_was_lost_is_made_again_and_a_kill_between_clip_and_note_costs_nothing(make, grid, tmp_path):
    make(grid[:2])
    first = grid[0].clip.read_bytes()
    grid[0].clip.unlink()
    note = tmp_path / "out" / "work" / "made" / f"{run.job_key(grid[1])}.safetensors"
    note.unlink()
    (grid[1].clip.parent / ".half-written.mp4").write_bytes(b"x")
    assert make(grid[:2])["made_now"] == 1
    assert grid[0].clip.read_bytes() == first, "the same bits again"
    assert note.is_file()
    assert not list((tmp_path / "out").rglob(".half*"))


def test_a_clip_of_another_prompt_is_never_taken_for_this_one(make, grid, tmp_path):
    make(grid[:1])
    changed = entries(
        tmp_path / "out", draw_subjects(tmp_path / "out", 1), [Prompt(id=NANO_PROMPTS[0].id, text="a person nods")], 1
    )
    with pytest.raises(BadOutput, match="made with another prompt"):
        make(changed)


def test_other_settings_need_another_folder(make, grid):
    make(grid[:1])
    with pytest.raises(BadOutput, match=r"was begun with ip_scale 1\.0, now it is 0\.5"):
        make(grid, GenerateConfig(num_inference_steps=2, ip_scale=0.5))
    with pytest.raises(BadOutput, match=r"was begun with safety_checker"):
        make(grid, safety="off")
    assert make(grid[:1], GenerateConfig(num_inference_steps=2, idle_models="offload"))["made_now"] == 0, (
        "that only saves memory"
    )


def test_a_person_without_a_face_is_a_failure_of_theirs_alone(make, grid, tmp_path):
    import numpy as np

    write_picture(grid[0].reference, np.full((256, 256, 3), 90, np.uint8))
    facts = make(grid)
    assert (facts["made_now"], facts["failures"]) == (2, 2)
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [one["key"] for one in failures] == sorted(one.key for one in grid if one.subject == "person000")
    assert all(one["failure"].startswith("the reference photo cannot be used: No face was found") for one in failures)
    assert make(grid)["made_now"] == 0, "a failure that will come again is not tried again"


def test_a_failure_that_may_pass_is_tried_again(make, grid, monkeypatch):
    from lynx_video.pipeline import generate

    def stumble(*_, **__):
        raise RuntimeError("CUDA error: something that passes")

    with monkeypatch.context() as patch:
        patch.setattr(generate, "generate", stumble)
        assert make(grid[:1])["failures"] == 1
    facts = make(grid[:1])
    assert (facts["made_now"], facts["failures"]) == (1, 0)


def test_two_runs_do_not_work_in_one_folder(make, grid, tmp_path):
    from lynx_video.work import alone_in

    with alone_in(tmp_path / "out" / "work"), pytest.raises(BadOutput, match="another run works here"):
        make(grid[:1])
    assert make(grid[:1])["made_now"] == 1


def refuse_nothing():
    return lambda _: 0.0


def refuse_everything():
    return lambda _: 1.0


def test_the_safety_gate_holds_here_too(make, grid, tmp_path):
    assert make(grid[:1], checker=refuse_nothing)["failures"] == 0
    grid[0].clip.unlink()
    facts = make(grid[:1], checker=refuse_everything)
    assert facts["failures"] == 1
    assert not grid[0].clip.exists()
    assert "refused by the safety check" in (tmp_path / "out" / "failures.jsonl").read_text()
    assert Refused.exit_code == 3


def test_a_folder_of_something_else_is_left_alone(make, grid, tmp_path):
    (tmp_path / "out" / "thesis.doc").write_text("x")
    with pytest.raises(BadOutput, match=r"thesis\.doc"):
        make(grid)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="is a file"):
        make(grid, name="file")
