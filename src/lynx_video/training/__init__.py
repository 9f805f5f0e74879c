"""Training: from a folder of clips to adapters, packed, from two CPU cores to a cluster."""

from lynx_video.training.objective import PackedStep, packed_step
from lynx_video.training.sample import Sample

__all__ = ["PackedStep", "Sample", "packed_step"]
