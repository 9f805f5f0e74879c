"""What a clip will look like, from the middle of making it: the first frame of what a step guesses the clean latents to be.

One latent frame goes through the stock VAE's decoder and nothing through the transformer: of what a step of three passes computes at
81 frames of 480 x 832 that is less than a thousandth. It waits for the device, and needs what one decoded frame needs of its memory
beside what the denoising holds; a VAE that lies in host memory comes to the device for it and leaves again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.memories import on_device

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components
    from lynx_video.pipeline.denoise import Step
    from lynx_video.types import Picture


def preview(components: Components, step: Step) -> Picture:
    """The first frame as `step` guesses it, uint8 [H, W, 3] RGB. To be called from the step callback."""
    vae = components.vae
    away = next(vae.parameters()).device.type != components.device.type
    with on_device(components, "vae", "offload" if away else "keep"):
        frames = decode(vae, step.clean[:, :, :1], tiling=bool(components.runtime.vae_tiling))
    picture: Picture = frames[0].numpy()
    return picture
