"""The base model: text to stills, then text to clips mixed with stills; text encoder and transformer train together.

Also here: the drawn and encoded world that the base is trained on, made once and kept in the run folder.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video import flow
from lynx_video.nano import model
from lynx_video.nano.captions import caption, describe
from lynx_video.nano.faces import People, Scenes
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import autocast, prepare_

STILLS = Schedule(steps=3600, learning_rate=2e-3, matrix_rate=5e-3, average=0.997, decay=0.3)
CLIPS = Schedule(steps=10000, learning_rate=1.5e-3, matrix_rate=3.5e-3, average=0.997, decay=0.7)
STILL_BATCH, CLIP_BATCH = 64, 14
HELD = 192
"clips that are not trained on"
EMPTY_PROMPT = 0.08
"share of samples trained on the empty prompt, for guidance"
SHARES = (1.0, 1.5, 2.5, 1.0, 1.0, 1.0, 3.0)
"how often clips of each motion are drawn: a smile is a few pixels and a shake is fast, and both are learned late"


class World:
    """People with two stills each and, the first of them, a clip: latents, scenes and motions."""

    def __init__(self, run: Path) -> None:
        self.run = run
        stored = self._read("stills")
        self.stills: Tensor = stored["stills"]  # [N, 2, C, h, w]
        self.who = People(**stored["who"])
        self.still_scenes = [Scenes(**scene) for scene in stored["still_scenes"]]

    def open_clips(self) -> None:
        """Read the clips too."""
        stored = self._read("clips")
        self.clips: Tensor = stored["clips"]  # [M, C, T, h, w]
        self.motion: Tensor = stored["motion"]
        self.clip_scenes = Scenes(**stored["clip_scenes"])

    def _read(self, name: str) -> dict[str, Any]:
        stored: dict[str, Any] = torch.load(self.run / f"{name}.pt", weights_only=True, mmap=True)
        return stored


def train(run: Path, part: str = "all") -> None:
    """Stills, then clips; writes `run/transformer`, `run/text_encoder`, `run/tokenizer`."""
    torch.manual_seed(5)
    world = World(run)
    networks = Networks()
    networks.initialise_()
    prepare_(networks.transformer)
    networks.text_encoder.to(torch.bfloat16)

    def still_loss(step: int) -> Tensor:
        index = torch.randint(len(world.stills), (STILL_BATCH,))
        which = torch.randint(2, (STILL_BATCH,))
        rng = random.Random(step)
        texts = [
            _caption(world.who, world.still_scenes[w], i, None, rng)
            for i, w in zip(index.tolist(), which.tolist(), strict=True)
        ]
        return networks.loss(world.stills[index, which][:, :, None].float(), texts).mean()

    def clip_loss(step: int) -> Tensor:
        if step % 5 == 4:
            return still_loss(step)
        index = torch.multinomial(shares, CLIP_BATCH, True)
        rng = random.Random(step)
        texts = [_caption(world.who, world.clip_scenes, i, int(world.motion[i]), rng) for i in index.tolist()]
        return networks.loss(world.clips[index].float(), texts).mean()

    def report() -> str:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            rng, losses = random.Random(0), []
            for start in range(held, held + HELD - CLIP_BATCH + 1, CLIP_BATCH):
                rows = range(start, start + CLIP_BATCH)
                texts = [_caption(world.who, world.clip_scenes, i, int(world.motion[i]), rng) for i in rows]
                losses.append(networks.loss(world.clips[start : start + CLIP_BATCH].float(), texts).mean())
        return f"validation (clips) {torch.stack(losses).mean():.4f}"

    fit("base-stills", run, networks, still_loss, STILLS, is_matrix=_is_block)
    if part == "stills":
        return
    world.open_clips()
    held = len(world.clips) - HELD
    shares = torch.tensor(SHARES)[world.motion[:held]]
    fit("base-clips", run, networks, clip_loss, CLIPS, report=report, is_matrix=_is_block)
    networks.save(run)


def _is_block(name: str) -> bool:
    return name.startswith("transformer.blocks")


def _caption(who: People, scene: Scenes, i: int, motion: int | None, rng: random.Random) -> str:
    """Names all, some or none of the traits; sometimes nothing at all."""
    if rng.random() < EMPTY_PROMPT:
        return ""
    keep = rng.choices((1.0, 0.5, 0.0), (0.45, 0.25, 0.30))[0]
    return caption(scene, i, motion, describe(who, i, keep, rng), rng)


class Networks(nn.Module):
    """Text encoder and transformer as one module for the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = model.transformer()
        self.text_encoder = model.text_encoder()
        self.tokenizer = model.tokenizer()

    def initialise_(self) -> None:
        """Zero biases and a zero last layer: the first prediction is zero."""
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def encode(self, texts: list[str]) -> Tensor:
        """Embeddings [B, 48, 64], zero after the last token."""
        tokens = self.tokenizer(texts, padding="max_length", max_length=model.TEXT_TOKENS, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask
        hidden: Tensor = self.text_encoder(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        embeddings: Tensor = hidden * mask[..., None].to(hidden.dtype)
        return embeddings

    def loss(self, clean: Tensor, texts: list[str]) -> Tensor:
        """Flow matching loss per sample, [B]."""
        noise, timestep = torch.randn_like(clean), sample_timestep(len(clean))
        sigma = timestep.view(-1, 1, 1, 1, 1)
        noisy = flow.interpolate(clean, noise, sigma).to(self.transformer.dtype)
        predicted = self.transformer(noisy, timestep * flow.TIMESTEPS, self.encode(texts), return_dict=False)[0]
        loss: Tensor = (predicted.float() - flow.velocity(clean, noise)).pow(2).mean((1, 2, 3, 4))
        return loss

    def save(self, run: Path) -> None:
        """Write both in the layout of the real ones."""
        self.transformer.save_pretrained(run / "transformer")
        self.text_encoder.save_pretrained(run / "text_encoder")
        self.tokenizer.save_pretrained(run / "tokenizer")


def sample_timestep(count: int) -> Tensor:
    """Logit-normal with its mass a little above the middle, in (0, 1)."""
    return torch.sigmoid(torch.randn(count) + 0.2)


def load_vae(run: Path) -> Any:
    """The trained VAE in float32."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(run / "vae", torch_dtype=torch.float32).eval()


@torch.no_grad()
def to_latents(vae: Any, frames: Tensor) -> Tensor:
    """uint8 [B, F, 3, H, W] -> normalised mean latents float16 [B, C, T, h, w]."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with autocast():
        latents = vae.encode(data.to_signed(frames).transpose(1, 2)).latent_dist.mean
    normalised: Tensor = ((latents.float() - mean) / std).to(torch.float16)
    return normalised


def as_dict(batch: People | Scenes) -> dict[str, Tensor]:
    """Its tensors by name, for torch.save."""
    return {name: getattr(batch, name) for name in batch.__slots__}
