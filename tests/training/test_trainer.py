"""Runs: the base stays as it is, a stopped run goes on bit for bit, processes change nothing, and what is no number is skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lynx_video import load
from lynx_video.errors import BadData, BadOutput, BadRequest, BadWeights, Cancelled, Diverged
from lynx_video.training import checkpoint, objective, trainer
from lynx_video.training.journal import read_log
from lynx_video.training.launch import launch, prepare

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def train(golden_base, noise_set, tmp_path):
    """train(config) runs it in a folder of its own; the folder."""

    def run(config, name="run", **settings):
        launch(prepare(golden_base, noise_set, config, **settings), tmp_path / name, quiet=True)
        return tmp_path / name

    return run


def losses(run):
    return [line["loss"] for line in read_log(run) if line["kind"] == "step"]


def weights(run):
    from safetensors.torch import load_file

    files = sorted((run / "adapter").glob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_a_run_learns_and_leaves_the_base_alone(train, small, monkeypatch):
    before = {}

    def keep(job, among):
        components = original(job, among)
        before.update({name: p.clone() for name, p in components.transformer.named_parameters()})
        before["model"] = components
        before["start"] = {name: p.detach().clone() for name, p in components.adapter.named_parameters()}
        return components

    from lynx_video.training import launch as module

    original = module._components
    monkeypatch.setattr(module, "_components", keep)
    run = train(small(steps=40, learning_rate=3e-3))
    found = losses(run)
    assert sum(found[-8:]) < 0.97 * sum(found[:8])
    components, start = before.pop("model"), before.pop("start")
    for name, parameter in components.transformer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    for name, parameter in components.adapter.named_parameters():
        assert not torch.equal(parameter, start[name]), f"{name} was not trained"


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_the_export_is_an_adapter(train, small, golden_base, arm):
    run = train(small(arm=arm, steps=2))
    components = load(base=golden_base.base_name, adapter=run / "adapter", device="cpu")
    assert components.arm == arm
    facts = json.loads((run / "adapter" / "lynx.json").read_text())
    assert facts["base_hash"] == golden_base.base_hash
    assert facts["training"]["arm"] == arm
    assert len(facts["data_card_hash"]) == 64
    official = {file.name for file in (GOLDEN / f"lynx_{arm}").glob("*.safetensors")}
    assert {file.name for file in (run / "adapter").glob("*.safetensors")} == official


def test_official_sizes_give_the_official_manifest():
    """Names and shapes of a new adapter at 14B are those of the published files."""
    from lynx_video.adapters.attach import Adapter
    from lynx_video.adapters.weights import BaseShape, official_parameters
    from lynx_video.training.config import TrainConfig
    from lynx_video.training.initialise import adapter_config

    manifest = json.loads((GOLDEN / "manifest_14b.json").read_text())
    for arm in ("full", "lite"):
        with torch.device("meta"):
            adapter = Adapter(adapter_config(BaseShape(width=5120, heads=40, blocks=40), TrainConfig(arm=arm)))
        ours = {name: list(p.shape) for name, p in official_parameters(adapter).items()}
        theirs = {f"{file}.{key}": shape for file, keys in manifest[f"lynx_{arm}"].items() for key, shape in keys.items()}
        assert ours == theirs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"matrix_rate": 1e-2, "timesteps": "sample", "alone": 0.5, "drop_identity": 0.5}, marks=pytest.mark.slow),
    ],
    ids=["as it is", "Muon"],
)
def test_a_run_killed_goes_on_bit_for_bit(small, golden_base, noise_set, tmp_path, changes):
    """SIGKILL in mid-run, in another process; the losses and the adapter are those of the run that was left alone."""
    config = small(steps=12, checkpoint_every=3, **changes)
    program = f"""
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from lynx_video.pipeline.load import survey
from lynx_video.training.config import TrainConfig
from lynx_video.training.launch import launch, prepare
config = TrainConfig(**json.loads({json.dumps(json.dumps(asdict(config)))}))
blueprint = survey(base={str(golden_base.base_name)!r}, with_adapter=False, device="cpu", dtype="fp32")
launch(prepare(blueprint, Path({str(noise_set)!r}), config), Path(sys.argv[1]), quiet=True)
"""
    command = [sys.executable, "-c", program]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, str(undisturbed)], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (killed / "log.jsonl").exists() and (killed / "log.jsonl").read_text().count('"step"') >= 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(losses(killed)) < 12, "it was killed in mid-run"
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert losses(killed) == losses(undisturbed)
    ours, theirs = weights(killed), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def until(condition, seconds=60.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_two_processes_learn_the_same(small, golden_base, noise_set, tmp_path, train, precision, tolerance):
    """FSDP2 over two gloo processes against one: losses to 1e-5 in float32, exported weights to one step of bfloat16."""
    config = small(recompute=True, precision=precision)
    alone = train(config, "alone")
    worker = Path(__file__).parent / "worker.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        str(worker),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = json.dumps({"base": golden_base.base_name, "data": str(noise_set), "config": asdict(config)})
    subprocess.run([*command, str(tmp_path / "pair"), job], check=True, capture_output=True, env=environment, timeout=240)
    for one, two in zip(losses(alone), losses(tmp_path / "pair"), strict=True):
        assert abs(one - two) <= tolerance * one
    ours, theirs = weights(tmp_path / "pair"), weights(alone)
    for name, tensor in theirs.items() if precision == "fp32" else ():
        torch.testing.assert_close(ours[name].float(), tensor.float(), atol=1e-3, rtol=1e-2)
    validations = [
        [line["facts"] for line in read_log(run) if line["kind"] == "validation"] for run in (alone, tmp_path / "pair")
    ]
    assert len(validations[0]) == 2
    for one, two in zip(*validations, strict=True):
        assert one == pytest.approx(two, rel=10 * tolerance)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_sigterm_ends_with_a_checkpoint(train, small, tmp_path, monkeypatch):
    original = trainer.Trainer.train_step

    def step_then_signal(self, feed):
        result = original(self, feed)
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(trainer.Trainer, "train_step", step_then_signal)
    with pytest.raises(Cancelled, match="after step 3"):
        train(small(checkpoint_every=100))
    assert checkpoint.latest(tmp_path / "run").name == "step-0000003"
    monkeypatch.undo()
    assert losses(train(small(checkpoint_every=100))) == losses(train(small(checkpoint_every=100), "again"))


def poison(monkeypatch, when):
    """Make the loss of the named steps no number."""
    original = objective.step
    calls = []

    def step(model, samples, timesteps, device, dtype):
        result = original(model, samples, timesteps, device, dtype)
        if torch.is_grad_enabled():
            calls.append(1)
            if (len(calls) - 1) // 2 in when:  # two packs a step
                return replace(result, losses=result.losses * float("nan"))
        return result

    monkeypatch.setattr(trainer, "step", step)


def test_a_loss_that_is_no_number_is_skipped(train, small, monkeypatch):
    poison(monkeypatch, {2})
    run = train(small())
    steps = [line for line in read_log(run) if line["kind"] == "step"]
    assert [line["loss"] is None for line in steps] == [False, False, True, False, False, False]
    assert [line["skipped"] for line in steps] == [0, 0, 1, 1, 1, 1]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_too_many_in_a_row_end_the_run(train, small, monkeypatch, tmp_path):
    poison(monkeypatch, {2, 3, 4, 5})
    with pytest.raises(Diverged, match=r"3 times in a row.*learning-rate"):
        train(small(max_skipped=3))
    assert len(losses(tmp_path / "run")) < 6


def test_a_checkpoint_of_another_config_is_refused(train, small):
    train(small(steps=2))
    for changes, words in (
        ({"learning_rate": 1e-4}, "learning_rate 0.001"),
        ({"steps": 4}, "steps 2"),
        ({"seed": 3}, "seed 0"),
    ):
        with pytest.raises(BadRequest, match=words):
            train(small(**({"steps": 2} | changes)))
    train(small(steps=2, checkpoint_every=1, recompute=True))


def test_a_damaged_checkpoint_is_named(train, small):
    run = train(small(steps=2))
    for file in (run / "checkpoints" / "step-0000002").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadWeights, match="step-0000002"):
        train(small(steps=2))


def test_a_full_disk_leaves_no_half_checkpoint(train, small, tmp_path, monkeypatch):
    from torch.distributed.checkpoint import state_dict_saver

    original = state_dict_saver.save

    def save(*arguments, checkpoint_id, **settings):
        if "0000004" in str(checkpoint_id):
            (checkpoint_id / "half").write_bytes(b"x")
            raise OSError(28, "No space left on device")
        return original(*arguments, checkpoint_id=checkpoint_id, **settings)

    monkeypatch.setattr(state_dict_saver, "save", save)
    with pytest.raises(BadOutput, match="No space left"):
        train(small())
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]


def test_checkpoints_are_thinned(train, small):
    run = train(small(keep=2))
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == ["step-0000004", "step-0000006"]


def test_a_stage_starts_from_the_one_before(train, small, golden_base, noise_set):
    first = train(small(stage="image", steps=3, average=0.0), "image")
    second = train(small(steps=1, learning_rate=1e-12, average=0.0, weight_decay=0.0), "video", start=first / "adapter")
    before, after = weights(first), weights(second)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(BadRequest, match="full adapter, this run trains lite"):
        prepare(golden_base, noise_set, small(arm="lite"), start=first / "adapter")


def test_another_base_is_refused(golden_base, noise_set, small):
    with pytest.raises(BadData, match="built with another base"):
        prepare(replace(golden_base, base_hash="0" * 64), noise_set, small())


def test_an_unreadable_example_is_named_and_left_out(golden_base, noise_set, small, tmp_path):
    import shutil

    folder = tmp_path / "set"
    shutil.copytree(noise_set, folder)
    job = prepare(golden_base, folder, small(steps=8))
    bad = next(entry for entry in job.entries if entry.frames > 1)
    file = folder / "shards" / bad.shard
    data = bytearray(file.read_bytes())
    data[bad.offset : bad.offset + 8] = b"\xff" * 8
    file.write_bytes(data)
    launch(job, tmp_path / "run", quiet=True)
    notes = [line["text"] for line in read_log(tmp_path / "run") if line["kind"] == "note"]
    assert any(bad.key in note for note in notes)
    assert len(losses(tmp_path / "run")) == 8
