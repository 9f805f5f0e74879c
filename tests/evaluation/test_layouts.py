"""Folders as we and as other projects make them: every clip an entry, every fault named, nothing in the folder changed."""

import csv
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from lynx_video.errors import BadData
from lynx_video.evaluation.layouts import read_folder, tell_layout

LINE = {
    "clip": "clips/anna/nods-s0.mp4",
    "subject": "anna",
    "reference": "subjects/anna/reference.png",
    "others": ["subjects/anna/other-1.png"],
    "prompt": "The person nods.",
    "prompt_id": "nods",
    "seed": 0,
}


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def ours(root, *lines, name="manifest.jsonl"):
    put(root, "clips/anna/nods-s0.mp4", "subjects/anna/reference.png", "subjects/anna/other-1.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (root / name).write_text(text, encoding="utf-8")
    return root


def told(problems):
    return {(one.item, one.reason) for one in problems}


def detail(problems, reason):
    return next(one.detail for one in problems if one.reason == reason)


# --- ours


def test_a_line_of_our_manifest_becomes_an_entry(tmp_path):
    entries, problems = read_folder(ours(tmp_path, LINE))
    assert problems == []
    (entry,) = entries
    assert entry.key == "anna/nods-s0"
    assert (entry.subject, entry.prompt, entry.prompt_id, entry.seed) == ("anna", "The person nods.", "nods", 0)
    assert entry.clip == tmp_path / "clips/anna/nods-s0.mp4"
    assert entry.reference == tmp_path / "subjects/anna/reference.png"
    assert entry.others == (tmp_path / "subjects/anna/other-1.png",)


def test_what_may_be_left_out_may_be_left_out(tmp_path):
    line = {key: LINE[key] for key in ("clip", "subject", "reference", "prompt")}
    (entry,), problems = read_folder(ours(tmp_path, "\ufeff" + json.dumps(line), "", "  "))
    assert problems == []
    assert (entry.key, entry.prompt_id, entry.seed, entry.others) == ("anna/the-person-nods", "the-person-nods", None, ())


def test_entries_come_in_the_order_of_their_keys_whatever_that_of_the_lines(tmp_path):
    lines = [LINE | {"seed": seed, "clip": f"clips/{seed}.mp4"} for seed in range(3)]
    put(tmp_path, *(line["clip"] for line in lines))
    there = read_folder(ours(tmp_path, *lines))[0]
    assert [entry.seed for entry in there] == [0, 1, 2]
    assert read_folder(ours(tmp_path, *lines[::-1]))[0] == there


def test_names_with_spaces_other_scripts_other_extensions_and_other_unicode_forms(tmp_path):
    composed, apart = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))
    put(
        tmp_path, f"clips/{apart} x/ü.MP4", f"who/{apart}.png", "clips/动 画.WebP", "clips/a.mov", "clips/b.gif", "clips/c.webm"
    )
    names = [f"clips/{composed} x/ü.MP4", "clips/动 画.WebP", "clips/a.mov", "clips/b.gif", "clips/c.webm"]
    lines = [LINE | {"clip": name, "seed": i, "reference": f"who/{composed}.png"} for i, name in enumerate(names)]
    (tmp_path / "manifest.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    put(tmp_path, "subjects/anna/other-1.png")
    entries, problems = read_folder(tmp_path)
    assert problems == []
    assert len(entries) == 5
    assert all(entry.clip.is_file() and entry.reference.is_file() for entry in entries)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"clip": "a.mp4"', "delimiter"),
        ('"clip"', "expected an object .* got str"),
        (json.dumps({key: LINE[key] for key in LINE if key != "subject"}), "the key subject is missing"),
        (LINE | {"reference": None}, "reference must be text and not empty, got None"),
        (LINE | {"prompt": " "}, "prompt must be text"),
        (LINE | {"prompt_id": 3}, "prompt_id must be text and not empty, got 3"),
        (LINE | {"seed": "0"}, "seed must be a whole number, got '0'"),
        (LINE | {"seed": True}, "seed must be a whole number, got True"),
        (LINE | {"others": "a.png"}, "others must be a list of paths"),
        (LINE | {"others": ["a.png", ""]}, "others must be text and not empty"),
        (LINE | {"clip": "../a.mp4"}, r"clip must be a path within the folder, got '\.\./a\.mp4'"),
        (LINE | {"clip": "/etc/a.mp4"}, "clip must be a path within the folder"),
        (LINE | {"clip": "C:\\a.mp4"}, "clip must be a path within the folder"),
        (LINE | {"clip": "clips/a.png"}, "no clip by its name"),
        (LINE | {"clip": "a\0.mp4"}, "clip must be text"),
        (json.dumps(LINE | {"subject": "\ud800"}), "surrogates not allowed"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, said):
    entries, problems = read_folder(ours(tmp_path, LINE, "", line))
    assert [entry.key for entry in entries] == ["anna/nods-s0"]
    assert told(problems) == {("manifest.jsonl:3", "malformed line")}
    with pytest.raises(BadData, match=said):
        raise BadData(problems[0].detail)


def test_a_line_in_another_encoding_is_named_and_the_others_count(tmp_path):
    ours(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b'{"clip": "\xff"}\n' + json.dumps(LINE).encode())
    entries, problems = read_folder(tmp_path)
    assert len(entries) == 1
    assert told(problems) == {("manifest.jsonl:1", "malformed line")}


def test_a_line_separator_within_a_prompt_is_no_end_of_line(tmp_path):
    (entry,), problems = read_folder(ours(tmp_path, LINE | {"prompt": "one\u2028two\x85three"}))
    assert (entry.prompt, problems) == ("one\u2028two\x85three", [])


def test_unknown_keys_are_counted_once_each(tmp_path):
    put(tmp_path, "b.mp4")
    lines = [LINE | {"sead": 1, "fps": 8}, LINE | {"clip": "b.mp4", "seed": 1, "fps": 8}]
    entries, problems = read_folder(ours(tmp_path, *lines))
    assert len(entries) == 2
    assert Counter(one.reason for one in problems) == {"unknown key": 2}
    assert problems[0].detail.startswith("'fps' in 2 lines, ignored; the keys are clip, subject")
    assert problems[1].detail.startswith("'sead' in 1 lines")


def test_the_same_key_and_the_same_clip_twice(tmp_path):
    put(tmp_path, "b.mp4")
    lines = [LINE, LINE | {"clip": "b.mp4"}, LINE | {"seed": 7}]
    (entry,), problems = read_folder(ours(tmp_path, *lines))
    assert entry.clip.name == "nods-s0.mp4"
    assert told(problems) == {("b.mp4", "same key twice"), ("clips/anna/nods-s0.mp4", "same clip twice")}
    assert "anna/nods-s0 is clips/anna/nods-s0.mp4 already" in detail(problems, "same key twice")
    assert "scored as anna/nods-s0 already" in detail(problems, "same clip twice")


def test_a_listed_clip_that_is_not_there_stays_an_entry(tmp_path):
    long = "x" * 300 + ".mp4"
    lines = [LINE, LINE | {"clip": "gone.mp4", "seed": 1}, LINE | {"clip": long, "seed": 2}]
    entries, problems = read_folder(ours(tmp_path, *lines))
    assert [entry.clip.name for entry in entries] == ["nods-s0.mp4", "gone.mp4", long]
    assert told(problems) == {("gone.mp4", "missing clip"), (long, "missing clip")}


def test_photos_that_are_not_there_or_no_use(tmp_path):
    others = ["subjects/anna/other-1.png", "subjects/anna/gone.png", "subjects/anna/reference.png"]
    put(tmp_path, "b.mp4")
    lines = [LINE | {"others": others}, LINE | {"clip": "b.mp4", "reference": "who.png", "seed": 1}]
    entries, problems = read_folder(ours(tmp_path, *lines))
    assert [one.name for one in entries[0].others] == ["other-1.png"]
    assert entries[1].reference == tmp_path / "who.png"
    assert Counter(one.reason for one in problems) == {"useless other photo": 2, "missing reference": 1}
    assert any("gone.png is not there" in one.detail for one in problems)
    assert any("reference.png is the reference itself" in one.detail for one in problems)


def test_one_prompt_id_for_two_prompts(tmp_path):
    put(tmp_path, "b.mp4")
    entries, problems = read_folder(
        ours(tmp_path, LINE, LINE | {"clip": "b.mp4", "subject": "bert", "prompt": "The person smiles."})
    )
    assert len(entries) == 2
    assert told(problems) == {("bert/nods-s0", "prompt_id of two prompts")}


def test_clips_that_no_line_names(tmp_path):
    put(
        tmp_path,
        "clips/bert/a.MKV",
        "clips/anna/b.webp",
        "subjects/bert/portrait.webp",
        ".cache/c.mp4",
        "clips/._d.mp4",
        "e.txt",
    )
    _, problems = read_folder(ours(tmp_path, LINE))
    assert told(problems) == {("clips/bert/a.MKV", "not listed"), ("clips/anna/b.webp", "not listed")}


def test_links_are_followed_and_circles_are_not(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    put(outside, "a.mp4", "photo.png", "more/c.mp4")
    ours(folder, LINE, LINE | {"clip": "clips/link.mp4", "seed": 1}, LINE | {"clip": "deep/c.mp4", "seed": 2})
    (folder / "clips/link.mp4").symlink_to(outside / "a.mp4")
    (folder / "clips/anna/again").symlink_to(folder)
    (folder / "the same").symlink_to(folder / "clips")
    (folder / "deep").symlink_to(outside / "more")
    entries, problems = read_folder(folder)
    assert problems == []
    assert [entry.clip.is_file() for entry in entries] == [True] * 3


def test_photos_may_lie_anywhere(tmp_path):
    put(tmp_path, "photos/a.png", "photos/b.png")
    folder = ours(tmp_path / "clips of x", LINE | {"reference": "../photos/a.png", "others": [str(tmp_path / "photos/b.png")]})
    (entry,), problems = read_folder(folder)
    assert problems == []
    assert entry.reference.samefile(tmp_path / "photos/a.png")
    assert entry.others == (tmp_path / "photos/b.png",)


def test_one_manifest_elsewhere_serves_the_folders_of_several_systems(tmp_path):
    bench = ours(tmp_path / "bench", LINE, name="grid.jsonl")
    for system in ("a", "b"):
        put(tmp_path / system, LINE["clip"])
        (entry,), problems = read_folder(tmp_path / system, manifest=bench / "grid.jsonl")
        assert problems == []
        assert entry.clip == tmp_path / system / LINE["clip"]
        assert entry.reference == bench / LINE["reference"]
    put(tmp_path / "faces", LINE["reference"], LINE["others"][0])
    (entry,), _ = read_folder(tmp_path / "a", manifest=bench / "grid.jsonl", references=tmp_path / "faces")
    assert entry.reference == tmp_path / "faces" / LINE["reference"]


def test_folders_with_nothing_to_score(tmp_path):
    empty = tmp_path / "empty"
    put(empty, "notes.txt", ".hidden.mp4")
    for layout in ("lynx", "opens2v", "consisid"):
        with pytest.raises(BadData, match=r"no clips in it; looked there and below for files ending in .*\.mp4, .*\.webp"):
            read_folder(empty, layout=layout)
    with pytest.raises(BadData, match=r"none of its 1 clips can be scored, 2 problems\. First manifest\.jsonl:1"):
        read_folder(ours(tmp_path / "broken", "{"))
    with pytest.raises(BadData, match="none of its 1 clips can be scored"):
        read_folder(ours(tmp_path / "gone", LINE | {"clip": "gone.mp4"}))
    with pytest.raises(BadData, match=r"No reference photo is there; .*who\.png is the first.*--references"):
        read_folder(ours(tmp_path / "faceless", LINE | {"reference": "who.png"}))
    put(tmp_path / "bare", "a.mp4")
    with pytest.raises(BadData, match=r"manifest\.jsonl: can't be read"):
        read_folder(tmp_path / "bare", layout="lynx")


def test_arguments_that_name_nothing(tmp_path):
    folder = ours(tmp_path, LINE)
    for arguments, said in (
        ({"manifest": tmp_path / "no.json"}, "not there; expected a manifest"),
        ({"manifest": tmp_path / "clips"}, "something else; expected a manifest"),
        ({"references": tmp_path / "manifest.jsonl"}, "something else; expected a folder of reference photos"),
        ({"layout": "vbench"}, "'vbench' is unknown; expected auto, lynx .*opens2v.*consisid"),
    ):
        with pytest.raises(BadData, match=said):
            read_folder(folder, **arguments)
    with pytest.raises(BadData, match="not there; expected a folder of clips"):
        read_folder(tmp_path / "no")


# --- OpenS2V-Eval

ITEMS = {
    "singleface_1": ["Images/singleface/crop_man/2.png"],
    "singlehuman_7": ["Images/singlehuman/crop_woman/7.png"],
    "faceobj_3": ["Images/humanobj/human/crop_man/commoner/5.jpg", "Images/humanobj/thing/animal/dog/4.jpg"],
    "multiface_2": ["Images/multiface/crop_woman/1.jpg", "Images/multiface/crop_man/2.jpg", "Images/multiface/scene/1.jpg"],
    "singleobj_4": ["Images/singleobject/cup/52.jpg"],
}


def opens2v(tmp_path, items=ITEMS, clips=tuple(ITEMS), name="Human-Domain_Eval.json"):
    """Their data set and a folder of results, beside each other."""
    data, results = tmp_path / "OpenS2V-Eval", tmp_path / "model_name"
    values = {
        item: {"img_paths": images, "prompt": f"About {item}.", "synthesis_flag": "Wrong", "class_label": ["Man"]}
        for item, images in items.items()
    }
    put(data, *(image for images in items.values() for image in images))
    (data / name).write_text(json.dumps(values, indent=4))
    put(results, *(clip if "." in clip else f"{clip}.mp4" for clip in clips))
    return results, data / name, data


def test_opens2v_items_of_one_person_are_scored_and_the_others_named(tmp_path):
    results, manifest, data = opens2v(tmp_path)
    put(results, "notes_1.mp4")
    before = sorted(tmp_path.rglob("*"))
    entries, problems = read_folder(results, layout="opens2v", manifest=manifest, references=data)
    assert [entry.key for entry in entries] == ["faceobj_3", "singleface_1", "singlehuman_7"]
    assert all(entry.prompt_id == entry.key and entry.seed is None and entry.others == () for entry in entries)
    assert [entry.subject for entry in entries] == [
        "humanobj/human/crop_man/commoner/5",
        "singleface/crop_man/2",
        "singlehuman/crop_woman/7",
    ]
    assert entries[0].reference == data / ITEMS["faceobj_3"][0]
    assert entries[1].prompt == "About singleface_1."
    assert told(problems) == {
        ("multiface_2.mp4", "several people"),
        ("singleobj_4.mp4", "no person"),
        ("notes_1.mp4", "unknown item"),
    }
    assert "shows 2 people" in detail(problems, "several people")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["root", "Images", "found"])
def test_opens2v_images_are_found_from_the_root_or_its_images_folder(tmp_path, where):
    results, manifest, data = opens2v(tmp_path)
    references = {"root": data, "Images": data / "Images", "found": None}[where]
    entries, _ = read_folder(results, manifest=None if where == "Images" else manifest, references=references, layout="auto")
    assert all(entry.reference.is_file() for entry in entries)
    assert len(entries) == 3


def test_opens2v_clips_missing_doubled_nested_and_in_other_formats(tmp_path):
    results, manifest, _ = opens2v(
        tmp_path, clips=("deep/er/singleface_1.MP4", "singleface_1.webm", ".hidden/singlehuman_7.mp4")
    )
    (entry,), problems = read_folder(results, manifest=manifest)
    assert entry.clip == results / "deep/er/singleface_1.MP4"
    assert told(problems) == {("singleface_1.webm", "same key twice"), ("singlehuman_7", "no clip"), ("faceobj_3", "no clip")}


def test_opens2v_items_of_ones_own_need_no_folders_of_people(tmp_path):
    results, manifest, _ = opens2v(tmp_path, items={"singleface_1": ["me.png"]}, clips=("singleface_1",))
    (entry,), problems = read_folder(results, manifest=manifest)
    assert (entry.subject, entry.reference.name, problems) == ("me", "me.png", [])


def test_opens2v_malformed_items_and_lost_images_are_named(tmp_path):
    results, manifest, data = opens2v(tmp_path)
    values = json.loads(manifest.read_text())
    values |= {"singleface_8": {"img_paths": "a.png", "prompt": "b"}, "singleface_9": ["a"]}
    values["faceobj_3"]["prompt"] = ""
    manifest.write_text(json.dumps(values))
    put(results, "singleface_8.mp4", "singleface_9.mp4")
    (data / ITEMS["singleface_1"][0]).unlink()
    entries, problems = read_folder(results, manifest=manifest)
    assert [entry.key for entry in entries] == ["singleface_1", "singlehuman_7"]
    reasons = Counter(one.reason for one in problems)
    assert reasons == {"malformed item": 3, "missing reference": 1, "several people": 1, "no person": 1}


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff\xfe\x00", "[" * 100_000])
def test_opens2v_json_that_is_none(tmp_path, content):
    results, manifest, _ = opens2v(tmp_path)
    manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadData, match=r"Human-Domain_Eval\.json: (no JSON|expected an object)"):
        read_folder(results, manifest=manifest)


def test_opens2v_none_or_several_jsons(tmp_path):
    results, manifest, data = opens2v(tmp_path)
    with pytest.raises(BadData, match=r"No \*_Eval\.json in .*model_name, .*--manifest"):
        read_folder(results)
    (data / "Open-Domain_Eval.json").write_bytes(manifest.read_bytes())
    with pytest.raises(BadData, match=r"has Human-Domain_Eval\.json, Open-Domain_Eval\.json; say which is meant"):
        read_folder(results, references=data)


# --- ConsisID

FACES = (
    "1_stars_woman_Ann_Other_1.png",
    "2_stars_woman_Ann_Other_2.png",
    "117_ai_man_Huang_2.png",
    "118_ai_man_Huang_3.png",
    "150_normal_man_3.png",
    "151_normal_man_4.png",
)


def consisid(tmp_path, clips):
    """Their data set and an output folder, beside each other."""
    data, results = tmp_path / "ConsisID-preview-Data", tmp_path / "output"
    put(data, *(f"eval/face_images/{name}" for name in FACES), "eval/face_images/.DS_Store")
    with (data / "video_caption_eval_old.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", "Class", "Original_Prompt", "Refined_man", "Refined_woman"])
        writer.writerow([0, "person", "x", "A {class_token}, smiling,\nturns his head.", "A {class_token} turns her head."])
        writer.writerow([12, "cook", "x", "The {class_token} cuts.", ""])
    put(results, *clips)
    (results / "output_scores.csv").write_text("output_path\n")
    return results, data


