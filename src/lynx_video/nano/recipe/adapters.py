"""The adapters over the frozen base: what Lynx trains, at toy size. Full first on stills, then on clips; lite likewise.

The portrait a sample is conditioned on shows the person in another pose and scene than the target. Captions name no traits. So that
every guidance pass is in distribution, some samples see nobody (zeros, and an all-zero image), some the empty prompt, and some only
one of the two adapters.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video import flow
from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.memory import Memory, reference_features
from lynx_video.adapters.projection import KeysValues, Projection, ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.adapters.weights import save_adapter
from lynx_video.nano import model
from lynx_video.nano.captions import caption
from lynx_video.nano.recipe.base import Networks, World, load_vae, sample_timestep
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import TrainingAttention, prepare_

STILLS = Schedule(steps=900, learning_rate=1e-3, matrix_rate=3e-3, average=0.995, decay=0.3)
CLIPS = Schedule(steps=1300, learning_rate=1e-3, matrix_rate=2.5e-3, average=0.997, decay=0.7)
LITE_STILLS = Schedule(steps=400, learning_rate=1e-3, matrix_rate=3e-3, average=0.995, decay=0.3)
LITE_CLIPS = Schedule(steps=1400, learning_rate=1e-3, matrix_rate=3e-3, average=0.996, decay=0.6)
STILL_BATCH, CLIP_BATCH = 64, 14
NOBODY, IDENTITY_ONLY, REFERENCE_ONLY = 0.10, 0.22, 0.15
"shares of samples; the rest sees both adapters"
EMPTY_PROMPT = 0.10

WIDTH = model.HEADS * model.HEAD_WIDTH
FULL_CONFIG = AdapterConfig(
    width=WIDTH,
    heads=model.HEADS,
    resampler=ResamplerConfig(depth=2, width=WIDTH, inner=WIDTH, queries=8, output=WIDTH),
    identity=ProjectionConfig(tokens=WIDTH, width=WIDTH, registers=4),
    identity_blocks=tuple(range(model.BLOCKS)),
    reference_blocks=tuple(range(model.BLOCKS)),
)
LITE_CONFIG = AdapterConfig(
    width=WIDTH,
    heads=model.HEADS,
    resampler=ResamplerConfig(depth=2, width=WIDTH, inner=WIDTH, queries=8, output=128),
    identity=ProjectionConfig(tokens=128, width=WIDTH, bias=False, own_key_norm=True),
    identity_blocks=tuple(range(0, model.BLOCKS, 2)),
)


def train(run: Path, part: str = "all") -> None:
    """Train `part` (full, lite or all); writes `run/lynx_full` and `run/lynx_lite` in the official layout."""
    for name, config, stages in (("full", FULL_CONFIG, (STILLS, CLIPS)), ("lite", LITE_CONFIG, (LITE_STILLS, LITE_CLIPS))):
        if part in (name, "all"):
            torch.manual_seed(6)
            _Training(run, name, config).train(*stages)


class _Training:
    """One adapter's training: the frozen base, the world, and the loss."""

    def __init__(self, run: Path, name: str, config: AdapterConfig) -> None:
        self.run, self.name = run, name
        self.world = World(run)
        self.world.open_clips()
        self.world.open_portraits()
        self.networks = _frozen_base(run)
        self.adapter = Adapter(config)
        self.adapter.attach(self.networks.transformer, TrainingAttention)
        initialise_(self.adapter)
        self.held = len(self.world.clips) - 192
        with torch.no_grad():
            self.nobody_face = torch.zeros(1, 512)
            text = self.networks.encode(["image of a face"])
            grey = _grey_latents(run)
            self.features = self._all_features(self.world.portraits, text) if config.reference_blocks else None
            self.nobody = self._all_features(grey, text) if config.reference_blocks else None

    def train(self, stills: Schedule, clips: Schedule) -> None:
        """Stills, then clips, then save."""
        fit(f"{self.name}-stills", self.run, self.adapter, self._still_loss, stills)
        fit(f"{self.name}-clips", self.run, self.adapter, self._clip_loss, clips, report=self._report, every=180)
        save_adapter(self.adapter.to(torch.bfloat16), self.run / f"lynx_{self.name}")

    def _all_features(self, latents: Tensor, text: Tensor) -> Tensor:
        """[M, blocks, R, D] bfloat16 of all portraits, computed once: the base is frozen."""
        parts = []
        for some in latents.split(64):
            padded = torch.cat([some, some[:1].expand(64 - len(some), -1, -1, -1, -1)]) if len(some) < 64 else some
            found = reference_features(self.networks.transformer, padded.to(torch.bfloat16), text.expand(64, -1, -1))
            parts.append(torch.stack(found, 1)[: len(some)].to(torch.bfloat16))
        return torch.cat(parts)

    def _still_loss(self, step: int) -> Tensor:
        index, which = torch.randint(self.held, (STILL_BATCH,)), torch.randint(2, (STILL_BATCH,))
        rng = random.Random(step)
        pairs = zip(index.tolist(), which.tolist(), strict=True)
        texts = [self._text(self.world.still_scenes[w], i, None, rng) for i, w in pairs]
        return self._loss(self.world.stills[index, which][:, :, None].float(), index, texts).mean()

    def _clip_loss(self, step: int) -> Tensor:
        if step % 5 == 4:
            return self._still_loss(step)
        index = torch.randint(self.held, (CLIP_BATCH,))
        rng = random.Random(step)
        texts = [self._text(self.world.clip_scenes, i, int(self.world.motion[i]), rng) for i in index.tolist()]
        return self._loss(self.world.clips[index].float(), index, texts).mean()

    def _text(self, scene: Any, i: int, motion: int | None, rng: random.Random) -> str:
        return "" if rng.random() < EMPTY_PROMPT else caption(scene, i, motion, "", rng)

    def _report(self) -> str:
        notes = []
        for mode in ("none", "identity", "reference", "both"):
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                rng, losses = random.Random(0), []
                for start in range(self.held, self.held + 192 - CLIP_BATCH + 1, CLIP_BATCH):
                    rows = torch.arange(start, start + CLIP_BATCH)
                    texts = [caption(self.world.clip_scenes, i, int(self.world.motion[i]), "", rng) for i in rows.tolist()]
                    losses.append(self._loss(self.world.clips[rows].float(), rows, texts, mode).mean())
            notes.append(f"{mode} {torch.stack(losses).mean():.4f}")
        return "validation " + " ".join(notes)

    def _loss(self, clean: Tensor, index: Tensor, texts: list[str], mode: str = "") -> Tensor:
        """Flow matching loss per sample."""
        transformer, count = self.networks.transformer, len(clean)
        noise, timestep = torch.randn_like(clean), sample_timestep(count)
        noisy = flow.interpolate(clean, noise, timestep.view(-1, 1, 1, 1, 1)).to(torch.bfloat16)
        draw = torch.rand(count)
        if mode:
            draw = torch.full(
                (count,), {"none": 2.0, "identity": NOBODY, "reference": NOBODY + IDENTITY_ONLY, "both": 0.99}[mode]
            )
        nobody = draw < NOBODY
        no_reference = (draw >= NOBODY) & (draw < NOBODY + IDENTITY_ONLY)
        no_identity = (draw >= NOBODY + IDENTITY_ONLY) & (draw < NOBODY + IDENTITY_ONLY + REFERENCE_ONLY)
        if mode == "none":
            no_reference, no_identity = torch.ones_like(nobody), torch.ones_like(nobody)
        if self.features is None:
            no_identity = no_identity & torch.tensor(mode in ("none", "reference"))
        with torch.no_grad():
            embeddings = self.networks.encode(texts)
        vectors = torch.where(nobody[:, None], self.nobody_face, self.world.faces[index])
        memory = Memory(identity=_as_bfloat16(self.adapter.identity_memory(vectors)), reference=self._reference(index, nobody))
        with self.adapter.using(memory):
            for block in transformer.blocks:
                block.attn2.processor.scale = (~no_identity).to(torch.bfloat16).view(-1, 1, 1)
                block.attn1.processor.scale = (~no_reference).to(torch.bfloat16).view(-1, 1, 1)
            predicted = transformer(noisy, timestep * flow.TIMESTEPS, embeddings, return_dict=False)[0]
            loss: Tensor = (predicted.float() - flow.velocity(clean, noise)).pow(2).mean((1, 2, 3, 4))
        return loss

    def _reference(self, index: Tensor, nobody: Tensor) -> dict[int, KeysValues]:
        if self.features is None or self.nobody is None:
            return {}
        features = torch.where(nobody[:, None, None, None], self.nobody, self.features[index])
        return _as_bfloat16(self.adapter.reference_memory(list(features.unbind(1))))


