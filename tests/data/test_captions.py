"""Every rule about captions, as a table of what goes in and what comes out."""

import random
from collections import Counter

import pytest

from modules.config import ConceptConfig, ConfigError
from modules.data.captions import CaptionRules, change_capitals, fill_wildcards, special_tags

CAPTION = "fox, red fur, sitting, snow"


def rules(**settings):
    return CaptionRules.of(ConceptConfig().update(**settings))


def outcomes(changed, *alternatives, draws=400):
    """How often each caption comes out, as shares of many draws."""
    counts = Counter(changed.vary(alternatives, random.Random(i)) for i in range(draws))
    return {caption: count / draws for caption, count in counts.items()}


def dropout(mode="FULL", p=1.0, special="", kind="NONE", regex=False, keep=1):
    return {
        "text.tag_dropout_enable": True,
        "text.tag_dropout_mode": mode,
        "text.tag_dropout_probability": p,
        "text.tag_dropout_special_tags": special,
        "text.tag_dropout_special_tags_mode": kind,
        "text.tag_dropout_special_tags_regex": regex,
        "text.keep_tags_count": keep,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, CAPTION),
        (dropout(), "fox"),
        (dropout(keep=0), ""),
        (dropout(keep=2), "fox, red fur"),
        (dropout(keep=9), CAPTION),
        (dropout(p=0.0), CAPTION),
        (dropout("RANDOM"), "fox"),
        (dropout(kind="WHITELIST", special="snow, rain"), "fox, snow"),
        (dropout("RANDOM", kind="WHITELIST", special="snow"), "fox, snow"),
        (dropout(kind="BLACKLIST", special="snow, rain"), "fox, red fur, sitting"),
        (dropout("RANDOM WEIGHTED", kind="BLACKLIST", special="snow"), "fox, red fur, sitting"),
        (dropout(kind="WHITELIST", special="s.*", regex=True), "fox, sitting, snow"),
        (dropout(kind="WHITELIST", special="s.*"), "fox"),
        (dropout(kind="WHITELIST", special="no.", regex=True), "fox"),  # all of the tag must match
        ({"text.caps_randomize_lowercase": True}, CAPTION.lower()),
        ({"ot.caption_template": "a photo of sks, {caption}!"}, f"a photo of sks, {CAPTION}!"),
        ({"text.tag_delimiter": ""} | dropout(), CAPTION),
    ],
)
def test_settings_that_leave_no_choice(settings, expected):
    assert outcomes(rules(**settings), CAPTION, draws=20) == {expected: 1.0}


def test_a_delimiter_of_several_characters():
    changed = rules(**dropout(), **{"text.tag_delimiter": "|||"})
    assert changed.vary(["fox ||| red, fur|||snow"], random.Random(0)) == "fox"


def test_full_dropout_takes_all_tags_or_none():
    shares = outcomes(rules(**dropout(p=0.25)), CAPTION, draws=4000)
    assert set(shares) == {"fox", CAPTION}
    assert shares["fox"] == pytest.approx(0.25, abs=0.03)


def survival(mode, p):
    """How often each tag after the first stays."""
    shares = outcomes(rules(**dropout(mode, p)), CAPTION, draws=4000)
    tags = CAPTION.split(", ")[1:]
    return [sum(share for text, share in shares.items() if tag in text) for tag in tags]


def test_random_dropout_is_the_same_for_each_tag():
    assert survival("RANDOM", 0.3) == pytest.approx([0.7, 0.7, 0.7], abs=0.03)


def test_weighted_dropout_grows_from_tag_to_tag():
    assert survival("RANDOM WEIGHTED", 0.6) == pytest.approx([0.8, 0.6, 0.4], abs=0.03)


def test_shuffling_keeps_the_first_tags_in_place_and_makes_every_order():
    shares = outcomes(rules(**{"text.enable_tag_shuffling": True}), CAPTION, draws=3000)
    assert len(shares) == 6
    assert all(caption.startswith("fox, ") for caption in shares)
    assert all(share == pytest.approx(1 / 6, abs=0.03) for share in shares.values())
    assert {frozenset(c.split(", ")) for c in shares} == {frozenset(CAPTION.split(", "))}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("capslock", "RED  FUR,  ICE, "),
        ("title", "Red Fur,  Ice, "),
        ("first", "Red  fur,  Ice, "),
    ],
)
def test_capitals(mode, expected):
    assert change_capitals("rED  fur,  ice, ", ",", [mode], 1.0, random.Random(0)) == expected


