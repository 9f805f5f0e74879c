"""Every stage of `make nano` runs, leaves what the next one reads, and what comes out loads. It learns nothing in two steps."""

import functools
from dataclasses import replace

import pytest
import torch

from lynx_video import GenerateConfig, generate, load
from lynx_video.nano.people import portrait
from lynx_video.nano.recipe import base, data, detector, export, face, speed, vae
from lynx_video.nano.recipe.drawn import Drawn, conditions
from lynx_video.pipeline.identify import identify
from lynx_video.pipeline.load import survey
from lynx_video.presets import nano_video
from lynx_video.training.launch import launch, prepare
from lynx_video.training.shards import Conditions, write_shards

pytestmark = pytest.mark.slow


def test_the_whole_recipe(tmp_path, monkeypatch):
    for module, names in (
        (vae, ("STILLS", "CLIPS")),
        (face, ("ENCODER", "JUDGE")),
        (detector, ("DETECTOR", "DETECTOR_MOUTH")),
        (base, ("STILLS", "CLIPS")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, replace(getattr(module, name), steps=2))
    for module, name, count in (
        (vae, "PEOPLE", 64),
        (vae, "FILMED", 32),
        (face, "PEOPLE", 64),
        (detector, "SCENES", 240),  # 200 are held out
        (detector, "FILMED", 16),
        (data, "PEOPLE", 24),
        (data, "FILMED", 16),
        (base, "HELD", 8),
        (base, "STILL_BATCH", 4),
        (base, "CLIP_BATCH", 4),
    ):
        monkeypatch.setattr(module, name, count)
    monkeypatch.setattr(export, "WEIGHTS", tmp_path / "weights")
    plain = functools.partial(speed.prepare_, compiled=False)
    monkeypatch.setattr(base, "prepare_", plain)
    run = tmp_path / "run"
    run.mkdir()
    for stage in (vae, face, data, base, export):
        stage.train(run)
    weights = tmp_path / "weights"
    faces = load("nano").faces
    drawn = Drawn(weights / "base", faces.encoder(), 3, stills_share=0.0)
    examples = (*drawn.examples(0, 32, "clip"), *drawn.examples(32, 32, "still"))
    for arm in ("full", "lite"):
        blueprint = survey(base=weights / "base", with_adapter=False, device="cpu", faces=faces, arm=arm)
        card = {"model": {"base_hash": blueprint.base_hash}}
        write_shards(run / f"set-{arm}", examples, Conditions(**conditions(weights / "base")), card)
        config = replace(nano_video(), arm=arm, steps=2, tokens=1280, compile=False, held_out=4)
        launch(prepare(blueprint, run / f"set-{arm}", config), run / f"{arm}-video", quiet=True)
    export.train(run)
    for arm in ("full", "lite"):
        components = load(base=weights / "base", adapter=weights / f"lynx_{arm}", faces=faces)
        assert components.arm == arm
        sitter = identify(components.faces, portrait(1), reference_size=components.defaults.reference_size)
        clip = generate(components, sitter.identity, "a person nods", GenerateConfig(num_inference_steps=2))
        assert clip.frames.shape == (9, 64, 64, 3)


def test_a_stage_goes_on_where_it_was(tmp_path):
    """Interrupted after some steps, training ends with the very weights of a run that was not."""
    from lynx_video.nano.recipe.loop import Schedule, fit

    def run(folder, parts):
        folder.mkdir()
        torch.manual_seed(0)
        net = torch.nn.Linear(8, 8)
        schedule = Schedule(steps=30, learning_rate=1e-2, matrix_rate=1e-2, warmup=3)
        for stop in parts:
            stopping = {"at": stop}

            def loss(step, stopping=stopping, net=net):
                if step == stopping["at"]:
                    raise KeyboardInterrupt
                return net(torch.randn(4, 8)).square().mean()

            try:
                fit("net", folder, net, loss, schedule, every=0.0)
            except KeyboardInterrupt:
                torch.manual_seed(99)
                net = torch.nn.Linear(8, 8)
        return net.weight.detach()

    assert torch.equal(run(tmp_path / "whole", [None]), run(tmp_path / "parts", [7, 19, None]))
