"""Sentences about the monsters of ``monsters.py`` in many words: several for each attribute and place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import monsters
import numpy as np
from monsters import Monster

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "ruby", "cherry"),
    "orange": ("orange", "amber", "tangerine", "pumpkin"),
    "yellow": ("yellow", "golden", "lemon", "mustard"),
    "green": ("green", "emerald", "jade", "grassy"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "sapphire", "cobalt", "navy"),
    "purple": ("purple", "violet", "lavender", "plum"),
    "pink": ("pink", "rose", "pinkish"),
    "brown": ("brown", "chestnut", "chocolate", "brownish"),
    "gray": ("gray", "grey", "silver", "grayish"),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "round": ("round", "circular", "spherical", "rounded"),
    "square": ("square", "boxy", "cubic", "rectangular"),
    "triangle": ("triangle", "triangular", "pyramid"),
    "star": ("star", "starry", "starfish"),
    "ghost": ("ghost", "ghostly", "phantom", "spooky"),
    "heart": ("heart", "hearted", "valentine"),
}
PATTERNS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "smooth", "simple"),
    "striped": ("striped", "banded", "stripy"),
    "spotted": ("spotted", "dotted", "speckled"),
    "patched": ("patched", "patchy", "bellied"),
}
HEADS: dict[str, tuple[str, ...]] = {
    "bald": ("bald", "hairless", "bare"),
    "horns": ("horns", "antlers", "tusks"),
    "antennae": ("antennae", "antenna", "feelers"),
}
EYES: dict[int, tuple[str, ...]] = {
    1: ("one eye", "a single eye", "only one eye"),
    2: ("two eyes", "a pair of eyes", "both eyes"),
    3: ("three eyes", "triple eyes", "a trio of eyes"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "snow": ("snow", "winter", "ice", "arctic"),
    "beach": ("beach", "shore", "coast", "sand"),
    "meadow": ("meadow", "field", "pasture", "grassland"),
    "desert": ("desert", "dunes", "wasteland"),
    "sunset": ("sunset", "dusk", "twilight"),
    "ocean": ("ocean", "sea", "waves"),
    "night": ("night", "midnight", "darkness"),
    "candy": ("candy", "sweets", "dessert"),
}
NOUNS = (
    "monster",
    "creature",
    "critter",
    "beast",
    "animal",
    "goblin",
    "troll",
    "ogre",
    "demon",
    "toy",
    "puppet",
    "alien",
)
_ADJECTIVES = ("cute", "little", "funny", "strange", "friendly", "weird", "young", "old", "happy", "tiny")
_OPENINGS = (
    "a photo of",
    "a picture of",
    "a painting of",
    "a drawing of",
    "an image of",
    "a portrait of",
    "look at",
    "here is",
    "we saw",
    "there is",
)
_DOING = ("sitting", "standing", "waiting", "playing", "walking", "resting")
_WHERE = ("in the", "in the", "in the", "on the", "at the", "near the")
PLAIN_SHARE = 0.35
"""How often an attribute is called by its first, plain word."""


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of them."""
    return options[int(rng.integers(len(options)))]


def word_for(table: Mapping[str, Sequence[str]], key: str, rng: np.random.Generator) -> str:
    """A word for an attribute: the plain one in :data:`PLAIN_SHARE` of cases, else any of its synonyms."""
    return key if rng.uniform() < PLAIN_SHARE else pick(table[key][1:], rng)


def sentence(monster: Monster, rng: np.random.Generator, keep: float = 0.75) -> str:
    """What a person might write under the picture; each attribute is named with probability ``keep``."""

    def said() -> bool:
        return bool(rng.uniform() < keep)

    coloured = monster.tone is None
    before = []
    if monster.head == "bald" and said():
        before.append(word_for(HEADS, "bald", rng))
    if coloured and monster.colour_name and said():
        before.append(word_for(COLOURS, monster.colour_name, rng))
    if said():
        before.append(word_for(PATTERNS, monster.pattern, rng))
    if said():
        before.append(word_for(SHAPES, monster.shape, rng))
    if rng.uniform() < 0.3:
        rng.shuffle(before)
    if len(before) < 3 and rng.uniform() < 0.2:
        before.insert(0, pick(_ADJECTIVES, rng))
    has = [pick(EYES[monster.eyes], rng)] if said() else []
    if monster.head != "bald" and said():
        has.append(word_for(HEADS, monster.head, rng))
    if rng.uniform() < 0.3:
        has.reverse()
    text = " ".join([pick(("a", "a", "a", "the", "this", "my"), rng), *before, pick((*(NOUNS[:4] * 2), *NOUNS), rng)])
    if has:
        text += pick((" with ", " with ", " with ", " that has "), rng) + " and ".join(has)
    opened = rng.uniform() < 0.35
    if opened:
        text = f"{pick(_OPENINGS, rng)} {text}"
    if coloured and said():
        where = f"{pick(_WHERE, rng)} {word_for(PLACES, monster.place, rng)}"
        order = rng.uniform()
        if order < 0.12 and not opened:
            text = f"{where} {text}"
        else:
            text = f"{text} {pick(_DOING, rng)} {where}" if order > 0.7 else f"{text} {where}"
    if monster.style_name and said():
        text += pick((f" in {monster.style_name} style", f" in the style of {monster.style_name}"), rng)
    return text


def by_synonyms(monster: Monster, rng: np.random.Generator) -> str:
    """A sentence that names everything, and each attribute by any of its words but the plain one."""
    bald = f"{pick(HEADS['bald'][1:], rng)} " if monster.head == "bald" else ""
    rest = "" if monster.head == "bald" else f" and {pick(HEADS[monster.head][1:], rng)}"
    assert monster.colour_name
    return (
        f"a {bald}{pick(COLOURS[monster.colour_name][1:], rng)} {pick(PATTERNS[monster.pattern][1:], rng)} "
        f"{pick(SHAPES[monster.shape][1:], rng)} {pick(NOUNS, rng)} with {pick(EYES[monster.eyes][1:], rng)}{rest} "
        f"in the {pick(PLACES[monster.place][1:], rng)}"
    )


def word_by_word(monster: Monster, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A caption of the embedded model's world, and the same with other words for its attributes, word by word."""
    plain = monsters.caption(monster, rng, keep=0.85).split()
    tables = (COLOURS, SHAPES, PATTERNS, PLACES, HEADS)
    other = []
    for word in plain:
        table = next((table for table in tables if word in table), None)
        kind = NOUNS if word in monsters.NOUNS else (word,)
        other.append(word_for(table, word, rng) if table else pick(kind, rng))
    return plain, other
