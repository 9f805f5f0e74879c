"""`draft` under its first address; it lives in `lynx_video.draft`, where every layer can reach it."""

from lynx_video.draft import draft

__all__ = ["draft"]
