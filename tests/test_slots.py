"""What captioning models say, as captions: a table of texts, and what holds of any text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoodip_core.data.prompts import SLOT, says
from zoodip_core.data.slots import MOST_WORDS, Subject, caption_of, cleaned, shortened

DOG = Subject("dog", names=("<rex>",))
ADJECTIVE = Subject("dog", keep_word=True, names=("<rex>",))
STYLE = Subject("painting", style=True, names=("<ink>",))
ONE_OF_TWO = Subject("dog", token="<rex>", names=("<rex>",))

NAMED = [
    # what the model says, as a caption, as one whose token is an adjective
    ("a dog sitting on a couch", "a {} sitting on a couch", "a {} dog sitting on a couch"),
    ("a couch with the dog on it", "a couch with the {} on it", "a couch with the {} dog on it"),
    ("A Dog in the snow.", "A {} in the snow", "A {} Dog in the snow"),
    ("an old dog", "an old {}", "an old {} dog"),
    ("a dog looks at another dog", "a {} looks at another dog", "a {} dog looks at another dog"),
    ("a dog's head", "a {}'s head", "a {} dog's head"),
    ("dog on grass", "{} on grass", "{} dog on grass"),
    # not the word itself: nothing is guessed
    ("two dogs on a beach", "a photo of a {}, two dogs on a beach", "a photo of a {} dog, two dogs on a beach"),
    ("a brown puppy", "a photo of a {}, a brown puppy", "a photo of a {} dog, a brown puppy"),
    ("A brown puppy", "a photo of a {}, a brown puppy", "a photo of a {} dog, a brown puppy"),
    ("a hotdog", "a photo of a {}, a hotdog", "a photo of a {} dog, a hotdog"),
    ("a dog-shaped cake", "a photo of a {}, a dog-shaped cake", "a photo of a {} dog, a dog-shaped cake"),
    ("a photo of a puppy", "a photo of a {}, a puppy", "a photo of a {} dog, a puppy"),
    (
        "a black and white photo of a puppy in a yard",
        "a black and white photo of a {}, a puppy in a yard",
        "a black and white photo of a {} dog, a puppy in a yard",
    ),
    # a place that is there
    ("a {} on grass", "a {} on grass", "a {} dog on grass"),
    ("a { } on grass", "a {} on grass", "a {} dog on grass"),
    ("a <rex> beside a dog", "a {} beside a dog", "a {} beside a dog"),
    ("a {} dog on grass", "a {} dog on grass", "a {} dog on grass"),
    # what models add
    ("  a dog\n\n on\tgrass  ", "a {} on grass", "a {} dog on grass"),
    ("The image shows a dog on grass.", "a {} on grass", "a {} dog on grass"),
    ("This is a picture of a dog on grass.", "a {} on grass", "a {} dog on grass"),
    ("In this image, we can see a dog.", "a {}", "a {} dog"),
    ('"a dog on grass"', "a {} on grass", "a {} dog on grass"),
    ("a dog on a couch on a couch on a couch on a", "a {} on a couch", "a {} dog on a couch"),
    ("a dog. a dog. a dog.", "a {}", "a {} dog"),
    ("dog dog dog dog dog", "{}", "{} dog"),
    ("a dog {in} a {0.__class__} box}", "a {} in a 0.__class__ box", "a {} dog in a 0.__class__ box"),
    ("a dog\x1b[31m\u202e on grass", "a {} [31m on grass", "a {} dog [31m on grass"),
    # nothing
    ("", "", ""),
    (" \n ", "", ""),
    ("!!! ... !!!", "", ""),
    ("{", "", ""),
]


@pytest.mark.parametrize(("said", "caption", "adjective"), NAMED)
def test_a_caption_names_the_token(said: str, caption: str, adjective: str) -> None:
    assert caption_of(said, DOG) == caption
    assert caption_of(said, ADJECTIVE) == adjective


def test_an_article_fits_whatever_the_token_is_called() -> None:
    apple = Subject("apple")
    assert caption_of("an apple beside an orange", apple) == "a {} beside an orange"
    assert caption_of("An apple", apple) == "A {}"
    assert caption_of("a Titan apple", apple) == "a Titan {}"


def test_a_word_of_several_words() -> None:
    assert caption_of("a golden  retriever asleep", Subject("golden retriever")) == "a {} asleep"


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("a house by a lake", "a house by a lake in the style of {}"),
        ("a painting of a house.", "a painting of a house in the style of {}"),
        ("A house. Behind it is a lake.", "A house. Behind it is a lake, in the style of {}"),
        ("a house like <ink>", "a house like {}"),
        ("", ""),
    ],
)
def test_a_style_is_named_at_the_end(said: str, caption: str) -> None:
    assert caption_of(said, STYLE) == caption


def test_one_of_several_tokens_is_named_by_its_name() -> None:
    assert caption_of("a dog on grass", ONE_OF_TWO) == "a <rex> on grass"
    assert caption_of("a puppy", ONE_OF_TWO) == "a photo of a <rex>, a puppy"


def test_a_long_text_ends_with_a_sentence_else_a_clause_else_a_word() -> None:
    sentence = "a dog sits on the sofa beside a green cushion and looks out of the window at birds."
    assert shortened(f"{sentence} {'more words ' * 240}end") == sentence.rstrip(".")
    clauses = "a dog sits on the sofa beside a green cushion, " + ", ".join(f"thing {n}" for n in range(240))
    cut = shortened(clauses)
    assert clauses.startswith(cut)
    assert cut.endswith("thing 14")
    words = " ".join(f"word{n}" for n in range(38)) + " with the " + "rest " * 460
    assert shortened(words).endswith("word37")
    assert len(shortened(" ".join(f"w{n}" for n in range(500))).split()) == MOST_WORDS


def test_a_text_is_cut_to_what_fits() -> None:
    text = "a dog on a very large sofa, near a window"
    assert caption_of(text, DOG, lambda part: len(part) <= 30) == "a {} on a very large sofa"
    assert caption_of(text, DOG, lambda part: False) == ""


words = st.lists(
    st.sampled_from(["dog", "a", "on", "{}", "{", "sofa,", "end.", "<rex>", "the", "\x07", "Dog"]), max_size=120
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), words.map(" ".join)), st.sampled_from([DOG, ADJECTIVE, STYLE]))
def test_any_text_becomes_a_caption_that_training_takes_or_none(said: str, subject: Subject) -> None:
    caption = caption_of(said, subject)
    assert cleaned(said) or not caption
    if caption:
        assert SLOT in caption
        assert caption == " ".join(caption.split())
        assert not re.search(r"[{}]", caption.replace(SLOT, ""))
        assert len(caption.split()) <= MOST_WORDS + 8
        assert caption.isprintable()
        assert says(caption, "dog") or not subject.keep_word
