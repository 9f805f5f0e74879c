"""Training: from a folder of clips to adapters, packed, from two CPU cores to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_video.training.objective import PackedStep, packed_step
    from lynx_video.training.sample import Sample

__all__ = ["PackedStep", "Sample", "packed_step"]


def __getattr__(name: str) -> Any:
    """The public names, loaded when first asked for, so that `lynx-video --help` need not import torch."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'sample' if name == 'Sample' else 'objective'}"), name)
