"""Clips longer than the model was trained for: how they are divided and blended, and that all else works as in a short one."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lynx_video import GenerateConfig
from lynx_video.adapters.memory import text_memory
from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest, LynxWarning
from lynx_video.pipeline.calibration import calibrate, made_for, save_calibration
from lynx_video.pipeline.denoise import denoise, initial_noise
from lynx_video.pipeline.forecast import forecast
from lynx_video.pipeline.generate import generate, plan
from lynx_video.pipeline.guidance import passes, tables
from lynx_video.pipeline.load import survey
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps
from lynx_video.pipeline.windows import Windows, blend, default_overlap, divide
from lynx_video.runtime.cache import cache_
from lynx_video.runtime.device import Rates

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPT = "A person waves."
SIZES = [
    (5, 5, 2),
    (6, 5, 1),
    (9, 5, 2),
    (17, 5, 3),
    (17, 5, 4),
    (41, 21, 5),
    (84, 21, 20),
    (100, 31, 7),
    (3, 2, 1),
    (12, 4, 0),
]
REFERENCE_FORWARDS = 2
RATES = Rates(matmul=1e12, attention=5e11, convolution=2e11, traffic=1e11, link=1e10, start=0.0)


@pytest.fixture
def own(load_golden):
    """Golden components of its own, to be changed."""
    return load_golden("full")


@pytest.fixture
def long(tiny):
    """long(**changes) is a config of 4 latent frames, made of 3 windows of 2."""
    return lambda **changes: tiny(**({"num_frames": 13, "window_frames": 5, "window_overlap": 4} | changes))


def made(components, who, config):
    """A long clip, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LynxWarning)
        return generate(components, who, PROMPT, config)


def parts(windows, whole):
    """What windows that all agree on `whole` predict."""
    return lambda number, _: whole[:, :, windows.starts[number] : windows.starts[number] + windows.length]


@pytest.mark.parametrize(("total", "length", "overlap"), SIZES)
def test_windows_cover_the_clip(total, length, overlap):
    windows = divide(total, length, overlap)
    assert windows.starts[0] == 0
    assert windows.total == windows.starts[-1] + length == total
    assert all(0 < after - before <= length - overlap for before, after in pairwise(windows.starts))
    assert windows.overlap >= overlap or windows.count == 1
    assert length + (windows.count - 2) * (length - overlap) < total or windows.count == 1, "one less would not do"
    sums = [0.0] * total
    for start, weights in zip(windows.starts, windows.weights, strict=True):
        assert len(weights) == length
        assert all(0 <= weight <= 1 for weight in weights)
        for i, weight in enumerate(weights, start):
            sums[i] += weight
    assert sums == pytest.approx([1.0] * total)


def test_weights_fade():
    windows = divide(8, 5, 2)
    assert windows.starts == (0, 3)
    assert windows.weights[0] == pytest.approx((1, 1, 1, 2 / 3, 1 / 3))
    assert windows.weights[1] == pytest.approx((1 / 3, 2 / 3, 1, 1, 1))
    assert divide(10, 5, 0).weights == ((1.0,) * 5,) * 2
    assert [default_overlap(length) for length in (2, 3, 5, 21, 31)] == [1, 2, 2, 5, 7]


@pytest.mark.parametrize(("total", "length", "overlap"), SIZES)
def test_windows_that_agree_say_just_that(total, length, overlap):
    windows = divide(total, length, overlap)
    rng = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 3, total, 2, 2, generator=rng)
    shares = windows.shares("cpu")
    assert torch.equal(blend(windows, shares, torch.zeros_like(whole), parts(windows, whole)), whole)