def test_consisid_clips_find_their_image_prompt_and_seed(tmp_path):
    results, data = consisid(tmp_path, [f"{FACES[0]}--0/42_0000.mp4", f"{FACES[2]}--0/7_0001.mp4", f"{FACES[2]}--12.webm"])
    put(results, f"{FACES[0]}--0/42_0000.mp4_clipscore.txt")
    entries, problems = read_folder(results, references=data)
    assert problems == []
    assert [entry.key for entry in entries] == [
        "117_ai_man_Huang_2/0-s7",
        "117_ai_man_Huang_2/12",
        "1_stars_woman_Ann_Other_1/0-s42",
    ]
    assert [entry.prompt for entry in entries] == [
        "A person, smiling,\nturns his head.",
        "The cook cuts.",
        "A person turns her head.",
    ]
    assert [entry.prompt_id for entry in entries] == ["0-man", "12-man", "0-woman"]
    assert [entry.seed for entry in entries] == [7, None, 42]
    assert [entry.subject for entry in entries] == ["ai_man_Huang", "ai_man_Huang", "stars_woman_Ann_Other"]
    assert entries[2].reference == data / "eval/face_images" / FACES[0]
    assert [one.name for one in entries[2].others] == [FACES[1]]


def test_consisid_photos_without_a_name_are_not_taken_for_one_person(tmp_path):
    results, data = consisid(tmp_path, [f"{FACES[4]}--0/42_0000.mp4", f"{FACES[5]}--0/42_0000.mp4"])
    entries, _ = read_folder(results, references=data)
    assert [entry.subject for entry in entries] == ["150_normal_man_3", "151_normal_man_4"]
    assert [entry.others for entry in entries] == [(), ()]


