"""Folders and manifests: every file and line becomes an item or a drop with its reason."""

import json
import os

import pytest

from lynx_video.errors import BadData
from lynx_video.training.dataset.source import fingerprint_item, item_key, read_source


def lines(tmp_path, *values):
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(value if isinstance(value, str) else json.dumps(value) for value in values), encoding="utf-8")
    return file


def reasons(source):
    return {drop.item: (drop.reason, drop.detail) for drop in source.drops}


def test_a_folder_is_read_with_its_subfolders_and_captions(tmp_path):
    for name in ("a.mp4", "deep/er/b.PNG", "c.webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("  one\n", encoding="utf-8")
    (tmp_path / "deep/er/b.txt").write_text("", encoding="utf-8")
    source = read_source(tmp_path)
    assert {item.file: item.caption for item in source.items} == {"a.mp4": "one", "deep/er/b.PNG": "", "c.webm": None}
    assert [item.key for item in source.items] == sorted(item.key for item in source.items)
    assert not source.drops
    assert source.root == tmp_path


def test_what_is_no_item_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "lost.txt").write_text("words")
    (tmp_path / "notes.pdf").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    found = reasons(read_source(tmp_path))
    assert found["a.mp4"][0] == "unreadable caption"
    assert "a.txt" in found["a.mp4"][1]
    assert found["lost.txt"][0] == "caption without a file"
    assert found["notes.pdf"] == ("unknown kind of file", "no clip or picture by its name (.pdf)")
    assert found[".DS_Store"][0] == "unknown kind of file"


def test_a_folder_that_cannot_be_read_or_is_a_link_is_named(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    (tmp_path / "closed").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "clips")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = read_source(tmp_path)
    assert [item.file for item in source.items] == ["clips/a.mp4"]
    assert reasons(source) == {
        "closed": ("unreadable folder", "Permission denied"),
        "linked": ("linked folder", "links to folders are not followed"),
    }


def test_a_manifest_names_files_captions_people_and_parts(tmp_path):
    source = read_source(
        lines(
            tmp_path,
            {"file": "clips/a.mp4", "caption": " a person ", "person": "ann", "start": 1, "stop": 2.5},
            "",
            {"file": "../b.jpg"},
        )
    )
    cut, photo = sorted(source.items, key=lambda item: item.file, reverse=True)
    assert (cut.file, cut.caption, cut.person, cut.start, cut.stop) == ("clips/a.mp4", "a person", "ann", 1.0, 2.5)
    assert cut.name == "clips/a.mp4 [1 s to 2.5 s]"
    assert (photo.file, photo.caption, photo.person, photo.name) == ("../b.jpg", None, None, "../b.jpg")
    assert source.root == tmp_path


BAD_LINES = {
    "{": "Expecting property name",
    '["a.mp4"]': "expected an object",
    '{"caption": "x"}': "the key file is missing",
    '{"file": "a.mp4", "capton": "x"}': "unknown key 'capton'",
    '{"file": "a.mp4", "caption": 3}': "caption must be text, got 3",
    '{"file": "a.mp4", "start": "1"}': "start must be a number of seconds, got '1'",
    '{"file": "a.mp4", "start": true}': "start must be a number of seconds, got True",
    '{"file": "a.mp4", "start": -1}': "start must be 0 or more seconds",
    '{"file": "a.mp4", "stop": NaN}': "stop must be 0 or more seconds",
    '{"file": "a.mp4", "start": 3, "stop": 2}': "stop must come after start, got 3 to 2",
    '{"file": "/etc/a.mp4"}': "file must be a path relative to the manifest",
    '{"file": "C:\\\\a.mp4"}': "file must be a path relative to the manifest",
    '{"file": "a.mp4", "person": " "}': "person must not be empty",
    '{"file": "a.txt"}': "no clip or picture by its name",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_malformed_line_is_dropped_with_its_number(tmp_path, line):
    source = read_source(lines(tmp_path, {"file": "a.mp4"}, line, {"file": "b.mp4"}))
    assert {item.file for item in source.items} == {"a.mp4", "b.mp4"}
    ((item, (reason, detail)),) = reasons(source).items()
    assert (item, reason) == ("set.jsonl:2", "malformed line")
    assert BAD_LINES[line] in detail


def test_bytes_that_are_no_text_spoil_one_line(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_bytes(b'{"file": "a.mp4"}\n{"file": "\xff.mp4"}\n')
    source = read_source(file)
    assert len(source.items) == 1
    assert list(reasons(source)) == ["set.jsonl:2"]


def test_listed_twice_counts_once_and_parts_of_a_clip_are_items_of_their_own(tmp_path):
    part = {"file": "a.mp4", "start": 0, "stop": 1}
    source = read_source(lines(tmp_path, part, {"file": "a.mp4", "start": 1, "stop": 2}, {**part, "caption": "again"}))
    assert len(source.items) == 2
    assert reasons(source) == {"a.mp4 [0 s to 1 s]": ("duplicate", "listed twice; the first one counts")}


def test_keys_are_safe_in_a_tar_and_stay_what_they_are():
    assert item_key("a/Zoë & co.v2.mp4") == "Zo-co-v2-c3ce54d60a08"
    assert item_key("日本.mp4").startswith("item-")
    assert len(item_key("x" * 300 + ".mp4")) <= 60
    assert len({item_key("a.mp4"), item_key("b/a.mp4"), item_key("a.mp4", 0.0), item_key("a.mp4", 0.0, 1.0)}) == 4


def test_a_fingerprint_changes_with_the_file_and_the_words(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"one")
    (tmp_path / "a.txt").write_text("one")
    item = read_source(tmp_path).items[0]
    before = fingerprint_item(item, tmp_path)
    assert fingerprint_item(item, tmp_path) == before
    (tmp_path / "a.txt").write_text("two")
    assert fingerprint_item(read_source(tmp_path).items[0], tmp_path) != before
    (tmp_path / "a.mp4").write_bytes(b"other")
    assert fingerprint_item(item, tmp_path) != before


@pytest.mark.parametrize("name", ["nowhere", "set.json", "empty", "blank.jsonl"])
def test_what_names_nothing_is_refused(tmp_path, name):
    (tmp_path / "set.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(BadData, match=name):
        read_source(tmp_path / name)
