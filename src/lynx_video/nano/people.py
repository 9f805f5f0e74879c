"""People for demonstrations: drawn from seeds that nothing in the box was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_video.types import Picture

HELD_OUT = 9_000_000  # where the seeds of the evaluation begin; training draws from far below
SIZE = 256


def portrait(seed: int, size: int = SIZE) -> Picture:
    """uint8 [size, size, 3] RGB: person number `seed`, looking straight ahead as for a passport. The same seed, the same person."""
    import torch

    from lynx_video.nano import faces

    rng = torch.Generator().manual_seed(HELD_OUT + seed)
    who = faces.people(1, rng)
    picture = faces.draw(who, faces.scenes(who, rng), faces.poses(1, rng, spread=0.0), size)[0]
    drawn: Picture = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return drawn
