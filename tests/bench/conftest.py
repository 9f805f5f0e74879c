"""Made models of nano's shapes, and twins of them in every way."""

import functools

import pytest

from lynx_video.bench.made import Source, draw_scene, make
from lynx_video.bench.ours import Ours
from lynx_video.bench.plain import Plain
from lynx_video.bench.side import twin_of
from lynx_video.bench.stock import Stock
from lynx_video.config import GenerateConfig

WAYS = {"ours": Ours, "plain": Plain, "wan": Stock}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """made("lite") is a model with random weights and its blueprint; do not change it."""

    @functools.cache
    def of(arm="full"):
        return make(Source(size="nano", arm=arm, device="cpu"), tmp_path_factory.mktemp(arm))

    return of


@pytest.fixture
def way(made):
    """way("plain", "lite", steps=3) is that way on a twin of the made model."""

    def of(name, arm="full", steps=3, components=None, **settings):
        held = twin_of(components or made(arm)[0])
        return WAYS[name](held, draw_scene(held), GenerateConfig(num_inference_steps=steps, **settings))

    return of
