"""The sizes at which a model with random weights can be made: nano, mid and 14b. Real classes; only configurations live here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lynx_video.adapters.attach import AdapterConfig
from lynx_video.adapters.projection import ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.config import FULL, LITE, Defaults
from lynx_video.nano import model as nano

TINY_PROMPT = "static"
"a negative prompt for models that know no words"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model by its parts; each is a function that makes it, on the device and in the dtype of the moment.

    full, lite: what a clip of that arm is. token_width: of identity tokens, of full and of lite. encoder_layers: 0 stands for a text
    encoder that is a table of random embeddings, whose time says nothing.
    """

    name: str
    transformer: Callable[[], Any]
    vae: Callable[[], Any]
    full: Defaults
    lite: Defaults
    resampler: ResamplerConfig
    token_width: tuple[int, int]
    registers: int
    encoder_layers: int

    def defaults(self, arm: str) -> Defaults:
        """What a clip of an arm is."""
        return self.full if arm == "full" else self.lite

    def adapter(self, arm: str, width: int, heads: int, blocks: int) -> AdapterConfig:
        """The adapter of an arm over a base of these sizes, built as the released ones are."""
        full = arm == "full"
        tokens = self.token_width[0 if full else 1]
        kept = self.resampler
        return AdapterConfig(
            width=width,
            heads=heads,
            resampler=ResamplerConfig(
                depth=kept.depth, width=kept.width, queries=kept.queries, output=tokens, face=kept.face, inner=kept.inner
            ),
            identity=ProjectionConfig(
                tokens=tokens, width=width, bias=full, registers=self.registers if full else 0, own_key_norm=not full
            ),
            identity_blocks=tuple(range(0, blocks, 1 if full else 2)),
            reference_blocks=tuple(range(blocks)) if full else (),
        )


def text_encoder(size: Size, width: int) -> Any:
    """UMT5 of this width over nano's words."""
    from transformers import UMT5Config, UMT5EncoderModel

    from lynx_video.nano.captions import WORDS

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS),
            d_model=width,
            d_kv=16,
            d_ff=2 * width,
            num_layers=size.encoder_layers,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        )
    )


def _mid_transformer() -> Any:
    """8 heads of 64, 8 blocks: one of its forwards takes about a second on two CPU cores."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        in_channels=nano.LATENT_CHANNELS,
        out_channels=nano.LATENT_CHANNELS,
        text_dim=256,
        freq_dim=256,
        ffn_dim=1408,
        num_layers=8,
        cross_attn_norm=True,
    )


def _wan_transformer() -> Any:
    from diffusers import WanTransformer3DModel

    from lynx_video.pipeline.released import TRANSFORMER

    return WanTransformer3DModel(**TRANSFORMER)


def _wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan()


def _small(frames: int, side: int, steps: int, words: int, guidance_scale_i: float | None) -> Defaults:
    return Defaults(
        num_frames=frames,
        fps=8.0,
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale_i=guidance_scale_i,
        negative_prompt=TINY_PROMPT,
        reference_size=64,
        max_sequence_length=words,
    )


SIZES: dict[str, Size] = {
    "nano": Size(
        name="nano",
        transformer=nano.transformer,
        vae=nano.vae,
        full=_small(nano.FRAMES, nano.SIZE, 20, nano.TEXT_TOKENS, 2.0),
        lite=_small(nano.FRAMES, nano.SIZE, 20, nano.TEXT_TOKENS, None),
        resampler=ResamplerConfig(depth=2, width=192, queries=8, output=128, inner=192),
        token_width=(128, 64),
        registers=4,
        encoder_layers=2,
    ),
    "mid": Size(
        name="mid",
        transformer=_mid_transformer,
        vae=nano.vae,
        full=_small(13, 96, 10, 256, 2.0),
        lite=_small(19, 96, 10, 256, None),
        resampler=ResamplerConfig(depth=2, width=256, queries=16, output=512, inner=256),
        token_width=(512, 256),
        registers=16,
        encoder_layers=2,
    ),
    "14b": Size(
        name="14b",
        transformer=_wan_transformer,
        vae=_wan_vae,
        full=FULL,
        lite=LITE,
        resampler=ResamplerConfig(),
        token_width=(5120, 2048),
        registers=16,
        encoder_layers=0,
    ),
}
