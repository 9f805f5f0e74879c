"""A small word rule for prompts: the plain cases that must never pass, told without a model, the same everywhere.

Two rules. `minors`: words of sex or undress together with words for a minor, or an age below 18. `nudity`: words of sex or
undress at all, since every clip shows a real person. Words are whole words, English and Chinese (the languages Wan was trained
on), read through look-alike letters, digits for letters, accents, repeats and spaced-out spelling; what is denied ("no nudity")
or means something else ("naked eye") does not count.

A list of words is no safety system. It knows no other language, no euphemism, no misspelling beyond these, and nothing of what
a prompt means; it is there so that the plainest requests fail at once, and the classifiers look at the rest.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Rule = Literal["minors", "nudity"]
RULES: tuple[Rule, ...] = ("minors", "nudity")


def _table(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_WHOSE = "(?:(?:all|any|every|her|his|their|the|your|my|its|own|of) )*"
_CLOTHES = "(?:clothes|clothing|underwear|panties|bra|bikini|lingerie)"
_PRIVATE = "(?:breasts|bosom|buttocks|genitals|private parts|privates|crotch)"
# Words that ask for sex or undress whoever is shown; patterns of whole words after `_words`.
_SEXUAL = (
    *_table(
        "nudes? nudity nudists? nudism naked nakedness topless bottomless unclothed undress(?:ed|es|ing)? striptease strippers? "
        "disrob(?:e|es|ed|ing) porn pornos? pornographic pornography pornstars? nsfw hentai onlyfans sex sexual sexually sexting "
        "intercourse orgasms? orgasmic orgy orgies gangbang masturbat(?:e|es|ed|ing|ion) blowjobs? handjobs? fellatio cunnilingus "
        "deepthroat creampie cumshots? cumming penis penises vaginas? vulva genitals? genitalia nipples? boobs areolas? erotic "
        "erotica bdsm"
    ),
    f"(?:without|no|remov(?:e|es|ing|ed)|shed(?:s|ding)?|rips? off|ripping off) {_WHOSE}{_CLOTHES}(?! (?:from|shop|stores?|line))",
    f"(?:tak(?:e|es|ing)|took|strip(?:s|ping|ped)?|peel(?:s|ing|ed)?|slip(?:s|ping|ped)?) off (?:{_WHOSE}{_CLOTHES}|everything)",
    f"(?:tak(?:e|es|ing)|took|rip(?:s|ping|ped)?) {_WHOSE}{_CLOTHES} off",
    "strip(?:s|ping|ped)? down(?! (?:an?|the) )",
    "(?:wear(?:s|ing)?|dressed in) nothing(?! (?:special|fancy|unusual|new|warm|on (?:her|his|their|the) (?:head|feet|hands?)))",
    "(?:with )?nothing on(?= (?:at all|but|except)|$)",
    "in (?:the|her|his|their) birthday suit",
    f"(?:bare|exposed|uncovered|expos(?:e|es|ing)|flash(?:es|ing)?|show(?:s|ing)?|baring) {_WHOSE}{_PRIVATE}",
    "fuck(?:s|ed|ing)? (?:her|him|me|them|each other|hard)",
    "mak(?:e|es|ing) love (?:to|with)",
    "xxx (?:video|movie|film|rated|scene)",
)
# Words that are harmless of an adult and never of a child.
_SUGGESTIVE = (
    *_table(
        "sexy sexier seductive seductively seduc(?:e|es|ed|ing) sensual sensually lewd lustful provocative provocatively fetish "
        "lingerie panties thong bra braless cleavage twerk(?:s|ing)?"
    ),
    "in (?:her|his|their|only) underwear",
    "suggestive (?:pose|dance)s?",
    "pole danc(?:e|es|ing)",
    "horny(?! (?:toads?|goats?))",
    "kinky(?! (?:hair|curls))",
)
_MINOR = (
    *_table(
        "child children kids? kiddie kiddo toddlers? infants? newborns? babies preteens? tweens? teens? teenaged? teenagers? "
        "adolescents? underaged? juveniles? minors schoolgirls? schoolboys? schoolchild schoolchildren schoolkids? preschoolers? "
        "kindergart(?:en|ners?|eners?) preschool prepubescent pubescent prepubertal youngsters? loli lolis lolita shota"
    ),
    "(?:little|young|small|tiny|school|baby|minor) (?:girl|boy|lass|lad)s?",
    "(?:a|the) bab(?:y|y girl|y boy)",
    "(?<!in )(?:a|the) minor(?= (?:is|in|with|who|being|having|undress\\w*|strip\\w*|doing|pos\\w+|on)|$)",
    "pre teens?",
    "(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|\\d{1,2}(?:st|nd|rd|th)) graders?",
    "(?:elementary|primary|middle|junior high) school(?:ers?)?",
    "high ?school(?:ers?| (?:girl|boy|student|kid|cheerleader|pupil)s?)",
    "childlike (?:body|figure|girl|boy|woman|man)",
    "(?:under|below|not yet) (?:the age of )?(?:1[0-8]|[1-9])(?! \\w*(?:minutes?|seconds?|hours?|metres?|meters?|feet|degrees?))",
)
_BOTH = (*_table("lolicon shotacon jailbait csam pedo pedos pa?edophil(?:e|es|ia|ic)"), "kiddie porn", "child porn")
_AGES = (
    r"(?<!hundred )(?<!hundred and )(\d{1,2}) ?(?:(?:years?|yrs?|yr) (?:of age|old)|y ?o)",
    r"age[sd]? (?:of )?(\d{1,2})",
    r"(?:she|he|girl|boy) (?:(?:is|s|who is|;) )?(\d{1,2})(?= (?:and|with|in|on|naked|nude|;)|$)",
)
_BABY_AGE = r"\d{1,2} (?:months?|weeks?|days?) old"
# What reads like the above and is something else; removed before the rules look, as is what is denied.
_HARMLESS = (
    "naked (?:eyes?|mole rats?|cakes?|flames?|truth)",
    "nude (?:lips?|lipsticks?|colou?r(?:s|ed)?|tones?|shades?|heels|shoes|pumps|make ?up|nails?|polish|palette|hues?|pink|beige)",
    "(?:opposite|same|fair|safer?) sex",
    "sex (?:education|ed|pistols|and the city)",
    "sex of the (?:baby|child|puppy|kitten|chick)s?",
    "sexual (?:health|education|orientation|reproduction|selection|harassment)",
    "food porn",
    "(?:wire|paint|cable|wallpaper) strippers?",
    "orgy of (?:colou?rs?|light|sound|violence)",
    "topless (?:cars?|jeeps?|bus|buses)",
    "(?:bottle|rubber|silicone) nipples?",
    "nipples? of (?:a|the) (?:\\w+ )?bottle",
)
_DENIED = "(?:no|not|non|without|never|zero|free of|avoid(?:s|ing)?) (?:(?:an?|any|full|partial|explicit|visible|all) )*"

# Chinese has no spaces: these count wherever they stand, but for the neighbours that make another word of them.
_SEXUAL_ZH = (
    "裸体|裸體|裸照|裸身|全裸|半裸|赤身裸|一丝不挂|一絲不掛|黄片|黃片|三级片|三級片|脱光|脫光|脱衣服|脫衣服|脱掉衣服|脫掉衣服|脱衣舞|"
    "脫衣舞|露点照|乳头|乳頭|阴部|陰部|阴茎|陰莖|阴道|陰道|自慰|手淫|(?<![角特景])色情(?![感绪緒调調怀懷节節况況])|"
    "(?<![男女异異同])性爱(?![好人护])|(?<![男女异異同两兩])性交(?![往谈談流通替易互叉接付])|做[爱愛](?![心好的])"
)
_SUGGESTIVE_ZH = "性感|内衣|內衣|挑逗|情趣|色诱|色誘"
_MINOR_ZH = (
    "儿童|兒童|孩子|小孩|孩童|幼儿|幼兒|婴儿|嬰兒|宝宝|寶寶|幼女|幼童|女童|男童|小女孩|小男孩|小学生|小學生|初中生|国中生|國中生|"
    "中学生|中學生|高中生|未成年|萝莉|蘿莉|正太|少女|少年"
)
_AGES_ZH = (
    r"(?<!\d)(?:1[0-7]|[1-9]) ?[岁歲]|(?<![一二两兩三四五六七八九十百])(?:十[一二三四五六七]?|[一二两兩三四五六七八九]) ?[岁歲]"
)

_LEET = str.maketrans({"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "€": "e", "|": "1", "!": "1"})
# Letters of other alphabets that look like Latin ones.
_ALIKE = str.maketrans(
    "аеорсухіјѕԁһӏкмтвнгαεορνικτυχ",
    "aeopcyxijsdhlkmtbhraeopviktux",
)
_NUMBERS = _table(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?: (?:one|two|three|four|five|six|seven|eight|nine))?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Breach:
    """A rule that a prompt breaks. sexual: the words of sex or undress; minor: those for a minor, of the rule `minors`."""

    rule: Rule
    sexual: tuple[str, ...]
    minor: tuple[str, ...] = ()


def breach(text: str, rules: tuple[Rule, ...] = RULES) -> Breach | None:
    """The first of the rules that a prompt breaks, None if it breaks none."""
    sexual: list[str] = []
    suggestive: list[str] = []
    minor: list[str] = []
    both: list[str] = []
    for reading in readings(text):
        both += _found("|".join(_BOTH), reading)
        minor += _found("|".join(_MINOR), _undenied(_MINOR, reading)) + _young(reading)
        kept = _undenied(_SEXUAL, _pattern("|".join(_HARMLESS)).sub(" ", reading))
        sexual += _found("|".join(_SEXUAL), kept) + re.findall(_SEXUAL_ZH, reading)
        suggestive += _found("|".join(_SUGGESTIVE), kept) + re.findall(_SUGGESTIVE_ZH, reading)
        minor += re.findall(_MINOR_ZH, reading) + re.findall(_AGES_ZH, reading)
    if "minors" in rules and (both or (minor and (sexual or suggestive))):
        return Breach(rule="minors", sexual=_once(both + sexual + suggestive), minor=_once(minor))
    if "nudity" in rules and sexual:
        return Breach(rule="nudity", sexual=_once(sexual))
    return None


def readings(text: str) -> tuple[str, ...]:
    """The ways a text may be read: lower case, single spaces between words, number words as digits; then digits as letters."""
    text = unicodedata.normalize("NFKC", html.unescape(html.unescape(text))).casefold()
    text = "".join(one for one in unicodedata.normalize("NFKD", text) if unicodedata.category(one) not in ("Mn", "Cf"))
    text = text.translate(_ALIKE)
    leet = re.sub(r"[a-z0-9@$€|!]+", lambda found: _as_letters(found[0]), text)
    ways = [_words(text), *(_words(leet.replace("1", letter)) for letter in "il" if leet != text)]
    ways += [re.sub(r"([a-z])\1{2,}", repeated, way) for way in tuple(ways) for repeated in (r"\1", r"\1\1")]
    return tuple(dict.fromkeys(ways))


def _as_letters(word: str) -> str:
    """p0rn -> porn; what has no letter stays, and so do marks at the end."""
    body = word.rstrip("!|")
    return body.translate(_LEET) + word[len(body) :] if re.search("[a-z]", body) else word


def _words(text: str) -> str:
    """Words with single spaces between them, and `;` where a clause ends; letters alone in a row are one word if it is one of ours."""
    spaced = re.sub(r"[\W_]+", lambda found: " ; " if re.search(r"[.,;:!?]\s", found[0]) else " ", text).strip()
    spaced = re.sub(r"\b[a-z](?: (?:; )?[a-z]){2,}\b", _joined, spaced)
    spaced = _pattern(_TENS).sub("20", spaced)
    return _pattern("|".join(_NUMBERS)).sub(lambda found: str(_NUMBERS.index(found[0]) + 1), spaced)


def _joined(letters: re.Match[str]) -> str:
    """a n u d e -> nude; a row that holds no word of ours stays as it is."""
    single = [each for each in (*_SEXUAL, *_MINOR, *_BOTH) if " " not in each]
    return " ".join(re.findall("|".join(single), re.sub("[ ;]", "", letters[0]))) or letters[0]


def _undenied(words: tuple[str, ...], reading: str) -> str:
    """A reading without those of the words that are denied: "no nudity", "not a child"."""
    return _pattern(f"{_DENIED}(?:{'|'.join(words)})").sub(" ", reading)


def _young(reading: str) -> list[str]:
    """Ages below 18 in a reading."""
    found = [match[0] for pattern in _AGES for match in _pattern(pattern).finditer(reading) if int(match[1]) < 18]
    return found + _found(_BABY_AGE, reading)


def _found(pattern: str, reading: str) -> list[str]:
    return [match[0] for match in _pattern(pattern).finditer(reading)]


@functools.cache
def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b")


def _once(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
