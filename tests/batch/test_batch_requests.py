"""Requests files and grids: what they stand for, and that every bad line is named before any work."""

import json
import os
from dataclasses import replace

import pytest

from lynx_video.batch import check, grid, wanted
from lynx_video.batch.check import grid_requests, read_prompts, read_requests
from lynx_video.batch.lines import read_lines
from lynx_video.batch.wanted import keyed
from lynx_video.errors import BadRequest, Refused
from lynx_video.media.image import file_hash
from lynx_video.pipeline.enrol import save_enrolment

ANN = {"portrait": "ann.png", "prompt": "a person nods"}


def test_a_request_is_read_with_its_types(read, tmp_path):
    (tmp_path / "form.pdf").write_bytes(b"signed")
    (tmp_path / "does.txt").write_text("a person smiles\n")
    one, two = read(
        {
            **ANN, "id": "x.1", "seed": 7, "preset": "fast", "num-frames": 5, "guidance_scale_i": "none", "ip_blocks": [0, 1],
            "best_of": 2, "min_similarity": 0.5, "private": True, "no_watermark": "a test", "consent": "form.pdf", "ext": "webp",
        },
        {"portrait": "ann.png", "prompt_file": "does.txt", "face_index": 0, "consent": "by phone", "height": None},
    )  # fmt: skip
    assert (one.id, one.file, one.seed, one.where.endswith("requests.jsonl:1")) == ("x.1", "x.1.webp", 7, True)
    assert one.request.portrait == tmp_path / "ann.png"
    assert one.source_hash == file_hash(tmp_path / "ann.png")
    assert one.request.generation == {"seed": 7, "num_frames": 5, "guidance_scale_i": "none", "ip_blocks": frozenset({0, 1})}
    assert (one.request.preset, one.request.select.best_of, one.request.select.min_similarity) == ("fast", 2, 0.5)
    assert one.request.marks.private
    assert one.request.marks.no_watermark == "a test"
    assert one.request.marks.consent == f"form.pdf, sha256 {file_hash(tmp_path / 'form.pdf')}"
    assert (two.request.prompt, two.request.face_index, two.request.marks.consent) == ("a person smiles", 0, "by phone")
    assert two.request.generation == {"seed": 42}
    assert two.id.startswith("ann-")
    assert two.id.endswith("-s42")


def test_csv_says_the_same(read, write, studio):
    from_json = read(
        {**ANN, "seed": 3, "ip_scale": 0.5, "private": True, "best_of": 2}, {**ANN, "prompt": "so, she\nnods", "seed": 1}
    )
    file = write(
        "portrait,prompt,seed,ip_scale,private,best_of",
        "ann.png,a person nods,3,0.5,true,2",
        "",
        'ann.png,"so, she\nnods",1,,,',
        name="requests.csv",
    )
    from_csv, _ = read_requests(file, {}, studio)
    assert [one.stamp for one in from_csv] == [one.stamp for one in from_json]
    assert [one.id for one in from_csv] == [one.id for one in from_json]
    assert [one.where.rpartition(":")[2] for one in from_csv] == ["2", "4"]


def test_lists_ranges_and_patterns_are_multiplied_out(read):
    many = read(
        {"portrait": "*n*.png", "prompt": ["nods", "smiles"], "seed": "1-2,5", "ip_blocks": ["0-1", "2"], "id": "g"}, ANN
    )
    assert len(many) == 1 * 2 * 3 * 2 + 1
    assert [(one.request.prompt, one.seed) for one in many[:6:2]] == [("nods", 1), ("nods", 2), ("nods", 5)]
    assert len({one.id for one in many}) == len(many)
    assert all(one.id.startswith("g-") for one in many[:-1])
    assert {one.where.rpartition(":")[2] for one in many[:-1]} == {"1"}
    both = read({"portrait": ["bob.png", "a*.png"], "prompt": "nods"})
    assert [one.request.portrait.name for one in both] == ["bob.png", "ann.png"]
    assert grid.seeds_of("3") == [3]


def test_a_file_whose_name_is_a_pattern_is_itself(read, write, tmp_path):
    write()
    (tmp_path / "a[1].png").write_bytes((tmp_path / "ann.png").read_bytes())
    assert read({**ANN, "portrait": "a[1].png"})[0].request.portrait.name == "a[1].png"


