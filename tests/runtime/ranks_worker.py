"""Small generations that processes share: ranks_worker.py OUT CASE..., in processes that torchrun starts; imported, in one process.

What each process found lies in OUT/CASE.RANK.safetensors.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from lynx_video.adapters.memory import text_memory
from lynx_video.errors import Cancelled
from lynx_video.pipeline.guidance import passes
from lynx_video.pipeline.load import load
from lynx_video.runtime.compiling import compile_, count_compilations
from lynx_video.runtime.parallel import Degrees, place, processes, ranks, sharing_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
NANO = (1, 12, 5, 16, 16)  # 320 tokens, in 3 heads
LONGER = (1, 12, 6, 16, 16)  # 384
EVEN = (1, 16, 2, 12, 12)  # 72 tokens of the golden base, in 4 heads
ODD = (1, 16, 3, 10, 6)  # 45
HALF = (1, 16, 3, 12, 6)  # 54


class Case(NamedTuple):
    """A generation: the model, the shape of its latents, and how it is shared. stop: guidance ends after so many of the steps."""

    model: str
    shape: tuple[int, ...]
    degrees: Degrees
    stop: int = 3


CASES = {
    "two share three passes": Case("nano", NANO, Degrees(passes=2), stop=2),
    "two share the heads": Case("golden", EVEN, Degrees(ulysses=2)),
    "two share the tokens": Case("golden", EVEN, Degrees(ring=2)),
    "two share odd tokens": Case("golden", ODD, Degrees(ring=2)),
    "three share three passes": Case("nano", NANO, Degrees(passes=3), stop=2),
    "three share the heads": Case("nano", LONGER, Degrees(ulysses=3)),
    "three share the tokens": Case("nano", NANO, Degrees(ring=3)),
    "four share passes and heads": Case("golden", EVEN, Degrees(passes=2, ulysses=2), stop=2),
    "four share passes and tokens": Case("golden", ODD, Degrees(passes=2, ring=2)),
    "four share heads and tokens": Case("golden", EVEN, Degrees(ulysses=2, ring=2)),
    "four share heads and odd tokens": Case("golden", HALF, Degrees(ulysses=2, ring=2)),
}
STEPS = 3


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(name):
    golden = {"base": GOLDEN / "base", "adapter": GOLDEN / "lynx_full"}
    return load(**(golden if name == "golden" else {}), dtype=torch.float32, device="cpu")


@torch.no_grad()
def generate(components, case, mine=None, seed=0, on_step=None):
    """Latents after three steps as the pipeline makes them; keys of the reference; how many tokens a block had in each forward."""
    transformer, adapter = components.transformer, components.adapter
    width, channels = transformer.config.text_dim, case.shape[1]
    still = (1, channels, 1, 8, 8)  # 16 tokens
    texts = {name: text_memory(transformer, drawn(i, 1, 12, width)) for i, name in enumerate(("prompt", "negative"))}
    person = adapter.remember(drawn(2, 512), drawn(3, *still), drawn(4, 1, 7, width))
    memories = {"person": person, "nobody": adapter.remember(torch.zeros(512), torch.zeros(still), drawn(4, 1, 7, width))}
    scheduler = type(components.scheduler).from_config(components.scheduler.config)
    scheduler.set_timesteps(STEPS)
    latents, seen = drawn(10 + seed, *case.shape), []
    watch = transformer.blocks[1].ffn.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with sharing_tokens(transformer, mine):
        for number, t in enumerate(scheduler.timesteps):
            table = passes(5.0, 2.0) if number < case.stop else passes(1.0, None)
            found = []
            for one in mine.share(table) if mine else table:
                text = texts[one.text]
                with adapter.using(memories[one.who], text=text):
                    out = transformer(latents, t.expand(1), text.embeddings[:, :1], return_dict=False)[0]
                found.append(out)
            if mine:
                found = mine.gather(found, len(table), latents)
            velocity = torch.zeros_like(latents)
            for one, prediction in zip(table, found, strict=True):
                velocity += one.weight * prediction
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
            if on_step:
                on_step(number)
    watch.remove()
    features = torch.cat([pair.key.flatten() for pair in person.reference.values()])
    return {"latents": latents, "features": features, "tokens": torch.tensor(seen)}


def share(name, out, among):
    """Two generations one after the other on the same model, and how many tokens each forward of a block had."""
    case = CASES[name]
    mine, components = place(among, case.degrees), model(case.model)
    found = {f"{key} {seed}": value for seed in (0, 1) for key, value in generate(components, case, mine, seed).items()}
    assert all(block.attn1.processor._parallel_config is None for block in components.transformer.blocks)
    save_file(found, out / f"{name}.{among.rank}.safetensors")


def compiled(out, among):
    """How many graphs there are after each of two generations with compiled blocks, and how far they are from plain ones."""
    found = {}
    for name in ("heads", "tokens"):
        case = CASES[f"two share the {name}"]
        components, mine, graphs = model(case.model), place(among, case.degrees), []
        plain = [generate(components, case, mine, seed)["latents"] for seed in (0, 1)]
        compile_(components.transformer, backend="eager")
        with count_compilations() as count:
            for seed, before in enumerate(plain):
                after = generate(components, case, mine, seed)["latents"]
                graphs.append(count.graphs)
                found[f"{name} difference"] = (after - before).abs().max()
        found[f"{name} graphs"] = torch.tensor(graphs)
    save_file(found, out / f"compiled.{among.rank}.safetensors")


def stop(out, among):
    """Only the first process is asked to stop, in its second step."""
    asked, mine = [], place(among, Degrees(passes=2))

    def on_step(number):
        asked.append(number)
        if mine.agree(mine.first and number == 1):
            raise Cancelled("enough")

    try:
        generate(model("nano"), CASES["two share three passes"], mine, on_step=on_step)
    except Cancelled:
        save_file({"steps": torch.tensor(asked)}, out / f"stop.{among.rank}.safetensors")


def fail():
    """The second process fails in mid-run; the first waits for what it does not get."""
    with ranks("cpu", Degrees(passes=2)) as mine:
        for number in range(3):
            if not mine.first and number == 1:
                raise RuntimeError("the second one fell")
            mine.gather([torch.zeros(2)], 2, torch.zeros(2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *asked = sys.argv[1:]
    if asked == ["fail"]:
        fail()
    else:
        with processes("cpu") as among:  # once: a second group on the same torchrun would wait for keys of the first
            for one in asked:
                {"compiled": compiled, "stop": stop}.get(one, partial(share, one))(Path(folder), among)
