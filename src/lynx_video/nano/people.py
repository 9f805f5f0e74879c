"""People for demonstrations and for the benchmark: drawn from seeds that nothing in the box was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lynx_video.nano.faces import People
    from lynx_video.types import Picture

HELD_OUT = 9_000_000  # where the seeds of the evaluation begin; training draws from far below
SIZE = 256
_BENCHMARK = 1_000_000  # the people of the benchmark come this far above those of demonstrations


def portrait(seed: int, size: int = SIZE) -> Picture:
    """uint8 [size, size, 3] RGB: person number `seed`, looking straight ahead as for a passport. The same seed, the same person."""
    who, rng = _person(seed)
    return _photo(who, rng, 0.0, size)


def benchmark_person(number: int) -> People:
    """Person `number` of the benchmark, a batch of one."""
    return _person(_BENCHMARK + number)[0]


def album(number: int, others: int, size: int = SIZE) -> list[Picture]:
    """Photos of person `number` of the benchmark, uint8 [size, size, 3] RGB: almost straight ahead, then `others` that look elsewhere.

    Each in clothes and before a wall of its own.
    """
    who, rng = _person(_BENCHMARK + number)
    return [_photo(who, rng, spread, size) for spread in (0.3, *[1.0] * others)]


def _person(seed: int) -> tuple[People, torch.Generator]:
    import torch

    from lynx_video.nano import faces

    rng = torch.Generator().manual_seed(HELD_OUT + seed)
    return faces.people(1, rng), rng


def _photo(who: People, rng: torch.Generator, spread: float, size: int) -> Picture:
    import torch

    from lynx_video.nano import faces

    picture = faces.draw(who, faces.scenes(who, rng), faces.poses(1, rng, spread=spread), size)[0]
    drawn: Picture = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return drawn
