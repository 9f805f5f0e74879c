"""How the shipped nano weights are trained: `make nano`, or a stage at a time, `python -m lynx_video.nano.recipe STAGE`.

Stages: vae, face (encoder, judge, detector), data, base, export, few_step (a LoRA over the exported base). Each reads what the earlier
ones left in the run folder, writes checkpoints there, and goes on from its last checkpoint when started again. The adapters are not
trained here: `lynx-video train` makes them over the exported base, like anybody's, and a second export puts them into the package.
"""