def test_names_stay_when_lines_move_and_change_with_what_is_asked(read, tmp_path):
    first = read(ANN, {**ANN, "seed": 2})
    again = read({**ANN, "seed": 1}, {**ANN, "seed": 2}, ANN)
    assert [again[2].id, again[1].id] == [one.id for one in first]
    os.rename(tmp_path / "ann.png", tmp_path / "anna.png")  # noqa: PTH104
    moved = read({**ANN, "portrait": "anna.png"})
    assert moved[0].stamp == first[0].stamp, "the picture counts, not its name"
    for change in (
        {"prompt": "a person smiles"},
        {"preset": "balanced"},
        {"ip_scale": 0.5},
        {"private": True},
        {"ext": "webp"},
    ):
        assert read({**ANN, **change})[0].stamp != first[0].stamp
    assert read({**ANN, "portrait": "bob.png"})[0].stamp != first[0].stamp


def test_a_private_clip_tells_nothing_of_its_words(read):
    first, second = read(
        {**ANN, "prompt": "a", "private": True, "consent": "x"}, {**ANN, "prompt": "b", "private": True, "consent": "y"}
    )
    assert "ann" not in first.id
    assert second.id == first.id, "without the folder's key it does not depend on the words"
    alone = read({**ANN, "prompt": "b", "private": True, "consent": "y"})[0]
    one, other = keyed(first, b"1"), keyed(first, b"2")
    assert len({first.stamp, one.stamp, other.stamp}) == 3
    assert len({first.id, one.id, other.id, keyed(second, b"1").id}) == 4
    assert keyed(alone, b"1").id == keyed(second, b"1").id, "whatever else is asked for"
    named = read({**ANN, "private": True, "id": "quiet"})[0]
    assert keyed(named, b"1").id == "quiet"
    assert keyed(first, b"1").stamp == one.stamp != keyed(second, b"1").stamp
    public = read({**ANN, "prompt": "a"})[0]
    assert keyed(public, b"1") is public


def test_the_command_line_counts_where_a_line_says_nothing(read):
    one, two = read(ANN, {**ANN, "preset": "balanced", "private": False}, preset="draft", private=True, ip_scale=0.5)
    assert (one.request.preset, one.request.marks.private, one.request.generation["ip_scale"]) == ("draft", True, 0.5)
    assert (two.request.preset, two.request.marks.private, two.request.generation["ip_scale"]) == ("balanced", False, 0.5)


def test_identity_files_are_sources_too(read, write, studio, tmp_path):
    write()
    save_enrolment(tmp_path / "ann.safetensors", studio.enrol(tmp_path / "ann.png"))
    (one,) = read({"identity": "ann.safetensors", "prompt": "a person nods"})
    assert (one.request.portrait, one.request.identity) == (None, tmp_path / "ann.safetensors")


def test_a_grid_of_the_command_line(write, tmp_path, studio, monkeypatch):
    write()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a person nods\n\n  a person smiles \n")
    prompts = read_prompts(tmp_path / "prompts.txt")
    assert prompts == ["a person nods", "a person smiles"]
    found, _ = grid_requests({"portrait": ["*n.png", "bob.png"], "prompt": prompts, "seed": "1-3"}, {}, studio)
    assert len(found) == 2 * 2 * 3
    with pytest.raises(BadRequest, match=r"the grid: portrait 'none\*': no file fits"):
        grid_requests({"portrait": ["none*"], "prompt": prompts}, {}, studio)


