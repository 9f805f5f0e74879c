"""From portrait and prompt to a clip: load, identify, condition, guide, denoise, decode."""