def _as_bfloat16(blocks: dict[int, KeysValues]) -> dict[int, KeysValues]:
    return {i: KeysValues(pair.key.to(torch.bfloat16), pair.value.to(torch.bfloat16)) for i, pair in blocks.items()}


def _frozen_base(run: Path) -> Networks:
    from safetensors.torch import load_file

    networks = Networks()
    networks.transformer.load_state_dict(load_file(run / "transformer" / "diffusion_pytorch_model.safetensors"))
    weights = load_file(run / "text_encoder" / "model.safetensors")
    missing = set(networks.text_encoder.load_state_dict(weights, strict=False).missing_keys)
    assert missing <= {"encoder.embed_tokens.weight", "shared.weight"}, missing
    prepare_(networks.transformer)
    networks.text_encoder.to(torch.bfloat16)
    networks.requires_grad_(False)
    return networks


@torch.no_grad()
def initialise_(adapter: Adapter) -> None:
    """Keys and values start as copies of the block's own, values small, so that the first steps already carry information."""
    for blocks, attention, share in ((adapter.identity, "attn2", 0.5), (adapter.reference, "attn1", 0.3)):
        for name, projection in blocks.items():
            assert isinstance(projection, Projection)
            own: Any = getattr(adapter.transformer.blocks[int(name)], attention)
            if projection.config.tokens == own.to_k.weight.shape[1] and projection.config.bias:
                projection.to_k.weight.copy_(own.to_k.weight)
                projection.to_v.weight.copy_(own.to_v.weight * share)
                projection.to_k.bias.copy_(own.to_k.bias)
                projection.to_v.bias.copy_(own.to_v.bias * share)
            else:
                nn.init.normal_(projection.to_v.weight, std=0.02)
            if projection.registers is not None:
                projection.registers.mul_(0.1)
    if adapter.resampler is not None:
        # face vectors have unit length over 512 numbers; bring them to unit variance
        nn.init.normal_(adapter.resampler.proj_in.weight, std=1.0)


@torch.no_grad()
def _grey_latents(run: Path) -> Tensor:
    vae = load_vae(run)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    grey = torch.zeros(1, 3, 1, model.REFERENCE, model.REFERENCE)
    latents: Tensor = (vae.encode(grey).latent_dist.mean - mean) / std
    return latents
