"""The two adapters on the stock diffusers transformer: resampler, projections, processors, memories, official files."""