@pytest.mark.parametrize(("total", "length", "overlap"), SIZES)
def test_a_blend_is_the_weighted_sum(total, length, overlap):
    windows = divide(total, length, overlap)
    said = torch.randn(windows.count, 1, 3, length, 2, 2, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 3, total, 2, 2)
    given = []
    found = blend(windows, windows.shares("cpu"), latents, lambda number, part: given.append(part) or said[number])
    wanted = torch.zeros_like(latents)
    for one, start, weights in zip(said, windows.starts, windows.weights, strict=True):
        wanted[:, :, start : start + length] += one * torch.tensor(weights).view(-1, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert all(torch.equal(part, latents[:, :, s : s + length]) for part, s in zip(given, windows.starts, strict=True))


def test_a_window_touches_its_own_frames_only():
    windows = divide(17, 5, 2)
    said = torch.randn(windows.count, 1, 3, 5, 2, 2)
    latents, shares = torch.zeros(1, 3, 17, 2, 2), windows.shares("cpu")
    before = blend(windows, shares, latents, lambda number, _: said[number])
    for changed, start in enumerate(windows.starts):
        other = said.clone()
        other[changed] += 1
        after = blend(windows, shares, latents, lambda number, _, other=other: other[number])
        touched = [i for i in range(17) if not torch.equal(after[:, :, i], before[:, :, i])]
        assert touched == list(range(start, start + 5))


def loop(components, golden, windows, latents, *, cache=None, computed=None, mode="sequential"):
    """Four steps of two passes of the golden model, from these latents."""
    data = golden("full_three_pass")
    texts = {
        name: text_memory(components.transformer, data[key])
        for name, key in (("prompt", "prompt_embeds"), ("negative", "negative_prompt_embeds"))
    }
    faces = {"person": data["face_embedding"], "nobody": torch.zeros(512)}
    memories = {who: components.adapter.remember(face, None, None) for who, face in faces.items()}
    scheduler = make_scheduler(components.scheduler, GenerateConfig())
    timesteps = set_timesteps(scheduler, 4, "cpu")
    expert = Expert(adapter=components.adapter, texts=texts, memories=memories, cache=cache)
    table = tables(passes(5.0, None), 4, 1.0)
    return denoise([expert], scheduler, latents, timesteps, table, Conditions(mode=mode), windows=windows, computed=computed)


def test_one_window_is_the_plain_path(full, golden):
    noise = initial_noise((1, 16, 3, 8, 8), 1)
    assert torch.equal(loop(full, golden, divide(3, 3, 1), noise), loop(full, golden, None, noise))


@pytest.mark.parametrize("mode", ["sequential", "batched"])
@pytest.mark.parametrize("cached", [False, True])
def test_windows_side_by_side_are_clips_of_their_own(cached, mode, own, golden):
    """Nothing passes from one to the other: no step cache either."""
    cache = cache_(own.transformer) if cached else None
    computed = [True, False, False, True] if cached else None
    noise, found = initial_noise((1, 16, 4, 8, 8), 1), []
    for half in noise.split(2, dim=2):
        found.append(loop(own, golden, None, half, cache=cache, computed=computed, mode=mode))
        if cache is not None:
            cache.clear()
    windows = divide(4, 2, 0)
    together = loop(own, golden, windows, noise, cache=cache, computed=computed, mode=mode)
    torch.testing.assert_close(together, torch.cat(found, dim=2), rtol=0, atol=1e-5)
    if cache is not None:
        assert len(cache.added) == (2 if mode == "batched" else 4)
        plain = loop(own, golden, windows, noise, mode=mode)
        assert not torch.allclose(together, plain, rtol=0, atol=1e-3)


def test_what_is_planned(full, lite, tiny):
    assert plan(full, GenerateConfig()).windows is None
    assert plan(full, GenerateConfig(num_frames=77, window_overlap=8)).windows is None
    longer = plan(full, GenerateConfig(num_frames=161))
    assert longer.latent_shape == (1, 16, 41, 60, 104)
    assert (longer.windows.length, longer.windows.count, longer.windows.overlap) == (21, 3, 11)
    assert longer.tokens((1, 2, 2)) == plan(full, GenerateConfig()).tokens((1, 2, 2))
    assert plan(lite, GenerateConfig(num_frames=121)).windows is None
    assert plan(lite, GenerateConfig(num_frames=125)).windows.length == 31
    assert plan(full, GenerateConfig(num_frames=161, window_frames=161)).windows is None
    assert plan(full, tiny(num_frames=9, window_frames=5)).windows == Windows(
        length=2, starts=(0, 1), weights=((1.0, 0.5), (0.5, 1.0))
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames": 160}, "num_frames must be 4k"),
        ({"window_frames": 80}, "window_frames must be 4k \\+ 1, got 80; the nearest good values are 77 or 81"),
        ({"num_frames": 161, "window_overlap": 21}, "window_overlap must be a multiple of 4, got 21; .* 20 or 24"),
        ({"num_frames": 161, "window_overlap": 84}, "can't overlap by 84: window_overlap is 4 to 80"),
        ({"num_frames": 161, "window_frames": 1}, "window_frames must be 5 or more"),
        ({"window_overlap": 0}, "window_overlap must be a whole number"),
        ({"window_frames": 5.0}, "window_frames must be a whole number"),
    ],
)
def test_windows_that_cannot_be(settings, words, full):
    with pytest.raises(BadRequest, match=words):
        plan(full, GenerateConfig(**settings))


