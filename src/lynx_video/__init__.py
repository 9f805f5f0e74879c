"""Lynx Video: video of a real person from one photo.

`load` the components, `generate` a clip; or let a `Studio` check, make, mark and sign it. Importing the package loads neither torch
nor diffusers; the names below do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lynx_video.config import GenerateConfig, RuntimeConfig
    from lynx_video.pipeline.diffusers_api import LynxPipeline
    from lynx_video.pipeline.generate import generate
    from lynx_video.pipeline.load import load
    from lynx_video.studio.request import Request
    from lynx_video.studio.setup import Setup
    from lynx_video.studio.studio import Studio

_HOMES = {
    "load": "lynx_video.pipeline.load",
    "generate": "lynx_video.pipeline.generate",
    "GenerateConfig": "lynx_video.config",
    "RuntimeConfig": "lynx_video.config",
    "LynxPipeline": "lynx_video.pipeline.diffusers_api",
    "Request": "lynx_video.studio.request",
    "Setup": "lynx_video.studio.setup",
    "Studio": "lynx_video.studio.studio",
}
__all__ = ["GenerateConfig", "LynxPipeline", "Request", "RuntimeConfig", "Setup", "Studio", "__version__", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lynx_video' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
