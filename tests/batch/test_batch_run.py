"""A batch in its folder: every clip once, failures their own, nothing overwritten, and going on after whatever stopped it."""

import csv
import errno
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lynx_video.batch import results
from lynx_video.batch.jobs import MARK, Overtaken
from lynx_video.errors import BadOutput, BadWeights, LynxError, Refused
from lynx_video.media.image import file_hash
from lynx_video.media.video import read_metadata, read_video
from lynx_video.pipeline import best
from lynx_video.pipeline import generate as generating
from lynx_video.studio.request import Request
from lynx_video.studio.setup import ModelFlags, Setup
from lynx_video.studio.studio import Studio

SMALL = {"num_frames": 5, "num_inference_steps": 2}
ANN = {"portrait": "ann.png", "prompt": "a person nods", **SMALL}
BOB = {**ANN, "portrait": "bob.png"}


def contents(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted((folder / "clips").iterdir())}


def lasting(record, but=()):
    """What of a record is the same whenever the clip is made."""
    return {name: value for name, value in record.items() if name not in {"seconds", MARK, *but}}


@pytest.fixture
def count(monkeypatch):
    """count(owner, "name") is a list that grows by the arguments of each call."""

    def make(owner, name):
        calls, real = [], getattr(owner, name)

        def spy(*given, **named):
            calls.append((given, named))
            return real(*given, **named)

        monkeypatch.setattr(owner, name, spy)
        return calls

    return make


def test_every_clip_is_made_once_and_the_table_says_how(read, run, rows, tmp_path, count):
    wanted = read(
        {**ANN, "portrait": ["ann.png", "bob.png"], "seed": "1-2"}, {**BOB, "id": "best", "best_of": 2, "ext": "webp"}
    )
    enrolled = count(Studio, "enrol")
    summary = run(wanted[:3])
    assert (summary.made_now, summary.counts["done"], summary.counts["requests"]) == (3, 3, 3)
    before = contents(tmp_path / "out")
    summary = run(wanted)
    assert (summary.made_now, summary.counts["done"]) == (2, 5)
    assert len(enrolled) == 2, "each person once, over both runs"
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before, "nothing is made twice"
    table = rows()
    assert list(table) == [one.id for one in wanted], "in the order of the requests"
    for one in wanted:
        row, clip = table[one.id], tmp_path / "out" / table[one.id]["clip"]
        said = read_metadata(clip)
        assert (row["status"], row["reason"], row["seed"], row["portrait"]) == (
            "done",
            "",
            said["seed"],
            one.request.portrait.name,
        )
        assert row["queued"] <= row["started"] <= row["finished"]
        for name in ("similarity", "coverage", "frames_hash", "judge", "prompt", "preset"):
            assert row[name] == said[name] is not None
        assert (said["portrait"], said["portrait_hash"]) == (one.request.portrait.name, file_hash(one.request.portrait))
        assert (said["reference_latent"], said["identity_file"], said["face_index"], said[MARK]) == ("mean", None, 0, one.stamp)
        assert read_video(clip)[0].shape == (5, 64, 64, 3)
    assert (tmp_path / "out" / "clips" / "best.webp").is_file()
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == list(table)


def test_a_clip_is_the_one_that_generate_makes(read, run, rows, studio, tmp_path):
    from lynx_video.studio.replay import check_same, request_of

    (wanted,) = read({**ANN, "id": "x", "seed": 3})
    run([wanted])
    record = read_metadata(tmp_path / "out" / "clips" / "x.mp4")
    (identity,) = (tmp_path / "out" / "work" / "identities").iterdir()
    by_file = Request(prompt="a person nods", identity=identity, generation={**SMALL, "seed": 3})
    by_portrait = replace(
        by_file, identity=None, portrait=tmp_path / "ann.png", generation={**SMALL, "seed": 3, "reference_latent": "mean"}
    )
    apart = {"portrait", "identity_file", "face_index"}  # which of the two it was made by
    same = studio.make(by_file, tmp_path / "file.mp4").record
    assert lasting(same, apart) == lasting(record, apart)
    same = studio.make(by_portrait, tmp_path / "portrait.mp4").record
    assert lasting(same) == lasting(record)
    request = request_of(record, portrait=tmp_path / "ann.png")  # what `replay` goes by
    order = studio.check(request)
    guest = studio.meet(order)
    check_same(record, order, guest)
    assert studio.film(order, guest, tmp_path / "replay.mp4").record["frames_hash"] == rows()["x"]["frames_hash"]


