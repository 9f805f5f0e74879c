"""A tiny training set of noise for the golden base, and a run over it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lynx_video.pipeline.load import survey
from lynx_video.training.config import TrainConfig
from lynx_video.training.shards import Conditions, write_shards
from lynx_video.types import Example

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT, CHANNELS = 12, 16


@pytest.fixture(scope="session")
def golden_base():
    """The golden base as a checked model without an adapter."""
    return survey(base=GOLDEN / "base", with_adapter=False, device="cpu", dtype="fp32")


def noise_example(key, shape, person, generator):
    draw = partial(torch.randn, generator=generator)
    frames, height, width = shape
    return Example(
        key=key,
        latents=draw(CHANNELS, *shape).half(),
        frames=1 + (frames - 1) * 4,
        height=height * 8,
        width=width * 8,
        text=draw(int(torch.randint(3, TEXT, (1,), generator=generator)), 48).bfloat16(),
        caption=f"{person} waves",
        faces=torch.nn.functional.normalize(draw(2, 512), dim=-1),
        references=draw(2, CHANNELS, 1, 8, 8).half(),
        person=person,
        source=f"{key}.mp4",
        sources=("a.jpg", "b.jpg"),
    )


@pytest.fixture(scope="session")
def noise_set(tmp_path_factory, golden_base):
    """A folder with 24 stills and 24 clips of two shapes each, of 16 people."""
    folder, generator = tmp_path_factory.mktemp("set"), torch.Generator().manual_seed(5)
    shapes = ((1, 8, 8), (1, 6, 10), (3, 8, 8), (2, 6, 6))
    examples = [noise_example(f"e{i:03d}", shapes[i % 4], f"p{i % 16:02d}", generator) for i in range(48)]
    conditions = Conditions(
        empty_text=torch.randn(TEXT, 48, generator=generator),
        reference_text=torch.randn(TEXT, 48, generator=generator),
        nobody_reference=torch.randn(CHANNELS, 1, 8, 8, generator=generator),
    )
    write_shards(folder, examples, conditions, {"model": {"base_hash": golden_base.base_hash}}, shard_bytes=100_000)
    return folder


@pytest.fixture(scope="session")
def small():
    """small(**changes) is a config of steps that take a tenth of a second."""
    config = TrainConfig(
        stage="video",
        steps=6,
        packs=2,
        tokens=120,
        learning_rate=1e-3,
        warmup=2,
        precision="fp32",
        recompute=False,
        resampler_depth=1,
        resampler_width=64,
        queries=4,
        registers=2,
        token_width=64,
        held_out=4,
        checkpoint_every=2,
        validate_every=3,
        sampling_shift=1.0,
    )
    return partial(replace, config)
