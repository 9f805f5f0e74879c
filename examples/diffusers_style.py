"""The same in the shape of a diffusers pipeline, with a step callback and weaker adapters."""

from lynx_video import LynxPipeline
from lynx_video.nano.people import portrait

pipe = (
    LynxPipeline.from_pretrained()
)  # nano; from_pretrained("models/Wan2.1-T2V-14B-Diffusers", "models/lynx_full") is the real one
clip = pipe(
    portrait(seed=8),
    "someone shakes the head wearing a black shirt in front of an orange wall",
    num_inference_steps=10,
    ip_scale=0.8,
    ref_scale=0.6,
    ref_stop=0.7,
    callback_on_step_end=lambda step: print(f"step {step.number} of {step.total}"),
)
print(clip.frames.shape, clip.fps)