def test_a_long_clip_says_so(full, sitter, long):
    with pytest.warns(LynxWarning, match="made of 3 windows of 5 frames that overlap by 4 or more: as asked"):
        clip = generate(full, sitter(), PROMPT, long())
    assert clip.frames.shape == (13, 64, 64, 3)
    assert torch.equal(clip.initial_latents, initial_noise((1, 16, 4, 8, 8), 42))
    assert clip.settings["windows"] == {"number": 3, "frames": 5, "overlap": 4}
    assert (clip.settings["window_frames"], clip.settings["window_overlap"]) == (5, 4)
    trained = replace(full, defaults=replace(full.defaults, num_frames=5))
    with pytest.warns(LynxWarning, match="its 13 frames are more than the 5 the model was trained for"):
        asked = generate(trained, sitter(), PROMPT, long(window_frames=None, window_overlap=None))
    assert torch.equal(asked.latents, clip.latents)
    assert asked.settings["window_frames"] == 5
    with pytest.warns(LynxWarning, match="made as one, and are more than the 5 the model was trained for"):
        one = generate(trained, sitter(), PROMPT, long(window_frames=13))
    assert one.settings["windows"] is None
    assert not torch.allclose(one.latents, clip.latents, rtol=0, atol=1e-2)


def test_a_clip_of_the_trained_length_is_as_it_was(full, sitter, tiny):
    plain = generate(full, sitter(), PROMPT, tiny())
    assert plain.settings["windows"] is None
    shorter = replace(full, defaults=replace(full.defaults, num_frames=5))
    assert torch.equal(generate(shorter, sitter(), PROMPT, tiny(window_overlap=4)).latents, plain.latents)


def test_settings_make_the_same_windows_again(full, sitter, long):
    """What is recorded is what was done, not what was asked."""
    clip = made(full, sitter(), long(num_frames=21, window_frames=13, window_overlap=4, num_inference_steps=1))
    assert clip.settings["windows"] == {"number": 2, "frames": 13, "overlap": 8}
    settings = {name: clip.settings[name] for name in ("num_frames", "window_frames", "window_overlap")}
    assert plan(full, long(**settings)).windows == plan(full, long(num_frames=21, window_frames=13)).windows


def test_forwards_of_windows(own, sitter, long):
    """Each window has the passes of each step; the person is remembered once."""
    shapes = []
    own.transformer.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:3])))
    made(own, sitter(), long(num_inference_steps=4, guidance_stop=0.5))
    assert shapes[:REFERENCE_FORWARDS] == [(1, 16, 1)] * REFERENCE_FORWARDS
    assert shapes[REFERENCE_FORWARDS:] == [(1, 16, 2)] * 3 * (3 + 3 + 1 + 1)
    own.runtime = RuntimeConfig(passes="batched")
    shapes.clear()
    made(own, sitter(), long(num_inference_steps=1))
    assert shapes[REFERENCE_FORWARDS:] == [(3, 16, 2)] * 3


@pytest.mark.parametrize("changes", [{}, {"ip_start": 0.5, "ref_stop": 0.5}, {"guidance_stop": 0.5}], ids=str)
def test_a_batch_equals_one_after_the_other(changes, own, sitter, long):
    config = long(num_inference_steps=4, **changes)
    alone = made(own, sitter(), config)
    if changes:
        assert not torch.equal(alone.latents, made(own, sitter(), long(num_inference_steps=4)).latents)
    own.runtime = RuntimeConfig(passes="batched")
    torch.testing.assert_close(made(own, sitter(), config).latents, alone.latents, rtol=0, atol=1e-5)


def test_idle_models_offloaded(load_golden, full, sitter, long):
    plain = made(full, sitter(), long())
    assert torch.equal(made(load_golden("full"), sitter(), long(idle_models="offload")).latents, plain.latents)


def test_blocks_that_come_from_host_memory(load_golden, full, sitter, long):
    held = load_golden("full", runtime=RuntimeConfig(offload="block"))
    assert torch.equal(made(held, sitter(), long()).latents, made(full, sitter(), long()).latents)