def test_a_sampled_reference_comes_from_the_portrait_and_an_identity_file_is_taken_as_it_is(read, run, tmp_path, studio, count):
    from lynx_video.pipeline.enrol import save_enrolment

    read(ANN)
    save_enrolment(tmp_path / "ann.safetensors", studio.enrol(tmp_path / "ann.png"))
    identity = {**ANN, "id": "file", "identity": "ann.safetensors", "portrait": None}
    wanted = read({**ANN, "id": "sampled", "reference_latent": "sample"}, identity)
    enrolled = count(Studio, "enrol")
    assert run(wanted).counts["done"] == 2
    assert not enrolled
    sampled, by_file = (read_metadata(tmp_path / "out" / "clips" / f"{name}.mp4") for name in ("sampled", "file"))
    assert (sampled["reference_latent"], sampled["portrait"]) == ("sample", "ann.png")
    assert (by_file["reference_latent"], by_file["portrait"], by_file["identity_file"]) == ("mean", None, "ann.safetensors")
    assert run(read(identity), name="alone").counts["done"] == 1, "such a batch needs no adapter"


def test_on_a_base_of_two_experts_clips_come_from_the_portrait(read, studio):
    from lynx_video.batch.run import by_identity_file

    (wanted,) = read(ANN)
    blueprint = studio.blueprint()
    assert by_identity_file(wanted, blueprint)
    assert not by_identity_file(wanted, replace(blueprint, boundary=875.0))


def test_a_kill_between_clip_and_note_costs_nothing_and_a_lost_clip_comes_again(read, run, rows, tmp_path):
    wanted = read({**ANN, "id": "lost"}, {**ANN, "id": "noted", "seed": 1, "min_similarity": 0.999})
    run(wanted)
    out = tmp_path / "out"
    before, table = contents(out), rows()
    assert table["noted"]["status"] == "missed"
    (out / "clips" / "lost.mp4").unlink()
    (out / "work" / "made" / "noted.safetensors").unlink()
    (out / "clips" / ".noted.0123456789ab.mp4").write_bytes(b"x")
    (out / "clips" / ".stfolder").write_bytes(b"somebody else's")
    summary = run(wanted)
    assert (summary.made_now, summary.counts["done"], summary.counts["missed"]) == (1, 1, 1)
    (out / "clips" / ".stfolder").unlink()  # raises if it was swept away
    after = contents(out)
    assert sorted(after) == sorted(before)
    assert after["noted.mp4"] == before["noted.mp4"]
    again = rows()
    assert again["lost"]["frames_hash"] == table["lost"]["frames_hash"]
    told = ("status", "reason", "clip", "seed", "seconds", "similarity", "frames_hash")
    assert {name: again["noted"][name] for name in told} == {name: table["noted"][name] for name in told}
    assert again["noted"]["warnings"] is None, "not known any more"


def test_a_clip_that_somebody_else_published_meanwhile_stays(read, run, rows, here_pool, tmp_path, count, monkeypatch):
    wanted = read({**ANN, "id": "early"}, {**ANN, "id": "late", "seed": 1})
    run(wanted, name="theirs")
    theirs, clips = tmp_path / "theirs" / "clips", tmp_path / "out" / "clips"
    generated, real = count(generating, "generate"), generating.generate

    def meanwhile(*given, **named):
        shutil.copy2(theirs / "late.mp4", clips)  # as a worker does that a killed run left behind
        return real(*given, **named)

    @dataclass
    class Late:
        def run(self, *given, **named):
            clips.mkdir(parents=True)
            shutil.copy2(theirs / "early.mp4", clips)
            monkeypatch.setattr(generating, "generate", meanwhile)
            here_pool.run(*given, **named)

    assert run(wanted, pool=Late()).counts["done"] == 2
    assert len(generated) == 1, "the one that was there is not made"
    assert contents(tmp_path / "out") == contents(tmp_path / "theirs")
    assert [row["warnings"] for row in rows().values()] == [None, None]


