"""Our prompts keep their promises, and a file of one's own is read or refused by line."""

import json
import re
from collections import Counter

import pytest

from lynx_video.errors import BadData
from lynx_video.evaluation.prompts import NANO_PROMPTS, PROMPTS, loaded_words, read_prompts, slug
from lynx_video.nano import captions, faces

FILE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@pytest.mark.parametrize("prompts", [PROMPTS, NANO_PROMPTS], ids=["photographs", "nano"])
def test_there_are_twenty_each_with_its_own_name_text_and_reason(prompts):
    assert len(prompts) == 20
    for values in ([one.id for one in prompts], [one.text for one in prompts], [one.why for one in prompts]):
        assert len(set(values)) == 20
        assert all(values)
    assert all(FILE_NAME.fullmatch(one.id) for one in prompts)


@pytest.mark.parametrize("prompt", PROMPTS + NANO_PROMPTS, ids=lambda prompt: prompt.id)
def test_a_prompt_says_the_person_and_nothing_about_them(prompt):
    assert len(re.findall(r"\bthe person\b", prompt.text.lower())) == 1
    assert loaded_words(prompt.text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The person waves at her friend.", ["her"]),
        ("An OLD sailor.", ["OLD"]),
        ("The person walks in Lisbon at night.", ["Lisbon"]),
        ("A middle-aged person of African origin smiles.", ["middle-aged", "African"]),
        ("The red-haired person turns. He smiles; She waves", ["red-haired", "He", "She"]),
        ("The person, the human, mans the women's kingdom", ["women"]),
        ("The person turns. Then it rains: I sing", []),
    ],
)
def test_loaded_words_are_found(text, words):
    assert loaded_words(text) == words


def test_the_prompts_for_photographs_cover_what_they_should():
    kinds = Counter(one.why.split(":")[0] for one in PROMPTS)
    assert set(kinds) == {"pose", "expression", "object", "distance", "action", "camera", "light", "weather", "clothing"}
    assert max(kinds.values()) <= 4


def test_nano_prompts_are_balanced_and_in_nanos_words():
    told = []
    for one in NANO_PROMPTS:
        assert set(re.findall(r"[a-z]+", one.text)) <= set(captions.WORDS)
        said = re.fullmatch(r"the person (.+) wearing a (\w+) shirt in front of a (\w+) wall", one.text)
        told.append(said.groups())
        assert one.id.endswith(f"-{said[2]}-on-{said[3]}")
    for seen, table in zip(zip(*told, strict=True), (faces.MOTIONS, faces.SHIRTS, faces.WALLS), strict=True):
        assert set(seen) == set(table)
        assert {2, 3} == set(Counter(seen).values())
    assert all(shirt != wall for _, shirt, wall in told)
    assert len({(shirt, wall) for _, shirt, wall in told}) == 20
    # neither colour gives the motion away
    assert len({(motion, shirt) for motion, shirt, _ in told}) == len({(motion, wall) for motion, _, wall in told}) == 20


def test_a_slug_is_stable_short_and_its_own():
    assert slug("The person nods.") == slug("  the PERSON, nods ") == "the-person-nods"
    texts = ["een " * 30 + "a", "een " * 30 + "b", "Zoë lacht", "Zoé lacht", "一个人点头", "一个人微笑", "?!"]
    assert len({slug(text) for text in texts}) == len(texts)
    assert all(FILE_NAME.fullmatch(slug(text)) and len(slug(text)) <= 50 for text in texts)
    assert slug("一个人点头") == "prompt-67ce3c"


def test_a_text_file_is_a_prompt_a_line(tmp_path):
    file = tmp_path / "own.TXT"
    file.write_bytes("\ufeffThe person nods.\r\n\n  The person lacht: 你好  \n".encode())
    first, second = read_prompts(file)
    assert (first.id, first.text, first.why) == ("the-person-nods", "The person nods.", "")
    assert second.text == "The person lacht: 你好"
    assert second.id.startswith("the-person-lacht-")


def test_a_jsonl_file_may_name_them(tmp_path):
    file = tmp_path / "own.jsonl"
    lines = [{"prompt": " The person nods ", "id": "n.1", "why": "motion"}, {"prompt": "The person\u2028smiles"}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    first, second = read_prompts(file)
    assert (first.id, first.text, first.why) == ("n.1", "The person nods", "motion")
    assert second.id == "the-person-smiles"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b"', "line 2: .*delimiter"),
        ("a.jsonl", '\n["a"]', "line 2: expected an object with the keys prompt, id, why, got list"),
        ("a.jsonl", '{"text": "a"}', "line 1: unknown key 'text'; the keys are prompt"),
        ("a.jsonl", '{"id": "a"}', "line 1: the key prompt is missing"),
        ("a.jsonl", '{"prompt": "  "}', "line 1: prompt must be text"),
        ("a.jsonl", '{"prompt": 3}', "line 1: prompt must be text.*3"),
        ("a.jsonl", '{"prompt": "a", "id": "../b"}', r"line 1: id must be .*'\.\./b'"),
        ("a.jsonl", '{"prompt": "a", "id": "x"}\n\n{"prompt": "b", "id": "x"}', "line 3: the id 'x' is that of line 1"),
        ("a.txt", "The person nods\nThe person smiles\nthe person, nods", "line 3: the id 'the-person-nods' is that of line 1"),
        ("a.txt", b"good\nb\xff", "line 2: .*utf-8"),
        ("a.txt", "\n \n", "no prompt in it"),
        ("a.csv", "a", "unknown extension '.csv'; expected .txt"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadData, match=said) as caught:
        read_prompts(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadData, match=r"none\.txt: can't be read \(No such file"):
        read_prompts(tmp_path / "none.txt")