def test_a_step_cache(own, sitter, long, tiny, tmp_path):
    config = long(num_inference_steps=6)
    exact = made(own, sitter(), config)
    own.calibration = tmp_path / "step_cache.json"
    known = calibrate(own, sitter(), PROMPT, tiny(num_inference_steps=6))
    save_calibration(own.calibration, known, made_for(own))
    ran = []
    own.transformer.blocks[1].ffn.register_forward_hook(lambda *_: ran.append(1))
    cached = made(own, sitter(), replace(config, step_cache=sum(known.drift) / 2))
    computed = cached.settings["steps_computed"]
    assert 2 <= computed < 6
    assert len(ran) == REFERENCE_FORWARDS + 3 * 3 * computed
    assert own.cache.added == {}
    assert 0 < (cached.latents - exact.latents).norm() / exact.latents.norm() < 1
    every = made(own, sitter(), replace(config, step_cache=0.0001))
    assert torch.equal(every.latents, exact.latents)


@pytest.fixture(scope="module")
def golden_blueprint():
    return survey(base=GOLDEN / "base", adapter=GOLDEN / "lynx_full", dtype=torch.float32, device="cpu")


def test_a_forecast_counts_windows(own, golden_blueprint, sitter, long, tiny):
    def tell(config):
        return forecast(golden_blueprint, config, RuntimeConfig(), rates=RATES)

    short, longer = tell(tiny()), tell(long())
    counted = []
    own.transformer.register_forward_pre_hook(lambda _, args: counted.append(args[0]))
    made(own, sitter(), long())
    assert longer.facts["forwards"] == 3 * short.facts["forwards"] == len(counted) - REFERENCE_FORWARDS
    assert longer.facts["video_tokens"] == short.facts["video_tokens"] == 2 * 16
    assert longer.facts["windows"] == {"number": 3, "frames": 5, "overlap": 4}
    assert short.facts["windows"] is None
    assert longer.sizes.forward == short.sizes.forward
    assert longer.layout.seconds["denoising"] == pytest.approx(3 * short.layout.seconds["denoising"])
    linear = "linear layers"
    assert longer.facts["arithmetic"][linear] == 3 * short.facts["arithmetic"][linear]
    assert "13 frames of 64x64 in 3 windows of 5 that overlap by 4 or more, 2 steps, 18 forwards" in longer.text
    assert "window" not in short.text
    latent = 16 * 8 * 8 * 4
    assert short.sizes.latents == (3 + 7) * 2 * latent
    assert longer.sizes.latents == (3 * 2 + 7 * 4) * latent
    cached = [
        forecast(golden_blueprint, replace(one, step_cache=0.1), RuntimeConfig(), rates=RATES, computed=[True] * 2)
        for one in (tiny(), long())
    ]
    each = short.facts["video_tokens"] * 96 * 4
    assert [one.sizes.kept for one in cached] == [4 * each, 10 * each]


WORKER = """
import sys, warnings
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from lynx_video import GenerateConfig
from lynx_video.face.record import FaceRecord
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.identify import identify
from lynx_video.pipeline.load import assemble, survey
from lynx_video.pipeline.models import photograph_faces
from lynx_video.runtime.parallel import Degrees, ranks

golden, out, passes, ulysses = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data = load_file(golden / "full_three_pass.safetensors")
record = FaceRecord(points=data["landmarks"].numpy(), embedding=data["face_embedding"].numpy())
who = identify(photograph_faces(Path("models")), golden / "subject.png", record=record).identity
blueprint = survey(base=golden / "base", adapter=golden / "lynx_full", dtype=torch.float32, device="cpu")
config = GenerateConfig(num_frames=13, window_frames=5, window_overlap=4, height=64, width=64, num_inference_steps=2,
                        negative_prompt="static", guidance_stop=0.5)
warnings.simplefilter("ignore")
with ranks("cpu", Degrees(passes=passes, ulysses=ulysses)) as mine:
    clip = generate(assemble(blueprint, ranks=mine), who, "A person waves.", config)
    save_file({"latents": clip.latents.contiguous()}, out / f"{mine.among.rank}.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("passes_shared", "heads_shared", "tolerance"), [(2, 1, 0.0), (1, 2, 1e-5)])
def test_processes_share_windows(passes_shared, heads_shared, tolerance, full, sitter, long, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "worker.py"]
    arguments = [GOLDEN, tmp_path, str(passes_shared), str(heads_shared)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = made(full, sitter(), long(guidance_stop=0.5)).latents
    for rank in (0, 1):
        shared = load_file(tmp_path / f"{rank}.safetensors")["latents"]
        torch.testing.assert_close(shared, alone, rtol=0, atol=tolerance)