def test_failures_are_their_requests_own_and_tried_again_when_asked(read, run, rows, tmp_path, count):
    wanted = read(
        {**ANN, "id": "nobody", "portrait": "wall.png"},
        {**ANN, "id": "third", "face_index": 2},
        {**ANN, "id": "fine"},
        {**BOB, "id": "unlike", "min_similarity": 0.999},
    )
    summary = run(wanted)
    assert summary.counts == {"requests": 4, "done": 1, "missed": 1, "failed": 2, "refused": 0}
    table = rows()
    assert "No face was found" in table["nobody"]["reason"]
    assert "wall.png" in table["nobody"]["reason"]
    assert "2" in table["third"]["reason"]
    assert table["unlike"]["reason"].endswith("below the 0.999 that was asked for")
    assert (table["nobody"]["clip"], table["unlike"]["clip"]) == (None, "clips/unlike.mp4")
    enrolled = count(Studio, "enrol")
    assert run(wanted).counts == summary.counts
    assert not enrolled, "not tried again unasked"
    assert run(wanted, retry_failed=True).counts == summary.counts
    assert len(enrolled) == 2
    assert sorted(contents(tmp_path / "out")) == ["fine.mp4", "unlike.mp4"]


def test_a_person_who_failed_is_tried_again_for_new_requests_unless_it_would_be_the_same(read, run, rows, count, monkeypatch):
    wanted = read({**ANN, "id": "a"}, {**ANN, "id": "nobody", "portrait": "wall.png"})

    def stumble(*_, **__):
        raise RuntimeError("a passing fault")

    with monkeypatch.context() as patch:
        patch.setattr("lynx_video.pipeline.load.assemble", stumble)
        assert run(wanted).counts["failed"] == 2
    assert rows()["a"]["reason"] == "RuntimeError: a passing fault"
    enrolled = count(Studio, "enrol")
    more = read({**ANN, "id": "a2", "seed": 1}, {**ANN, "id": "nobody2", "seed": 1, "portrait": "wall.png"})
    assert run(more).counts["failed"] == 1
    assert [given[1].name for given, _ in enrolled] == ["ann.png"]
    assert "No face was found" in rows()["nobody2"]["reason"]


