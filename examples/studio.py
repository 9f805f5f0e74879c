"""Clips as the command line publishes them: checked, watermarked, signed. The model is loaded once."""

from pathlib import Path

from lynx_video import Request, Setup, Studio
from lynx_video.media.image import write_picture
from lynx_video.nano.people import portrait

write_picture("alice.png", portrait(seed=5))
studio = Studio(Setup())  # nano; Setup(model=ModelFlags(model="lynx-full")) is the real one
for seed in (1, 2):
    request = Request(
        prompt="the person nods in front of a blue wall",
        portrait=Path("alice.png"),
        preset="balanced",
        generation={"seed": seed},
    )
    made = studio.make(request, Path(f"alice-{seed}.mp4"))
    print(made.output, f"similarity {made.clip.similarity:.2f}")