BAD = [
    ("not json", "no JSON"),
    ("[1, 2]", "expected a JSON object, got [1, 2]"),
    ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is there twice"),
    ('{"seed": NaN}', "NaN is no number"),
    ("[" * 100_000, "no usable JSON"),
    ({**ANN, "promt": "x"}, "unknown key 'promt'; did you mean prompt?"),
    ({**ANN, "weather": "x"}, "unknown key 'weather'; the keys are id, name, portrait"),
    ({**ANN, "num-frames": 5, "num_frames": 9}, "num_frames is there twice"),
    ({"prompt": "a person nods"}, "say who: a portrait or an identity file"),
    ({**ANN, "identity": "ann.png"}, "say who: a portrait or an identity file"),
    ({"portrait": "ann.png"}, "there is no prompt, or an empty one"),
    ({**ANN, "prompt": " \n"}, "there is no prompt, or an empty one"),
    ({**ANN, "prompt": "nods " * 10_000}, "the prompt has 50000 characters"),
    ({**ANN, "prompt": "\ud800"}, "the prompt has a broken character at place 0"),
    ({**ANN, "prompt": 7}, "prompt must be a text, got 7"),
    ({**ANN, "prompt": "does.txt"}, "say prompt_file for one"),
    ({**ANN, "prompt_file": "does.txt"}, "prompt and prompt_file are both given"),
    ({"portrait": "ann.png", "prompt_file": "does.txt"}, "does.txt': no such file"),
    ({**ANN, "portrait": "eve.png"}, "eve.png': no such file"),
    ({**ANN, "portrait": "a\0b.png"}, "no such file"),
    ({**ANN, "portrait": "."}, "a folder, not a file"),
    ({**ANN, "portrait": "text.png"}, "text.png: not a picture that can be read"),
    ({**ANN, "portrait": "pixel.png"}, "1x1 pixels"),
    ({**ANN, "portrait": "x*.png"}, "portrait 'x*.png': no file fits this pattern"),
    ({**ANN, "portrait": []}, "portrait is an empty list"),
    ({**ANN, "portrait": ["ann.png", "ann.png"]}, "portrait has ann.png twice"),
    ({"identity": "text.png", "prompt": "nods"}, "text.png is not a complete identity file"),
    ({"identity": "nobody.safetensors", "prompt": "nods"}, "nobody.safetensors': no such file"),
    ({**ANN, "face_index": -1}, "face_index must be a whole number from 0"),
    ({**ANN, "face_index": "first"}, "face_index must be a whole number, got 'first'"),
    ({**ANN, "seed": -1}, "no seed is drawn at random here; name one"),
    ({**ANN, "seed": 1.5}, "seed must be a whole number, got 1.5"),
    ({**ANN, "seed": True}, "seed must be a whole number"),
    ({**ANN, "seed": "many"}, "seed must be a whole number or a range such as 1-10"),
    ({**ANN, "seed": "5-3"}, "the seeds 5-3 are no range"),
    ({**ANN, "seed": "1-2,2"}, "seed has 2 twice"),
    ({**ANN, "seed": "1-99999999"}, "more than 100000"),
    ({**ANN, "seed": 2**63 - 2, "best_of": 2}, "seed must be"),
    ({**ANN, "seed": "1-1000", "prompt": [str(i) for i in range(1000)]}, "stands for 1000000 requests; a batch has at most 100000"),
    ({**ANN, "height": 70}, "height must be a multiple of 8, got 70; the nearest good values are 64 or 72"),
    ({**ANN, "num_frames": 6}, "num_frames must be 2k + 1, got 6"),
    ({**ANN, "num_frames": "six"}, "num_frames must be a whole number, got 'six'"),
    ({**ANN, "ip_start": 0.8, "ip_stop": 0.2}, "window"),
    ({**ANN, "preset": "turbo"}, "unknown preset 'turbo'"),
    ({**ANN, "preset": ["fast", 3]}, "preset must be a text, got 3"),
    ({**ANN, "ip_blocks": "3-1"}, "ip_blocks must be block numbers"),
    ({**ANN, "best_of": 0}, "best-of must be a whole number from 1"),
    ({**ANN, "best_of": "x"}, "best_of must be a whole number"),
    ({**ANN, "min_similarity": 2}, "is a cosine, from -1 to 1"),
    ({**ANN, "min_similarity": "high"}, "min_similarity must be a number"),
    ({**ANN, "private": "maybe"}, "private must be true or false"),
    ({**ANN, "no_watermark": True}, "no_watermark must be a text"),
    ({**ANN, "ext": "gif"}, "ext must be mp4 or webp"),
    ({**ANN, "idle_models": "free"}, "say offload"),
    ({**ANN, "id": "../up"}, "'../up' can't be a file's name"),
    ({**ANN, "id": "x" * 101}, "can't be a file's name"),
    ({**ANN, "id": ".hidden"}, "can't be a file's name"),
    ({**ANN, "id": "a", "name": "b"}, "id and name are the same"),
]  # fmt: skip


def test_every_bad_line_is_named_and_the_good_ones_are_not(write, tmp_path, studio, monkeypatch):
    monkeypatch.setattr(check, "MOST_NAMED", 1000)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "pixel.png").write_bytes(one_pixel())
    lines = [
        line
        for pair in zip((bad for bad, _ in BAD), ({**ANN, "seed": i} for i in range(len(BAD))), strict=True)
        for line in pair
    ]
    file = write(*lines)
    with pytest.raises(BadRequest) as caught:
        read_requests(file, {}, studio)
    said = str(caught.value).split(f"{file}:")[1:]
    assert [int(text.partition(":")[0]) for text in said] == list(range(1, 2 * len(BAD), 2)), "each bad line once, no good one"
    for text, (bad, words) in zip(said, BAD, strict=True):
        assert words in text, f"{bad}: {text}"
    assert said[-1].endswith("Nothing was begun.")


def one_pixel():
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, format="PNG")
    return stream.getvalue()


