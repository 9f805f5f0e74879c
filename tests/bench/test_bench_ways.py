"""The three ways: ours is `generate`, plain is the same by another route, wan is the stock pipeline."""

import pytest
import torch

from lynx_video.bench import turn
from lynx_video.bench.made import Scene, draw_scene, without_scoring
from lynx_video.bench.ours import Ours, shortened
from lynx_video.bench.plain import Plain
from lynx_video.bench.side import twin_of
from lynx_video.bench.way import Clock
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.load import load

CLOCK = Clock(torch.device("cpu"))
GUIDED = {"three passes": {}, "two passes": {"guidance_scale_i": "none"}, "one pass": {"guidance_scale": 1.0}}


@pytest.fixture(scope="module")
def nano():
    return without_scoring(load("nano", device="cpu"))


def film(way, limit=None):
    turn.remember(way)
    with way.ready():
        steps = way.steps(limit, CLOCK)
    return steps, way.decode(steps.latents)


@pytest.mark.parametrize("settings", [*GUIDED.values(), {"idle_models": "offload"}], ids=[*GUIDED, "idle"])
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_ours_is_what_generate_does(way, made, arm, settings):
    components = made(arm)[0]
    scene = draw_scene(components)
    clip = generate(twin_of(components), scene.identity, scene.prompt, GenerateConfig(num_inference_steps=3, **settings))
    steps, frames = film(way("ours", arm, **settings))
    assert torch.equal(steps.latents, clip.latents)
    assert torch.equal(frames, torch.from_numpy(clip.frames))


@pytest.mark.parametrize("settings", GUIDED.values(), ids=GUIDED)
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_plain_is_the_same_by_another_route(way, arm, settings):
    ours, plain = (way(name, arm, **settings) for name in ("ours", "plain"))
    found, wanted = turn.predict(ours), turn.predict(plain)
    assert found.keys() == wanted.keys()
    assert turn.difference(found, wanted) < 1e-5
    (mine, my_frames), (other, other_frames) = film(ours), film(plain)
    assert turn.difference({"": mine.latents}, {"": other.latents}) < 1e-5
    assert (my_frames.int() - other_frames.int()).abs().max() <= 1
    assert mine.kinds == other.kinds == ours.kinds == plain.kinds
    assert ours.forwards == plain.forwards == 3 * len(found)


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_plain_is_the_same_over_the_golden_model(load_golden, sitter, arm, tiny):
    """With weights and a person that mean something."""
    components = load_golden(arm)
    scene = Scene(identity=sitter("full_three_pass" if arm == "full" else "lite"), prompt="A person smiles.")
    ours, plain = (kind(twin_of(components), scene, tiny()) for kind in (Ours, Plain))
    assert turn.difference(turn.predict(ours), turn.predict(plain)) < 1e-5


@pytest.mark.parametrize("part", ["identity", "reference"])
def test_a_part_that_plain_left_out_would_show(way, part):
    wanted = turn.predict(way("ours"))
    plain = way("plain")
    right = plain._see

    def forget(identity, reference):
        right({} if part == "identity" else identity, {} if part == "reference" else reference)

    plain._see = forget
    assert turn.difference(turn.predict(plain), wanted) > 100 * turn.TOLERANCE[torch.float32]


def test_wan_is_the_base_without_anybody(way):
    """Its prompt's pass is ours with both adapters off; what it does in a clip is the pipeline's own."""
    wan, nobody = way("wan"), way("ours", ip_scale=0.0, ref_scale=0.0, guidance_scale_i="none")
    assert turn.difference(turn.predict(wan), turn.predict(nobody)) < 1e-6
    assert wan.forwards == 6
    steps, frames = film(wan)
    whole = wan.pipeline(
        wan.scene.prompt,
        negative_prompt=wan.plan.negative_prompt,
        latents=wan.noise,
        height=wan.plan.height,
        width=wan.plan.width,
        num_frames=wan.plan.num_frames,
        num_inference_steps=3,
        guidance_scale=wan.plan.guidance_scale,
        max_sequence_length=wan.components.defaults.max_sequence_length,
    ).frames[0]
    assert torch.allclose(frames, torch.from_numpy(whole), atol=1e-5)
    assert len(steps.seconds) == len(steps.kinds) == 3


def test_the_stock_transformer_has_stock_processors_and_the_others_keep_theirs(way, made):
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    wan = way("wan")
    way("plain")
    assert {type(one) for one in wan.transformer.attn_processors.values()} == {WanAttnProcessor}
    kept = {type(one).__name__ for one in made("full")[0].transformer.attn_processors.values()}
    assert kept == {"Attention"}


@pytest.mark.parametrize("name", ["ours", "plain", "wan"])
def test_a_way_begins_anew_and_ends_when_told(way, name):
    one = way(name, steps=4)
    (first, _), (again, _) = film(one), film(one)
    assert torch.equal(first.latents, again.latents)
    assert len(first.seconds) == 4
    short, _ = film(one, 2)
    assert len(short.seconds) == len(short.kinds) == 2


def test_a_step_cache_has_kinds_of_steps_and_each_is_timed(way, nano):
    one = way("ours", steps=20, components=nano, step_cache=0.1, guidance_stop=0.6)
    kinds = set(one.kinds)
    assert kinds >= {"3 passes", "3 passes from the cache", "1 pass"}
    assert len(one.kinds) == 20
    computed = [kind for kind in one.kinds if "cache" not in kind]
    assert one.forwards == sum(int(kind[0]) for kind in computed) < 60
    few, _ = film(one, 2)
    assert set(few.kinds) == kinds
    whole, _ = film(one)
    assert whole.kinds == one.kinds
    scene = draw_scene(nano)
    config = GenerateConfig(step_cache=0.1, guidance_stop=0.6)
    assert torch.equal(whole.latents, generate(twin_of(nano), scene.identity, scene.prompt, config).latents)


def test_a_step_cache_that_was_never_measured_is_no_side(way):
    with pytest.raises(BadRequest, match="--calibration"):
        way("ours", step_cache=0.1)


def test_shortened_schedules_keep_every_kind_and_the_order():
    schedule = [("a", True)] * 6 + [("a", False), ("b", True)] * 2
    assert shortened(schedule, None) == shortened(schedule, 99) == schedule
    assert shortened(schedule, 1) == [("a", True), ("a", False), ("b", True)]
    assert shortened(schedule, 5) == [("a", True)] * 3 + [("a", False), ("b", True)]
    assert shortened(schedule[:6], 2) == [("a", True)] * 2
