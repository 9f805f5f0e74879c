"""A portrait and a prompt: one clip. Runs on the nano model; `load("lynx-full")` is the real one."""

from lynx_video import GenerateConfig, generate, load
from lynx_video.media.image import write_picture
from lynx_video.media.video import write_video
from lynx_video.nano.people import portrait

write_picture("portrait.png", portrait(seed=3))  # somebody drawn a moment ago
components = load("nano")
clip = generate(
    components, "portrait.png", "a person smiles wearing a red shirt in front of a white wall", GenerateConfig(seed=1)
)
write_video("clip.mp4", clip.frames, clip.fps, clip.settings)
print(f"clip.mp4: similarity {clip.similarity:.2f}, {clip.seconds:.1f} s")
