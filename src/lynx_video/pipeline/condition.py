"""What the transformer is conditioned on: prompts as embeddings, reference crops as latents."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.errors import BadRequest, LynxWarning

if TYPE_CHECKING:
    from lynx_video.types import Picture

REFERENCE_PROMPT = "image of a face"


def read_prompt(prompt: str) -> str:
    """The prompt itself, or the text of the file it names (the reference takes both under one flag)."""
    try:
        is_file = len(prompt) < 1024 and "\n" not in prompt and Path(prompt).is_file()
    except (OSError, ValueError):
        is_file = False
    return read_prompt_file(Path(prompt)) if is_file else prompt


def read_prompt_file(file: Path) -> str:
    """The text of a prompt file. Raises BadRequest if it is missing, empty or not text."""
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"the prompt file {file} can't be read as UTF-8 text ({error}).") from error
    if not text:
        raise BadRequest(f"the prompt file {file} is empty; write what the person should do.")
    return text


def clean_prompt(prompt: str) -> str:
    """As Wan's pipeline cleans it: mended Unicode, unescaped HTML (twice), single spaces."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", mended).strip()


@torch.no_grad()
def encode_prompt(
    tokenizer: Any, text_encoder: Any, prompt: str, max_sequence_length: int, device: torch.device | None = None
) -> Tensor:
    """Embeddings [1, S, text width] in the encoder's dtype, zero after the last real token.

    device: where it is computed; where the encoder lies, if not given. Warns of a prompt of which the end is not read.
    """
    text = clean_prompt(prompt)
    whole = len(tokenizer([text], add_special_tokens=True, verbose=False).input_ids[0])
    if whole > max_sequence_length:
        warnings.warn(
            f"the prompt has {whole} tokens, the model reads the first {max_sequence_length}: its end counts for nothing.",
            LynxWarning,
            stacklevel=2,
        )
    tokens = tokenizer(
        [text],
        padding="max_length",
        max_length=max_sequence_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = device or next(text_encoder.parameters()).device
    mask = tokens.attention_mask.to(device)
    hidden: Tensor = text_encoder(tokens.input_ids.to(device), mask).last_hidden_state
    length = int(mask.sum())
    embeddings = torch.zeros_like(hidden)
    embeddings[:, :length] = hidden[:, :length]
    return embeddings


def latent_statistics(vae: Any, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, each [1, C, 1, 1, 1] float32."""
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    return mean, std


@torch.no_grad()
def reference_latents(vae: Any, crop: Picture | None, size: int, seed: int | None) -> Tensor:
    """Normalised latents [1, C, 1, h, w] float32 of a reference crop; None is nobody: an all-zero (mid grey) image.

    seed: the latent is sampled with a CPU generator seeded `seed` (the reference passes its seed + 1); None takes the mean.
    """
    if crop is None:
        picture = torch.zeros(1, 3, 1, size, size)
    else:
        picture = (torch.tensor(crop).permute(2, 0, 1).float() / 127.5 - 1)[None, :, None]
    parameter = next(vae.parameters())
    posterior = vae.encode(picture.to(parameter.device, parameter.dtype)).latent_dist
    if seed is None:
        latents = posterior.mean
    else:
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed), dtype=posterior.mean.dtype)
        latents = posterior.mean + posterior.std * noise.to(posterior.mean.device)
    mean, std = latent_statistics(vae, latents.device)
    normalised: Tensor = (latents.float() - mean) / std
    return normalised