def test_of_many_bad_lines_the_first_are_named_and_the_rest_is_counted(write, studio):
    with pytest.raises(BadRequest, match="And 5 more lines are wrong") as caught:
        read_requests(write(*[{"prompt": "nods"}] * (check.MOST_NAMED + 5)), {}, studio)
    assert str(caught.value).count("say who") == check.MOST_NAMED


def test_settings_that_are_wrong_are_wrong_on_every_line_that_has_them(write, studio):
    with pytest.raises(BadRequest) as caught:
        read_requests(write({**ANN, "height": 70}, ANN, {**ANN, "height": 70, "seed": 2}), {}, studio)
    assert str(caught.value).count("height must be") == 2


def test_two_requests_do_not_share_a_name(write, studio):
    with pytest.raises(BadRequest, match=r":2: asks for the same clip as .*:1; leave one out"):
        read_requests(write(ANN, ANN), {}, studio)
    with pytest.raises(BadRequest, match=r":2: the id 'A' is taken by .*:1"):
        read_requests(write({**ANN, "id": "a"}, {**ANN, "id": "A", "seed": 2}), {}, studio)
    twins, _ = read_requests(write({**ANN, "id": "a"}, {**ANN, "id": "b"}), {}, studio)
    assert len(twins) == 2, "the same clip under two names is what was asked for"


def test_a_refused_prompt_is_its_requests_own_and_hides_no_wrong_setting(write, studio, monkeypatch):
    real = studio.check

    def refuse(request):
        if "weapon" in request.prompt:
            raise Refused("the prompt was refused.")
        return real(request)

    monkeypatch.setattr(studio, "check", refuse)
    bad = {"prompt": "a person with a weapon"}
    assert len(read_requests(write({**ANN, **bad}, ANN), {}, studio)[0]) == 2
    with pytest.raises(BadRequest, match=":2: height must be"):
        read_requests(write({**ANN, **bad, "height": 70}, {**ANN, "height": 70}), {}, studio)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.txt", "x", "unknown kind '.txt'"),
        ("r.jsonl", "", "there is no request in it"),
        ("r.jsonl", " \n\n", "there is no request in it"),
        ("r.csv", "portrait,prompt\n", "there is no request in it"),
        ("r.csv", "portrait,portrait\nx,y\n", "r.csv:1: the column 'portrait' is there twice"),
        ("r.csv", "portrait,,prompt\n", "r.csv:1: a column has no name"),
        ("r.csv", 'portrait,prompt\nann.png,"nods\n', "r.csv:2: no CSV"),
        ("r.jsonl", b"\xff\xfe", "no UTF-8 text"),
        ("absent.jsonl", None, "can't be read"),
    ],
)
def test_files_that_are_none(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadRequest, match=words.replace("(", r"\(")):
        read_lines(tmp_path / name)


def test_a_row_with_too_many_cells_is_named(write, studio):
    file = write("portrait,prompt", "ann.png,so, she nods", "ann.png,nods", name="requests.csv")
    with pytest.raises(BadRequest, match=r"requests\.csv:2: 3 cells under 2 columns"):
        read_requests(file, {}, studio)
    file = write("portrait;prompt", "ann.png;nods", name="requests.csv")
    with pytest.raises(BadRequest, match=r"requests\.csv:2: unknown key 'portrait;prompt'"):
        read_requests(file, {}, studio)


def test_limits(write, studio, monkeypatch):
    monkeypatch.setattr("lynx_video.batch.lines.MOST_BYTES", 10)
    with pytest.raises(BadRequest, match="larger than"):
        read_lines(write(ANN))
    monkeypatch.undo()
    monkeypatch.setattr(wanted, "MOST_REQUESTS", 3)
    with pytest.raises(BadRequest, match=r":2: with this line there are more than 3 requests"):
        read_requests(write({**ANN, "seed": "1-3"}, {**ANN, "seed": "4-5"}), {}, studio)


def test_a_line_may_hold_the_line_ends_that_json_allows(write, studio):
    text = json.dumps({**ANN, "prompt": "a person\u2028nods"}, ensure_ascii=False)
    assert read_requests(write(text), {}, studio)[0][0].request.prompt == "a person\u2028nods"


def test_requests_that_need_the_model_alike_have_the_same_key(read):
    one, two, three = read(ANN, {**ANN, "portrait": "bob.png", "prompt": "smiles", "seed": 9}, {**ANN, "preset": "fast"})
    assert check.settings_key(one) == check.settings_key(two)
    assert check.settings_key(one) != check.settings_key(three)
    assert check.settings_key(replace(one, id="other")) == check.settings_key(one)
