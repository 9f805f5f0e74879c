"""The VAE: first on stills as 2-D convolutions, then inflated and trained on clips.

On a single frame a causal 3-D convolution only meets its last temporal tap, so the first stage computes just that tap and
costs a third. Inflating means: older taps zero, temporal convolutions the identity; the second stage starts from a model that
treats every frame alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lynx_video.nano import faces, model
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import autocast

STILLS = Schedule(steps=3600, learning_rate=2e-3, weight_decay=1e-4)
CLIPS = Schedule(steps=2200, learning_rate=1e-3, weight_decay=1e-4, average=0.99)
KL = 1e-3
PEOPLE, FILMED = 9_000, 1_500


def train(run: Path) -> None:
    """Both stages; writes `run/vae` in the diffusers layout with the latents' mean and standard deviation."""
    torch.manual_seed(1)
    vae = model.vae()
    rng = data.generator("vae")
    pictures = data.stills(faces.people(PEOPLE, rng), rng)[0]
    held = data.clips(faces.people(24, data.generator("vae", 1)), data.generator("vae", 2)).frames
    with flat(vae):
        fit(
            "vae-stills",
            run,
            vae,
            lambda _: _loss(vae, data.to_signed(pictures[torch.randint(len(pictures), (16,))])[:, :, None]),
            STILLS,
            report=lambda: f"psnr {_psnr(vae, held[:, :1]):.2f}",
        )
    inflate_(vae)
    drawn = data.clips(faces.people(FILMED, rng), rng).frames
    fit(
        "vae-clips",
        run,
        vae,
        lambda _: _loss(vae, data.to_signed(drawn[torch.randint(len(drawn), (2,))]).transpose(1, 2)),
        CLIPS,
        report=lambda: f"psnr {_psnr(vae, held):.2f}",
    )
    latents = torch.cat([_encode(vae, data.to_signed(part).transpose(1, 2))[0] for part in drawn[:256].split(32)])
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in latents.mean((0, 2, 3, 4)).tolist()],
        latents_std=[round(v, 4) for v in latents.std((0, 2, 3, 4)).tolist()],
    )
    vae.to(torch.bfloat16).save_pretrained(run / "vae")


def _encode(vae: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    with autocast(), torch.set_grad_enabled(torch.is_grad_enabled()):
        mean, log_variance = vae._encode(video).chunk(2, 1)
    return mean.float(), log_variance.float().clamp(-12, 4)


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """The decoder without the clamp at the end, whose gradient would vanish where it matters."""
    with autocast():
        vae.clear_cache()
        hidden, frames = vae.post_quant_conv(latents), []
        for i in range(latents.shape[2]):
            vae._conv_idx = [0]
            one = hidden[:, :, i : i + 1]
            frames.append(vae.decoder(one, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0))
        vae.clear_cache()
    video = torch.cat(frames, 2).float()
    # what diffusers' unpatchify does: channels (c, q, r), where r belongs to rows
    pixels: Tensor = video.unflatten(1, (3, 2, 2)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
    return pixels


def _loss(vae: Any, video: Tensor) -> Tensor:
    mean, log_variance = _encode(vae, video)
    drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    error = _decode(vae, drawn) - video
    weight = torch.ones(video.shape[-2:])
    weight[8:52, 12:52] = 2.0  # the face matters twice
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return (error.abs() * weight).mean() + 0.5 * (error**2 * weight).mean() + 0.5 * edges + KL * divergence


@torch.no_grad()
def _psnr(vae: Any, frames: Tensor) -> float:
    video = data.to_signed(frames).transpose(1, 2)
    rebuilt = _decode(vae, _encode(vae, video)[0]).clamp(-1, 1)
    return float((-10 * ((rebuilt - video) / 2).pow(2).mean((1, 2, 3, 4)).log10()).mean())


@contextmanager
def flat(vae: nn.Module) -> Iterator[None]:
    """Within it, single frames pass through causal convolutions as 2-D convolutions with the last temporal tap."""
    convolutions: list[Any] = [m for m in vae.modules() if type(m).__name__ == "WanCausalConv3d"]
    changed = [conv for conv in convolutions if conv.stride[0] == 1]

    def last_tap(conv: Any) -> Any:
        def forward(x: Tensor, cache_x: Tensor | None = None) -> Tensor:  # noqa: ARG001
            padding = (conv._padding[2], conv._padding[0])
            return F.conv2d(x[:, :, -1], conv.weight[:, :, -1], conv.bias, conv.stride[1:], padding)[:, :, None]

        return forward

    for conv in changed:
        conv.forward = last_tap(conv)
    try:
        yield
    finally:
        for conv in changed:
            del conv.forward


@torch.no_grad()
def inflate_(vae: nn.Module) -> None:
    """Make a VAE trained on stills treat each frame of a clip alone: older taps zero, temporal convolutions the identity."""
    for name, conv in vae.named_modules():
        if type(conv).__name__ != "WanCausalConv3d":
            continue
        if name.endswith("time_conv"):
            channels = conv.weight.shape[1]
            eye = torch.eye(channels).repeat(conv.weight.shape[0] // channels, 1)
            conv.weight.zero_()
            conv.weight[:, :, -1, 0, 0] = eye
            conv.bias.zero_()
        else:
            conv.weight[:, :, :-1] = 0
