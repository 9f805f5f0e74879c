"""ComfyUI's widgets and pictures as our values, and back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.config import GenerateConfig
    from lynx_video.types import Picture, Video

INFLUENCES = ("ip_scale", "ip_start", "ip_stop", "ref_scale", "ref_start", "ref_stop")
SIZES = ("num_frames", "height", "width", "num_inference_steps")


def text(default: str = "", *, tooltip: str, multiline: bool = False) -> tuple[str, dict[str, Any]]:
    """A text widget. Ours never are dynamic prompts: braces stay as they were written."""
    return "STRING", {"default": default, "multiline": multiline, "dynamicPrompts": False, "tooltip": tooltip}


def number(default: float, low: float, high: float, step: float, *, tooltip: str) -> tuple[str, dict[str, Any]]:
    """A widget of a decimal number."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": step, "tooltip": tooltip}


def whole(default: int, low: int, high: int, step: int = 1, *, tooltip: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """A widget of a whole number."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip, **more}


def choice(options: tuple[str, ...], *, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    """A widget of one of some words; the first is the default."""
    return list(options), {"default": options[0], "tooltip": tooltip}


def pictures_of(image: Tensor) -> list[Picture]:
    """IMAGE, float [B, H, W, C] in [0, 1], as uint8 [H, W, 3] RGB each. Raises BadPicture for other shapes and sizes."""
    import torch

    from lynx_video.errors import BadPicture
    from lynx_video.media.image import MOST_PIXELS, SHORTEST_SIDE

    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4) or not len(image):
        got = list(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise BadPicture(f"image: got {got}; expected IMAGE, which is [pictures, height, width, 3].")
    height, width = image.shape[1:3]
    if min(height, width) < SHORTEST_SIDE or height * width > MOST_PIXELS:
        raise BadPicture(
            f"image: {width} x {height} pixels; expected sides of {SHORTEST_SIDE} or more, "
            f"and {MOST_PIXELS // 10**6} megapixels or fewer."
        )
    if not torch.isfinite(image).all():
        raise BadPicture("image: some of its values are not numbers; look at the node it comes from.")
    pixels = image[..., :3].detach().cpu().float().clamp(0, 1) * 255
    return list(pixels.round().to(torch.uint8).numpy())


def image_of(video: Video) -> Tensor:
    """uint8 [F, H, W, 3] as IMAGE, float32 [F, H, W, 3] in [0, 1]."""
    import torch

    return torch.tensor(video).float() / 255


def config_of(values: dict[str, Any]) -> GenerateConfig:
    """GenerateConfig of a node's widgets: 0 and empty texts are the model's defaults. Raises BadRequest naming the widget."""
    from lynx_video.config import GenerateConfig

    said = {name: values[name] for name in (*INFLUENCES, "seed", "scheduler", "guidance_stop")}
    said |= {name: values[name] or None for name in (*SIZES, "guidance_scale", "flow_shift")}
    return GenerateConfig(
        **said,
        negative_prompt=values["negative_prompt"] or None,
        guidance_scale_i=_identity_guidance(values["guidance_scale_i"]),
        ip_blocks=blocks_of("ip_blocks", values["ip_blocks"]),
        ref_blocks=blocks_of("ref_blocks", values["ref_blocks"]),
    )


def blocks_of(name: str, words: str) -> frozenset[int] | None:
    """`0-9,20` as block numbers, an empty text as None. Raises BadRequest."""
    from lynx_video.errors import BadRequest

    if not words.strip():
        return None
    found: set[int] = set()
    for part in words.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise BadRequest(f"{name}: {words!r} is no list of blocks such as 0-9,20; leave it empty for all.")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def _identity_guidance(words: str) -> Any:
    from lynx_video.errors import BadRequest

    if words.strip() in ("", "none"):
        return words.strip() or None
    try:
        return float(words)
    except ValueError:
        raise BadRequest(
            f"guidance_scale_i: {words!r}; expected a number, none (two passes), or nothing for the model's default."
        ) from None


def to_json(value: Any) -> str:
    """Plain values as text that people can read, too."""
    return json.dumps(value, indent=2, ensure_ascii=False)