def test_random_capitals_change_no_letter():
    changed = change_capitals("red fur, ice", ",", ["random"], 1.0, random.Random(3))
    assert changed.lower() == "red fur, ice"
    assert changed not in ("red fur, ice", "RED FUR, ICE")


def test_capitals_change_as_often_as_told():
    settings = {"text.caps_randomize_enable": True, "text.caps_randomize_probability": 0.3}
    changed = rules(**settings, **{"text.caps_randomize_mode": "capslock"})
    assert outcomes(changed, "fox", draws=3000)["FOX"] == pytest.approx(0.3, abs=0.03)


def test_each_line_of_a_caption_file_gets_its_turn():
    shares = outcomes(rules(), "a fox", "an animal", draws=2000)
    assert shares == pytest.approx({"a fox": 0.5, "an animal": 0.5}, abs=0.05)


def test_wildcards_draw_from_every_word_and_may_nest():
    texts = {fill_wildcards("a {red|{dark|light} blue} fox", random.Random(i)) for i in range(60)}
    assert texts == {"a red fox", "a dark blue fox", "a light blue fox"}


@pytest.mark.parametrize("text", ["{}", "{red}", "a { b", "} | {"])
def test_braces_without_a_choice_stay(text):
    assert fill_wildcards(text, random.Random(0)) == text


def test_wildcards_are_off_unless_asked_for():
    assert rules().vary(["{a|b}"], random.Random(0)) == "{a|b}"
    assert rules(**{"ot.wildcards": True}).vary(["{a|b}"], random.Random(0)) in ("a", "b")


@pytest.mark.parametrize(
    ("settings", "varying"),
    [
        ({}, False),
        ({"ot.caption_template": "x {caption}"}, False),
        ({"text.enable_tag_shuffling": True}, True),
        (dropout(), True),
        (dropout(p=0.0), False),
        ({"ot.wildcards": True}, False),
        ({"ot.wildcards": True, "ot.caption_template": "{a|b} {caption}"}, True),
        ({"text.caps_randomize_enable": True, "text.caps_randomize_probability": 0.5}, True),
    ],
)
def test_what_makes_a_caption_vary(settings, varying):
    assert rules(**settings).varies([CAPTION]) is varying
    assert rules(**settings).varies([CAPTION, "other"]) is True


@pytest.mark.parametrize(
    ("name", "content"),
    [("tags.txt", "snow \n\n red fur\n"), ("tags.csv", "snow,12\n red fur ,7\n\n")],
)
def test_special_tags_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    settings = dropout(kind="WHITELIST", special=str(tmp_path / name))
    assert special_tags(ConceptConfig().update(**settings).text) == ("snow", "red fur")
    assert outcomes(rules(**settings), CAPTION, draws=5) == {"fox, red fur, snow": 1.0}


def test_a_regular_expression_also_sees_the_tag_without_parentheses():
    settings = dropout(kind="WHITELIST", special="sno?w", regex=True)
    assert rules(**settings).vary(["fox, (snow), ice"], random.Random(0)) == "fox, (snow)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dropout(kind="WHITELIST", special="a(", regex=True), ["'a('", "regular expression"]),
        (dropout(kind="WHITELIST", special="gone.txt"), ["gone.txt", "Choose a .txt or .csv"]),
        (
            {"text.caps_randomize_enable": True, "text.caps_randomize_mode": "capslock, tittle"},
            ["'tittle'", "capslock, title, first, random"],
        ),
        ({"ot.caption_template": "a photo of sks"}, ["'a photo of sks'", "{caption}"]),
    ],
)
def test_bad_settings_say_what_would_work(settings, words):
    with pytest.raises(ConfigError) as caught:
        rules(**settings)
    assert all(word in str(caught.value) for word in words)


def test_one_stream_makes_one_caption():
    changed = rules(**dropout("RANDOM", 0.5), **{"text.enable_tag_shuffling": True})
    first = [changed.vary([CAPTION, "fox, ice, snow"], random.Random(i)) for i in range(50)]
    again = [changed.vary([CAPTION, "fox, ice, snow"], random.Random(i)) for i in range(50)]
    assert first == again
    assert len(set(first)) > 10