@pytest.mark.parametrize("references", ["", "eval", "eval/face_images"])
def test_consisid_images_and_prompts_are_found(tmp_path, references):
    results, data = consisid(tmp_path, [f"{FACES[0]}--0/42_0000.mp4"])
    (entry,), problems = read_folder(results, references=data / references)
    assert problems == []
    assert entry.reference.name == FACES[0]
    assert read_folder(results, manifest=data / "video_caption_eval_old.csv")[0] == [entry]


def test_consisid_faults_are_named(tmp_path):
    clips = [
        f"{FACES[0]}--0/42_0000.mp4",
        f"{FACES[0]}--0/42_0002.mp4",
        f"{FACES[0]}--99/42_0000.mp4",
        f"{FACES[0]}--12/42_0000.mp4",
        "9_stars_man_Nobody_1.png--0/42_0000.mp4",
        "other/a.mp4",
    ]
    results, data = consisid(tmp_path, clips)
    entries, problems = read_folder(results, references=data)
    assert [entry.key for entry in entries] == ["1_stars_woman_Ann_Other_1/0-s42", "9_stars_man_Nobody_1/0-s42"]
    assert told(problems) == {
        (clips[1], "same key twice"),
        (clips[2], "unknown item"),
        (clips[3], "unknown item"),
        (clips[4], "missing reference"),
        (clips[5], "unknown item"),
    }
    assert any("no Refined_woman of index 12" in one.detail for one in problems)