def test_what_passes_is_tried_again_when_asked(read, run, rows, monkeypatch):
    wanted = read({**ANN, "id": "a"}, {**ANN, "id": "b", "prompt": "a person smiles"})
    real = generating.generate

    def stumble(components, who, prompt, *more, **named):
        if "smiles" in prompt:
            raise MemoryError
        return real(components, who, prompt, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(generating, "generate", stumble)
        assert run(wanted).counts["failed"] == 1, "too little memory for one is no end of the others"
    assert "out of memory" in rows()["b"]["reason"]
    assert run(wanted).made_now == 0
    summary = run(wanted, retry_failed=True)
    assert (summary.made_now, summary.counts["done"]) == (1, 2)


def test_an_error_of_no_class_of_ours_is_noted_with_its_kind(read, run, rows, monkeypatch):
    def stumble(*_, **__):
        raise RuntimeError("shapes\ndiffer")

    wanted = read({**ANN, "id": "a", "best_of": 2})
    monkeypatch.setattr(best, "generate", stumble)
    run(wanted)
    assert rows()["a"]["reason"] == "RuntimeError: shapes differ"


def test_a_process_that_lost_its_device_ends_and_its_request_is_tried_elsewhere(read, run, rows, monkeypatch):
    import torch

    class Ended(BaseException):
        """What stands for the end of the process."""

    def stumble(*_, **__):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def end(_):
        raise Ended

    wanted = read({**ANN, "id": "a"})
    with monkeypatch.context() as patch:
        patch.setattr(generating, "generate", stumble)
        patch.setattr("lynx_video.batch.jobs.os._exit", end)
        with pytest.raises(Ended):
            run(wanted)
    assert not rows(), "nothing is held against it yet"
    assert run(wanted).counts["done"] == 1


def test_a_refusal_publishes_nothing_and_is_called_so(read, run, rows, tmp_path, monkeypatch):
    wanted = read({**ANN, "id": "a"}, {**ANN, "id": "b", "prompt": "a person smiles"})
    real = Studio.check

    def refuse(self, request):
        if "smiles" in request.prompt:
            raise Refused("the prompt was refused by the safety checker.")
        return real(self, request)

    monkeypatch.setattr(Studio, "check", refuse)
    assert run(wanted).counts["refused"] == 1
    assert rows()["b"]["status"] == "refused"
    assert rows()["b"]["reason"] == "the prompt was refused by the safety checker"
    assert sorted(contents(tmp_path / "out")) == ["a.mp4"]


def test_a_person_who_is_refused_is_refused_in_each_request(read, run, rows, monkeypatch):
    def refuse(*_, **__):
        raise Refused("the portrait was refused by the safety checker.")

    monkeypatch.setattr(Studio, "enrol", refuse)
    assert run(read({**ANN, "seed": "1-2"})).counts["refused"] == 2
    assert {row["reason"] for row in rows().values()} == {"the portrait was refused by the safety checker"}


def test_a_fault_of_the_model_ends_the_run_and_blames_nobody(read, run, tmp_path, monkeypatch):
    wanted = read({**ANN, "id": "a"})

    def broken(*_, **__):
        raise BadWeights("transformer.safetensors is cut off.")

    with monkeypatch.context() as patch:
        patch.setattr("lynx_video.pipeline.load.assemble", broken)
        with pytest.raises(BadWeights, match="is cut off"):
            run(wanted)
    assert (tmp_path / "out" / "results.jsonl").read_text() == ""
    assert run(wanted).counts["done"] == 1


def test_a_full_disk_ends_the_run_and_loses_nothing(read, run, tmp_path, monkeypatch):
    from lynx_video.media import video

    wanted = read({**ANN, "id": "a"}, {**ANN, "id": "b", "seed": 1})
    real, calls = video._write_mp4, []

    def full(*given):
        calls.append(given)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(video, "_write_mp4", full)
        with pytest.raises(BadOutput, match="the disk is full; make room and give the same command again"):
            run(wanted)
    assert len(contents(tmp_path / "out")) == 1
    assert run(wanted).made_now == 1


def test_an_id_is_never_made_anew_for_another_request(read, run, rows, tmp_path):
    run(read({**ANN, "id": "x"}, {**ANN, "id": "bad", "portrait": "wall.png"}))
    before = contents(tmp_path / "out")
    for change in ({"prompt": "a person smiles"}, {"seed": 1}, {"ext": "webp"}):
        with pytest.raises(BadOutput, match="the id 'x' has a clip in this folder that was made for another request"):
            run(read({**ANN, "id": "x", **change}))
    assert contents(tmp_path / "out") == before
    mended = read({**ANN, "id": "bad"}, {**ANN, "id": "new", "seed": 5})
    assert run(mended).counts["done"] == 2, "what failed may be mended under its name"
    assert list(rows()) == ["bad", "new", "x"], "what is not asked for any more stays in the table"
    assert {name: one for name, one in contents(tmp_path / "out").items() if name in before} == before


def test_somebody_elses_file_is_not_taken_for_a_clip(read, run, tmp_path):
    wanted = read({**ANN, "id": "x"})
    run(wanted)
    clip, note = tmp_path / "out" / "clips" / "x.mp4", tmp_path / "out" / "work" / "made" / "x.safetensors"
    note.unlink()
    other = read({**ANN, "id": "x", "prompt": "a person smiles"})
    with pytest.raises(BadOutput, match=r"x\.mp4 was not made for the request 'x'"):
        run(other)
    clip.write_bytes(b"mine")
    with pytest.raises(BadOutput, match="in the way of a clip"):
        run(wanted)
    assert clip.read_bytes() == b"mine"


def test_a_private_request_leaves_no_words_behind_in_clip_and_table(read, run, rows, tmp_path):
    run(read({**ANN, "id": "x", "private": True, "prompt": "a person nods, secretly"}))
    text = (tmp_path / "out" / "clips" / "x.mp4").read_bytes()
    assert b"secretly" not in text
    assert b"ann.png" not in text
    row = rows()["x"]
    assert (row["prompt"], row["portrait"], row["status"]) == (None, None, "done")
    for name in ("results.jsonl", "results.csv"):
        assert "secretly" not in (tmp_path / "out" / name).read_text()


def test_a_private_clip_is_not_taken_for_one_with_other_words(read, run, rows, tmp_path):
    run(read({**ANN, "id": "x", "private": True, "prompt": "a person nods"}))
    (tmp_path / "out" / "work" / "made" / "x.safetensors").unlink()  # its worker died before it noted the clip
    with pytest.raises(BadOutput, match="was not made for the request 'x'"):
        run(read({**ANN, "id": "x", "private": True, "prompt": "a person smiles"}))
    run(read({**ANN, "id": "x", "private": True, "prompt": "a person nods"}))
    assert rows()["x"]["status"] == "done"


def test_the_name_of_a_private_portrait_without_a_face_is_not_said(read, run, rows, tmp_path):
    from lynx_video.media.image import write_picture

    write_picture(tmp_path / "secret-ada.png", np.full((64, 64, 3), 200, np.uint8))
    run(read({**ANN, "id": "x", "portrait": "secret-ada.png", "private": True}))
    assert rows()["x"]["status"] == "failed"
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and "people" not in file.parts:
            assert b"secret-ada" not in file.read_bytes(), file


def test_a_damaged_identity_file_is_made_again(read, run, rows, tmp_path):
    run(read({**ANN, "id": "a"}))
    (file,) = (tmp_path / "out" / "work" / "identities").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    run(read({**ANN, "id": "a"}, {**ANN, "id": "b", "seed": 2}))
    assert rows()["b"]["status"] == "done"
    assert len(file.read_bytes()) == len(whole)


def test_a_portrait_that_changes_while_the_batch_runs_is_seen(read, run, rows, here_pool, tmp_path):
    wanted = read({**ANN, "id": "a"}, {**BOB, "id": "b"})

    @dataclass
    class Late:
        def run(self, *given, **named):
            (tmp_path / "ann.png").write_bytes((tmp_path / "bob.png").read_bytes())
            here_pool.run(*given, **named)

    run(wanted, pool=Late())
    assert rows()["a"]["status"] == "failed"
    assert "ann.png was changed while the batch ran" in rows()["a"]["reason"]
    assert rows()["b"]["status"] == "done"


def test_the_table_is_whole_while_the_batch_runs(read, run, rows, monkeypatch):
    monkeypatch.setattr(results, "SECONDS", 0.0)
    monkeypatch.setattr(results, "SHARE", 0)
    seen, stages = [], []

    def look(stage, done, total):
        stages.append((stage, done, total))
        if stage == "generating" and done:
            seen.append(len(rows()))

    run(read({**ANN, "seed": "1-3"}), progress=look)
    assert seen == [0, 1, 2], "the table of a moment ago"
    assert [one for one in stages if one[1]] == [("enrolling", 1, 1), *(("generating", done, 3) for done in (1, 2, 3))]
    assert len(rows()) == 3


def test_a_worker_that_a_killed_run_left_behind_writes_nothing_any_more(read, run, here_pool, tmp_path):
    wanted = read({**ANN, "seed": "1-3"})

    def taken_over(stage, done, _):
        if (stage, done) == ("generating", 1):
            (tmp_path / "out" / "work" / "run").write_text("a later one")

    with pytest.raises(Overtaken):
        run(wanted, pool=here_pool, progress=taken_over)
    assert len(contents(tmp_path / "out")) == 1
    assert run(wanted).counts["done"] == 3


def test_two_batches_do_not_work_in_one_folder(read, run, tmp_path):
    from lynx_video.work import alone_in

    with alone_in(tmp_path / "out" / "work"), pytest.raises(BadOutput, match="another run works here"):
        run(read(ANN))


def test_another_model_needs_another_folder(read, run, tmp_path):
    wanted = read({**ANN, "id": "x"})
    run(wanted)
    before = contents(tmp_path / "out")
    with pytest.raises(BadOutput, match='was begun with model "nano", now it is "nano-lite"'):
        run(wanted, setup=Setup(model=ModelFlags(model="nano-lite", device="cpu")))
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(read, run, tmp_path):
    wanted = read(ANN)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("x")
    with pytest.raises(BadOutput, match=r"thesis\.doc"):
        run(wanted)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.doc"]
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below"):
        with pytest.raises(BadOutput):
            run(wanted, name=name)


def test_rows_that_cannot_be_read_are_left_out(tmp_path):
    good = {"id": "a", "status": "done"}
    (tmp_path / "results.jsonl").write_text("\n".join(["{", "[]", '{"id": 3}', json.dumps(good), ""]))
    assert results.read_rows(tmp_path) == [good]
    assert results.read_rows(tmp_path / "absent") == []


def test_an_interruption_leaves_a_table_of_what_is_done(read, run, rows):
    def stop(stage, done, _):
        if (stage, done) == ("generating", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(read({**ANN, "seed": "1-2"}), progress=stop)
    assert len(rows()) == 1


def test_errors_of_a_run_are_lynx_errors():
    assert issubclass(Overtaken, LynxError)
