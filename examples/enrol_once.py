"""Enrol a person once, then generate without a face model and without the adapter's weights."""

from lynx_video import GenerateConfig, generate, load
from lynx_video.nano.people import portrait
from lynx_video.pipeline.enrol import enrol, load_enrolment, save_enrolment
from lynx_video.pipeline.identify import identify

components = load("nano")
sitter = identify(
    components.faces, portrait(seed=5), reference_size=components.defaults.reference_size, consent="drawn, nobody to ask"
)
save_enrolment("alice.safetensors", enrol(components, sitter.identity))

without_adapter = load("nano", with_adapter=False)
alice = load_enrolment("alice.safetensors")
for seed in (1, 2):
    clip = generate(without_adapter, alice, "the person nods in front of a blue wall", GenerateConfig(seed=seed))
    print(f"seed {seed}: similarity {clip.similarity:.2f}")