def test_consisid_without_its_csv_or_columns(tmp_path):
    results, data = consisid(tmp_path, [f"{FACES[0]}--0/42_0000.mp4"])
    with pytest.raises(BadData, match=r"No video_caption_eval\*\.csv in .*output.*--manifest"):
        read_folder(results)
    (data / "video_caption_eval_old.csv").write_text("index,Class,Refined_man\n0,person,a\n")
    with pytest.raises(BadData, match="no column 'Refined_woman'"):
        read_folder(results, references=data)
    (data / "video_caption_eval_old.csv").write_bytes(b"index,\xff\n")
    with pytest.raises(BadData, match="no CSV in UTF-8"):
        read_folder(results, references=data)


# --- which is it?


def test_the_layout_is_told_by_what_is_there(tmp_path):
    assert tell_layout(ours(tmp_path / "a", LINE)) == "lynx"
    results, manifest, _ = opens2v(tmp_path / "b")
    assert tell_layout(results) == "opens2v"
    assert tell_layout(results, manifest=manifest) == "opens2v"
    assert tell_layout(consisid(tmp_path / "c", [f"{FACES[0]}--0/42_0000.mp4"])[0]) == "consisid"
    # a manifest that is named says more than what lies about
    assert tell_layout(ours(tmp_path / "a", LINE), manifest=manifest) == "opens2v"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.mp4", "singleface_1.txt"], "has 1 clips and looks like no known layout"),
        ([], "has 0 clips and looks like no known layout"),
        (["singleface_1.mp4", "1_ai_man_X_1.png--0/42_0000.mp4"], "looks like opens2v and consisid"),
        (["manifest.jsonl", "multihuman_1.MP4"], "looks like lynx and opens2v"),
    ],
)
def test_a_folder_that_is_none_or_two_of_them(tmp_path, names, said):
    put(tmp_path, *names)
    with pytest.raises(BadData, match=f"{said}; name one .*lynx .*opens2v .*consisid"):
        tell_layout(tmp_path)
    with pytest.raises(BadData, match=said if names else "has no clips in it"):
        read_folder(tmp_path)


def test_a_manifest_of_no_known_kind(tmp_path):
    put(tmp_path, "a.mp4", "list.txt")
    with pytest.raises(BadData, match=r"list\.txt: no manifest by its name; name the layout"):
        read_folder(tmp_path, manifest=Path(tmp_path / "list.txt"))
