"""What the people of a benchmark are asked to do: 20 prompts for photographs, 20 in nano's words, or a file of one's own.

Our prompts say "the person" and nothing that a portrait says better: no gender, age, ethnicity, looks or named place, so that
every prompt suits every subject and a miss is the model's. `loaded_words` is the check of that.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from lynx_video.errors import BadData

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_KEYS = ("prompt", "id", "why")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """id: its name in results and files, of letters, digits, - _ and dots. text: what a model is given. why: what it tests."""

    id: str
    text: str
    why: str = ""


PROMPTS = (
    Prompt(
        id="turns-head",
        text="Close-up of the person in front of a plain grey wall, slowly turning the head to the left, then to the right, "
        "then back to the camera.",
        why="pose: the face has to hold in profile, not only from the front",
    ),
    Prompt(
        id="laughs",
        text="Close-up of the person breaking into a wide, open laugh, eyes narrowed and shoulders shaking, then calming down "
        "to a smile.",
        why="expression: a strong one, which changes the shape of the whole face",
    ),
    Prompt(
        id="surprised",
        text="The person looks up from a letter in sudden surprise, eyebrows raised and mouth open, shown from the chest up.",
        why="expression: far from the neutral face of most portraits",
    ),
    Prompt(
        id="talks",
        text="The person, seen from the waist up, tells a story to the camera, lips moving and both hands gesturing.",
        why="expression: quick small motion of mouth and hands together",
    ),
    Prompt(
        id="drinks-tea",
        text="The person sits at a wooden table, lifts a steaming cup with both hands, drinks from it and puts it down again.",
        why="object: the cup hides part of the face for a while",
    ),
    Prompt(
        id="reads-book",
        text="The person sits beside a window with an open book, eyes moving along the lines, turns a page and looks outside.",
        why="object: the gaze goes down and aside, the camera is ignored",
    ),
    Prompt(
        id="plays-guitar",
        text="The person sits on a stool and plays an acoustic guitar, fingers changing chords, the head moving with the rhythm.",
        why="object: fingers on strings, the face smaller than in a portrait",
    ),
    Prompt(
        id="chops-vegetables",
        text="The person stands at a kitchen counter, chops carrots on a board with a knife and sweeps them into a bowl.",
        why="object: a task in steps, with a result to be seen",
    ),
    Prompt(
        id="walks-closer",
        text="The person walks along a forest path towards the camera, at first seen in full body, at last filling the frame from "
        "the chest up.",
        why="distance: one identity from full body to close",
    ),
    Prompt(
        id="far-away",
        text="A wide view of an empty beach; the person stands small in the frame near the water and waves with one arm.",
        why="distance: a face of few pixels; a head shot is a miss",
    ),
    Prompt(
        id="runs",
        text="The person, in running clothes, runs through a park while the camera tracks alongside, trees passing in the background.",
        why="action: fast motion of the whole body, in profile",
    ),
    Prompt(
        id="dances",
        text="In full body, the person dances alone in an empty studio with a wooden floor, spinning around once with arms spread.",
        why="action: the face leaves and comes back during the turn",
    ),
    Prompt(
        id="camera-circles",
        text="The person stands still on a rooftop at dusk; the camera moves around in a half circle, from one profile to the other.",
        why="camera: the view turns, not the head",
    ),
    Prompt(
        id="camera-pushes-in",
        text="The person sits on a bench in a garden; the camera starts with a wide view and slowly moves in to a close-up.",
        why="camera: scale and detail change within one shot",
    ),
    Prompt(
        id="candle-light",
        text="In a dark room the person leans over a table, lit only by one flickering candle, and blows it out.",
        why="light: little of it, from below, and then gone",
    ),
    Prompt(
        id="low-sun",
        text="The person stands in a field of tall grass with the low sun behind, face in shadow and outline glowing, and turns "
        "towards the light.",
        why="light: against the sun, then in it; portraits are lit from the front",
    ),
    Prompt(
        id="rain",
        text="On a street at night the person opens an umbrella in heavy rain and walks on, wet pavement reflecting coloured lights.",
        why="weather: rain and reflections, an object that opens",
    ),
    Prompt(
        id="snow",
        text="The person, wrapped in a thick winter coat and a scarf, stands in falling snow and breathes out a cloud of mist.",
        why="weather: snow, and clothes up to the chin",
    ),
    Prompt(
        id="puts-on-jacket",
        text="In front of a mirror the person takes a red jacket from a hook, puts it on and closes the buttons.",
        why="clothing: it changes within the clip, as asked and in the colour asked for",
    ),
    Prompt(
        id="space-suit",
        text="The person, in a white space suit with the visor open, walks with slow steps over grey, dusty ground under a black sky.",
        why="clothing: nothing of the portrait's clothes or background may come along",
    ),
)


# (motion, shirt, wall): each motion, shirt and wall two or three times, no pair twice, no shirt on a wall of its own or a near colour
_NANO = (
    ("stays still", "orange", "blue"),
    ("stays still", "purple", "red"),
    ("nods", "orange", "black"),
    ("nods", "yellow", "purple"),
    ("nods", "green", "white"),
    ("shakes the head", "white", "purple"),
    ("shakes the head", "blue", "white"),
    ("shakes the head", "black", "green"),
    ("tilts the head", "orange", "green"),
    ("tilts the head", "green", "blue"),
    ("tilts the head", "yellow", "red"),
    ("moves to the left", "blue", "yellow"),
    ("moves to the left", "black", "orange"),
    ("moves to the left", "green", "purple"),
    ("moves to the right", "red", "white"),
    ("moves to the right", "purple", "yellow"),
    ("moves to the right", "yellow", "black"),
    ("smiles", "red", "blue"),
    ("smiles", "black", "red"),
    ("smiles", "white", "orange"),
)
_SHORT = {
    "stays still": "still",
    "shakes the head": "shakes",
    "tilts the head": "tilts",
    "moves to the left": "left",
    "moves to the right": "right",
}
NANO_PROMPTS = tuple(
    Prompt(
        id=f"{_SHORT.get(motion, motion)}-{shirt}-on-{wall}",
        text=f"the person {motion} wearing a {shirt} shirt in front of a {wall} wall",
        why=f"motion: {motion}; the {shirt} shirt and the {wall} wall can be told from the pixels",
    )
    for motion, shirt, wall in _NANO
)


_LOADED = {
    "gender": "he him his himself she her hers herself man men woman women boy boys girl girls guy lady ladies gentleman gentlemen "
    "male female masculine feminine mother father mom dad son daughter brother sister husband wife bride groom king queen actor "
    "actress waiter waitress businessman businesswoman policeman fireman sir madam mr mrs ms",
    "age": "young younger old older elderly aged adult teen teenage teenager child children kid kids baby toddler senior youth "
    "youthful middle-aged grandmother grandfather grandparent schoolchild",
    "origin": "african american asian arab arabic brazilian british caucasian chinese english european french german hispanic "
    "indian italian japanese korean latina latino latin mexican russian spanish western eastern skin skinned ethnic race muslim "
    "christian jewish hindu buddhist",
    "looks": "beautiful handsome pretty attractive ugly fat slim muscular bald blond blonde brunette redhead hair haired beard "
    "bearded moustache mustache freckles wrinkles makeup lipstick ponytail",
    "place": "africa america asia australia europe china japan india usa england france germany italy spain russia brazil mexico "
    "paris london tokyo york beijing shanghai rome berlin moscow venice egypt sahara alps himalaya hollywood broadway eiffel manhattan",
}  # fmt: skip


def loaded_words(text: str) -> list[str]:
    """Words of a prompt, as written, that say or suggest gender, age, origin, looks or a place; empty if there are none.

    A capitalised word within a sentence counts as a name. A list of words cannot know them all: it is a check, not a proof.
    """
    kinds = {word for words in _LOADED.values() for word in words.split()}
    found = []
    for sentence in re.split(r"(?<=[.!?:;])\s+", text):
        words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", sentence)
        for i, word in enumerate(words):
            parts = {word.lower(), *word.lower().split("-")}
            if parts & kinds or (i > 0 and word[0].isupper() and word != "I"):
                found.append(word)
    return found


def slug(text: str) -> str:
    """A short name for a text, the same everywhere: its first words, and a hash of all of it where words were left out."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = ""
    for word in words:
        if len(name) + 1 + len(word) > 40:
            break
        name += f"-{word}" if name else word
    letters = "".join(one for one in text.lower() if one.isalnum())
    if name and name.replace("-", "") == letters:
        return name
    return f"{name or 'prompt'}-{hashlib.sha256(text.strip().encode()).hexdigest()[:6]}"


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """Prompts of one's own: a .txt with a prompt a line, or a .jsonl of {"prompt": TEXT, "id": NAME, "why": TEXT}.

    `id` may be left out and is then the prompt's `slug`, as in a .txt; empty lines are passed over.

    Raises:
        BadData: unreadable, another extension, no prompt at all; by line: not UTF-8, broken JSON, a missing, empty, unknown or
            wrong value, an id that is no file name, an id that an earlier line has.
    """
    kind = file.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise BadData(f"{file}: unknown extension {file.suffix!r}; expected .txt (a prompt a line) or .jsonl.")
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise BadData(f"{file}: can't be read ({error.strerror or error}); expected a file of prompts.") from error
    prompts: dict[str, Prompt] = {}
    where: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            line = raw.decode("utf-8").strip()
            prompt = Prompt(id=slug(line), text=line) if kind == ".txt" else _prompt(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise BadData(f"{file}, line {number}: {' '.join(str(error).split())[:200]}.") from error
        if prompt.id in prompts:
            raise BadData(
                f"{file}, line {number}: the id {prompt.id!r} is that of line {where[prompt.id]}; give each prompt its own."
            )
        prompts[prompt.id], where[prompt.id] = prompt, number
    if not prompts:
        raise BadData(f"{file} has no prompt in it; expected a prompt a line.")
    return tuple(prompts.values())


def _prompt(values: object) -> Prompt:
    """Raises ValueError saying what is wrong with the JSON values of a line."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}, got {type(values).__name__}")
    if unknown := sorted(set(values) - set(_KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}")
    for name, given in values.items():
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"{name} must be text and not empty, got {given!r}")
    if "prompt" not in values:
        raise ValueError("the key prompt is missing")
    text = values["prompt"].strip()
    name = values.get("id", "").strip() or slug(text)
    if not _ID.fullmatch(name):
        raise ValueError(f"id must be up to 80 letters, digits, dots, - or _, as it becomes a file's name, got {name!r}")
    return Prompt(id=name, text=text, why=values.get("why", "").strip())
