"""The few-step LoRA: the recipe runs and goes on where it was, and what ships draws in four passes what the base draws in forty."""

import json
from dataclasses import replace

import pytest
import torch

from lynx_video.adapters.weights import BaseShape
from lynx_video.nano import model
from lynx_video.nano.recipe import export, few_step
from lynx_video.runtime.lora import check_lora, load_loras_

SHAPE = BaseShape(width=model.HEADS * model.HEAD_WIDTH, heads=model.HEADS, blocks=model.BLOCKS)
SHIPPED = export.WEIGHTS / "few_step"
PROMPTS = [
    "a person nods wearing a red shirt in front of a white wall",
    "a woman smiles in a blue shirt in front of an orange wall",
    "someone moves to the left wearing a black shirt in front of a green wall",
    "a man shakes his head in a white shirt in front of a purple wall",
]


@pytest.fixture
def quick(monkeypatch):
    """The recipe at a size of seconds, uncompiled."""
    prepare = few_step.prepare_
    for name, value in (("PATHS", 6), ("TOGETHER", 2), ("HELD", 2), ("TEACHER_STEPS", 4), ("BATCH", 2)):
        monkeypatch.setattr(few_step, name, value)
    monkeypatch.setattr(few_step, "DISTIL", replace(few_step.DISTIL, steps=2, warmup=1))
    monkeypatch.setattr(few_step, "prepare_", lambda transformer, **_: prepare(transformer, compiled=False))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_stage_runs_again_with_the_same_result(tmp_path, capsys):
    few_step.train(tmp_path)
    first = (tmp_path / "few_step" / "lora.safetensors").read_bytes()
    assert len(list((tmp_path / "few_step").glob("paths-*.pt"))) == 3
    for lost in (tmp_path / "few_step" / "paths-00002.pt", tmp_path / "few_step.state.pt"):
        lost.unlink()
    capsys.readouterr()
    few_step.train(tmp_path)
    assert capsys.readouterr().out.count("paths ") == 1, "only what was lost is made again"
    assert (tmp_path / "few_step" / "lora.safetensors").read_bytes() == first


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_it_writes_is_what_was_trained(tmp_path):
    """The file, loaded onto the plain base, gives the student's own predictions."""
    few_step.train(tmp_path)
    student = few_step.Student(export.WEIGHTS / "base")
    file = check_lora(str(tmp_path / "few_step"), SHAPE)
    assert len(file.layers) == 60
    torch.manual_seed(1)
    for name in student.names():  # as after training, where nothing is zero any more
        student.transformer.get_submodule(name).up.data.normal_(0, 0.05)
    student.save(tmp_path / "few_step")
    plain = few_step.Student(export.WEIGHTS / "base").transformer
    for name in student.names():
        plain.set_submodule(name, plain.get_submodule(name).base)
    loras = load_loras_(plain, [check_lora(str(tmp_path / "few_step"), SHAPE)])
    noise, text = torch.randn(1, 12, 5, 16, 16), student.encode(PROMPTS[:1])
    with torch.no_grad():
        off = student.velocity(noise, torch.tensor([600.0]), text)
        student.switch.on = True
        on = student.velocity(noise, torch.tensor([600.0]), text)
        with loras.on():
            loaded = plain(noise.bfloat16(), torch.tensor([600.0]), text, return_dict=False)[0].float()
    assert (on - off).abs().max() > 0.1
    assert torch.equal(loaded, on)


def test_the_levels_are_those_of_the_sampler():
    """Student and product take the same four steps: Euler on the reference's grid with nano's shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from lynx_video.flow import reference_sigmas

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=model.FLOW_SHIFT)
    scheduler.set_timesteps(sigmas=reference_sigmas(few_step.STEPS))
    torch.testing.assert_close(few_step.levels(), scheduler.sigmas, atol=1e-6, rtol=0)


def test_prompts_are_of_a_seed_and_half_name_no_trait():
    words = few_step.prompts(400)
    assert words == few_step.prompts(400)
    assert 0.4 < sum("skin" in one or "eyes" in one or "hair" in one or "face" in one for one in words) / 400 < 0.6


def test_what_ships_fits():
    file = check_lora(str(SHIPPED), SHAPE)
    assert file.path.stat().st_size <= 1.2e6
    about = json.loads((SHIPPED / "lora.json").read_text())
    assert (about["steps"], about["scheduler"], about["guidance_scale"]) == (4, "euler", 1.0)
    base = export.WEIGHTS / "base" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert about["transformer_sha256"] == few_step.digest(base), "it was made for the base that ships"


@pytest.fixture(scope="module")
def teacher_and_student():
    """Latents of the base in twenty steps with guidance, and in four without, the shipped LoRA off and on; one thread, float32."""
    from diffusers import WanTransformer3DModel

    student = few_step.Student(export.WEIGHTS / "base", compiled=False)
    plain = WanTransformer3DModel.from_pretrained(export.WEIGHTS / "base" / "transformer", torch_dtype=torch.float32)
    student.transformer = plain.requires_grad_(False)
    noise = torch.randn(len(PROMPTS), 12, 5, 16, 16, generator=torch.Generator().manual_seed(99))
    text, nothing = student.encode(PROMPTS), student.encode([""])
    wanted = student.teach(noise, text, nothing)[:, -1].float()
    loras = load_loras_(plain, [check_lora(str(SHIPPED), SHAPE)])
    off = student.draw(noise, text)
    with loras.on():
        on = student.draw(noise, text)
    return wanted, off, on


def test_four_steps_with_it_come_near_to_twenty(teacher_and_student):
    wanted, off, on = teacher_and_student
    error_off, error_on = ((one - wanted).square().mean((1, 2, 3, 4)) for one in (off, on))
    assert (error_on < error_off).all(), (error_off, error_on)
    assert error_on.mean() < 0.45 * error_off.mean()  # 0.26 of it
