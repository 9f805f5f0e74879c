"""How the shipped nano weights are trained: `python -m lynx_video.nano.recipe STAGE`, or `make nano` for all stages in order.

Stages: vae, face (encoder, judge, detector), data, base, adapters. Each reads what the earlier ones left in the run folder,
writes checkpoints there, and goes on from its last checkpoint when started again.
"""
