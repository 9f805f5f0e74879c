"""Made-up records, drawn clips for them, and a page taken apart, for the tests of the evaluation's results."""

import dataclasses
import hashlib
import json
from html.parser import HTMLParser

import numpy as np

from lynx_video.evaluation.entry import Record
from lynx_video.evaluation.summary import summarise, write_json
from lynx_video.media.image import write_picture
from lynx_video.media.video import write_video
from lynx_video.nano.people import portrait

VOID = {"meta", "img", "input"}


def record(key, subject="anna", prompt_id="walk", **changes):
    """A record with a few scores; scores= replaces them."""
    facts = {
        "clip": f"{key}.mp4",
        "reference": f"people/{subject}.png",
        "prompt": f"A person: {prompt_id}.",
        "seed": 0,
        "frames": 5,
        "fps": 8.0,
        "height": 64,
        "width": 64,
        "scores": {"similarity/judge": 0.5, "coverage": 1.0},
    }
    return Record(key=key, subject=subject, prompt_id=prompt_id, **(facts | changes))


def records(subjects=4, prompts=3, shift=0.0, seed=0):
    """A grid with scores of every kind of axis."""
    rng = np.random.default_rng(seed)
    found = []
    for subject in [f"person {i}" for i in range(subjects)]:
        own = rng.normal(0, 0.05)
        for prompt in [f"prompt {i}" for i in range(prompts)]:
            similarity = 0.6 + own + shift + rng.normal(0, 0.05)
            scores = {
                "similarity/judge": similarity,
                "similarity/seen": similarity + 0.1,
                "coverage": 0.9,
                "kept/judge": 0.9 * similarity,
                "judge/aesthetics": 0.8 + rng.normal(0, 0.02),
                "probe/prompt": float(rng.random() < 0.7),
                "flicker": 0.004 + 0.001 * rng.random(),
                "face_size": 0.1,
            }
            found.append(record(f"{subject}/{prompt}", subject, prompt, scores=scores))
    return found


def drawn(folder, found):
    """The records with a clip and a reference of each drawn into `folder`, and the clips' hashes."""
    whole = []
    for i, one in enumerate(found):
        picture = portrait(sum(map(ord, one.subject)), 64)
        if not (folder / one.reference).exists():
            write_picture(folder / one.reference, picture)
        write_video(folder / one.clip, np.stack([np.roll(picture, shift * (i % 3), 1) for shift in range(3)]), 8.0)
        digest = hashlib.sha256((folder / one.clip).read_bytes()).hexdigest()
        whole.append(dataclasses.replace(one, sha256=digest))
    return whole


def evaluation(folder, found, conditioned_on=(), **about):
    """A folder as an evaluation leaves it: scores.jsonl and summary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.jsonl").write_text("".join(json.dumps(one.to_json()) + "\n" for one in found), encoding="utf-8")
    write_json(folder / "summary.json", summarise(found, about, conditioned_on).to_json())
    return folder


class Page(HTMLParser):
    """A page taken apart: its elements with attributes, its text, and whether every element that was opened is closed."""

    def __init__(self, file):
        super().__init__()
        self.file, self.open, self.elements, self.words = file, [], [], []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def all(self, tag, kind=""):
        """The attributes of all elements of a kind."""
        return [attrs for name, attrs in self.elements if name == tag and (not kind or kind in attrs.get("class", "").split())]

    def media(self):
        """What the script finds: addresses by number, those shown in the page among them."""
        store = json.loads(self.source.split('id="media">')[1].split("</script>")[0])
        return store | {attrs["data-shown"]: attrs["src"] for _, attrs in self.elements if "data-shown" in attrs}

    def section(self, title):
        """The source below a heading, up to the next of its level."""
        return self.source.split(f"<h2>{title}</h2>")[1].split("<h2>")[0].split("</main>")[0]
