"""The picture world of the embedded tiny model: little procedural monsters.

Everything the tiny Stable Diffusion knows is drawn here: a monster has a shape, a colour, a
pattern, a number of eyes, something on its head, and stands in a place; a picture may be toned in
a style. Captions name some of these. Some colours and tones are drawn but never named, so that the
model can paint things no word of its vocabulary asks for: that is what a learned token is for.

Pictures are drawn by Pillow at four times the size and reduced, so that edges are smooth.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48
_SCALE = 4

RGB = tuple[int, int, int]
_Choice = TypeVar("_Choice")

COLOURS: dict[str, RGB] = {
    "red": (222, 52, 52),
    "orange": (246, 146, 40),
    "yellow": (246, 216, 62),
    "green": (72, 172, 72),
    "cyan": (72, 202, 216),
    "blue": (62, 98, 216),
    "purple": (142, 76, 192),
    "pink": (246, 142, 188),
    "brown": (142, 96, 62),
    "gray": (142, 146, 152),
}
SHAPES = ("round", "square", "triangle", "star", "ghost", "heart")
PATTERNS = ("plain", "striped", "spotted", "patched")
EYES = (1, 2, 3)
HEADS = ("bald", "horns", "antennae")
PLACES: dict[str, tuple[RGB, RGB]] = {  # sky, ground
    "snow": ((190, 218, 238), (248, 250, 252)),
    "beach": ((150, 216, 236), (242, 218, 152)),
    "meadow": ((172, 222, 250), (130, 196, 92)),
    "desert": ((250, 216, 162), (226, 152, 88)),
    "sunset": ((250, 152, 122), (150, 96, 132)),
    "ocean": ((206, 236, 246), (52, 122, 192)),
    "night": ((62, 64, 122), (98, 104, 154)),
    "candy": ((250, 202, 226), (226, 142, 192)),
}
STYLES: dict[str, tuple[RGB, RGB]] = {  # darkest and lightest tone
    "sepia": ((70, 40, 20), (250, 235, 205)),
    "grayscale": ((20, 20, 20), (245, 245, 245)),
    "neon": ((70, 0, 110), (90, 255, 235)),
    "olive": ((35, 50, 10), (230, 240, 170)),
    "rosy": ((110, 10, 50), (255, 225, 230)),
}
EYE_WORDS = {1: "one eye", 2: "two eyes", 3: "three eyes"}
NOUNS = ("monster", "monster", "monster", "creature", "critter", "beast")

# Colours and tones of the bundled concepts: nothing this close to them is ever drawn in training.
UNNAMED_COLOURS: dict[str, RGB] = {
    "salmon": (240, 132, 112),
    "teal": (24, 134, 128),
    "lime": (176, 222, 64),
}
UNNAMED_STYLES: dict[str, tuple[RGB, RGB]] = {"blueprint": ((14, 40, 120), (205, 232, 255))}
# Bundles of named attributes that training never shows together: (shape, pattern, colour word).
CHECK_OUT = {
    ("ghost", "spotted", "orange"),
    ("heart", "plain", "purple"),
    ("star", "striped", "blue"),
}


@dataclass(frozen=True)
class Monster:
    """One picture's contents. Lengths are fractions of the picture's side."""

    shape: str
    colour: RGB
    colour_name: str | None
    pattern: str
    eyes: int
    head: str
    place: str
    tone: tuple[RGB, RGB] | None = None
    style_name: str | None = None
    x: float = 0.5
    y: float = 0.56
    radius: float = 0.31
    tilt: float = 0.0
    horizon: float = 0.68
    hill: float = 0.0
    phase: float = 0.0


def _mix(a: Sequence[float], b: Sequence[float], amount: float) -> RGB:
    r, g, bl = (round(p + (q - p) * amount) for p, q in zip(a, b, strict=True))
    return (r, g, bl)


def _jitter(colour: RGB, rng: np.random.Generator, by: int) -> RGB:
    moved = np.clip(np.asarray(colour) + rng.integers(-by, by + 1, 3), 0, 255)
    return (int(moved[0]), int(moved[1]), int(moved[2]))


def _polar(radius_at: Callable[[float], float], steps: int = 120) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / steps - math.pi / 2 for i in range(steps)]
    return [(radius_at(a) * math.cos(a), radius_at(a) * math.sin(a)) for a in angles]


def _regular(corners: int, rounding: float) -> list[tuple[float, float]]:
    """A regular polygon whose corners are cut back to arcs of the given share of the radius."""
    half = math.pi / corners

    def radius_at(angle: float) -> float:
        inside = (angle + math.pi / 2) % (2 * half) - half
        flat = math.cos(half) / math.cos(inside)
        return flat * (1 - rounding) + rounding * math.cos(half) * 1.25

    return _polar(radius_at)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The body's contour around the origin, y down, about one unit in radius."""
    if shape == "round":
        return _polar(lambda a: 1.0)
    if shape == "square":
        return _polar(lambda a: 0.98 / (abs(math.cos(a)) ** 6 + abs(math.sin(a)) ** 6) ** (1 / 6))
    if shape == "triangle":
        return [(1.42 * x, 1.36 * y + 0.24) for x, y in _regular(3, 0.22)]
    if shape == "star":
        return _polar(lambda a: 0.90 + 0.34 * math.cos(5 * (a + math.pi / 2)))
    if shape == "heart":
        points = []
        for i in range(120):
            t = 2 * math.pi * i / 120
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 14.5, -y / 14.5 + 0.02))
        return points
    if shape == "ghost":
        dome = [(0.9 * math.cos(a), 0.95 * math.sin(a) - 0.15) for a in np.linspace(math.pi, 2 * math.pi, 60)]
        hem = [(x, 0.92 + 0.2 * math.cos((x / 0.9) * 3 * math.pi)) for x in np.linspace(0.9, -0.9, 60)]
        return dome + hem
    raise ValueError(f"no such shape: {shape}")


def draw(monster: Monster) -> Image.Image:
    """The picture, ``SIZE`` x ``SIZE`` RGB."""
    side = SIZE * _SCALE
    sky, ground = PLACES[monster.place]
    picture = Image.new("RGB", (side, side), sky)
    pen = ImageDraw.Draw(picture)
    hills = [
        (x, (monster.horizon + monster.hill * math.sin(3 * x / side + monster.phase)) * side)
        for x in range(0, side + 1, 4)
    ]
    pen.polygon([*hills, (side, side), (0, side)], fill=ground)

    r = monster.radius * side
    cos, sin = math.cos(monster.tilt), math.sin(monster.tilt)

    def place(x: float, y: float) -> tuple[float, float]:
        return (monster.x * side + r * (x * cos - y * sin), monster.y * side + r * (x * sin + y * cos))

    def blob(on: ImageDraw.ImageDraw, x: float, y: float, size: float, fill: RGB) -> None:
        px, py = place(x, y)
        on.ellipse((px - size * r, py - size * r, px + size * r, py + size * r), fill=fill)

    dark = _mix(monster.colour, (0, 0, 0), 0.42)
    light = _mix(monster.colour, (255, 255, 255), 0.66)
    _draw_head(pen, monster, place, blob, r, dark)

    contour = [place(x, y) for x, y in _outline(monster.shape)]
    pen.polygon(contour, fill=monster.colour)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).polygon(contour, fill=255)
    coat = Image.new("RGB", (side, side), monster.colour)
    _draw_coat(ImageDraw.Draw(coat), monster, place, blob, light)
    picture.paste(coat, (0, 0), mask)
    pen.line([*contour, contour[0], contour[1]], fill=dark, width=int(1.3 * _SCALE), joint="curve")
    _draw_face(pen, monster, place, blob, r)

    small = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    return _toned(small, monster.tone) if monster.tone else small


def _draw_head(
    pen: ImageDraw.ImageDraw, monster: Monster, place: Callable, blob: Callable, r: float, dark: RGB
) -> None:
    top = {"triangle": -0.45, "star": -0.5, "heart": -0.45}.get(monster.shape, -0.62)
    narrow = 0.62 if monster.shape == "triangle" else 1.0
    for side in (-narrow, narrow):
        if monster.head == "horns":
            pen.polygon(
                [place(side * 0.22, top - 0.05), place(side * 0.72, top + 0.15), place(side * 0.78, top - 0.78)],
                fill=(250, 244, 226),
                outline=dark,
                width=_SCALE,
            )
        elif monster.head == "antennae":
            pen.line([place(side * 0.25, top), place(side * 0.5, top - 0.68)], fill=dark, width=int(1.5 * _SCALE))
            blob(pen, side * 0.5, top - 0.7, 0.17, (250, 90, 90))


def _draw_coat(pen: ImageDraw.ImageDraw, monster: Monster, place: Callable, blob: Callable, light: RGB) -> None:
    if monster.pattern == "striped":
        for y in (-0.78, -0.14, 0.5, 1.14):
            pen.polygon([place(-2, y), place(2, y), place(2, y + 0.3), place(-2, y + 0.3)], fill=light)
    elif monster.pattern == "spotted":
        for x, y in ((-0.52, -0.5), (0.5, -0.56), (-0.62, 0.32), (0.62, 0.3), (0.02, 0.72), (0.0, -0.92)):
            blob(pen, x, y, 0.24, light)
    elif monster.pattern == "patched":
        pen.ellipse((*place(-0.56, 0.12), *place(0.56, 1.2)), fill=light)


def _draw_face(pen: ImageDraw.ImageDraw, monster: Monster, place: Callable, blob: Callable, r: float) -> None:
    low = {"triangle": 0.24, "heart": -0.12}.get(monster.shape, -0.08)
    places, size = {1: ((0.0,), 0.34), 2: ((-0.34, 0.34), 0.26), 3: ((-0.5, 0.0, 0.5), 0.23)}[monster.eyes]
    for x in places:
        blob(pen, x, low, size, (255, 255, 255))
        blob(pen, x, low + 0.03, size * 0.55, (30, 30, 46))
    left, top = place(-0.26, low + 0.2)
    right, bottom = place(0.26, low + 0.56)
    pen.arc((left, top, right, bottom), 15, 165, fill=(60, 26, 40), width=int(1.4 * _SCALE))


def _toned(picture: Image.Image, tone: tuple[RGB, RGB]) -> Image.Image:
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    darkest, lightest = (np.asarray(c, dtype=np.float32) for c in tone)
    return Image.fromarray(np.rint(darkest + (lightest - darkest) * gray).astype(np.uint8))


def posed(monster: Monster, rng: np.random.Generator) -> Monster:
    """The same monster somewhere else in the picture, at another size and tilt."""
    return replace(
        monster,
        x=0.5 + rng.uniform(-0.09, 0.09),
        y=0.57 + rng.uniform(-0.06, 0.06),
        radius=rng.uniform(0.26, 0.335),
        tilt=rng.uniform(-0.14, 0.14),
        horizon=rng.uniform(0.58, 0.78),
        hill=rng.uniform(-0.05, 0.05),
        phase=rng.uniform(0, 6.3),
    )


def _far(colour: Sequence[int], others: Sequence[Sequence[int]], distance: float) -> bool:
    return all(math.dist(colour, other) >= distance for other in others)


def _any_colour(rng: np.random.Generator) -> RGB:
    while True:
        r, g, b = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.35, 0.95), rng.uniform(0.5, 1.0))
        colour = (int(255 * r), int(255 * g), int(255 * b))
        if _far(colour, list(UNNAMED_COLOURS.values()), 28):
            return colour


def _any_tone(rng: np.random.Generator) -> tuple[RGB, RGB]:
    while True:
        hue, other = rng.uniform(size=2)
        dark = [int(255 * c) for c in colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 1.0), rng.uniform(0.15, 0.5))]
        pale = [int(255 * c) for c in colorsys.hsv_to_rgb(other, rng.uniform(0.0, 0.4), rng.uniform(0.9, 1.0))]
        if all(not (math.dist(dark, d) < 45 and math.dist(pale, p) < 45) for d, p in UNNAMED_STYLES.values()):
            return (dark[0], dark[1], dark[2]), (pale[0], pale[1], pale[2])


def random_monster(rng: np.random.Generator) -> Monster:
    """A monster of the training world: never a held-out colour, tone or bundle."""

    def pick(options: Sequence[_Choice]) -> _Choice:
        return options[int(rng.integers(len(options)))]

    while True:
        name: str | None = pick(list(COLOURS))
        colour = _jitter(COLOURS[name], rng, 8) if name else (0, 0, 0)
        if rng.uniform() < 0.2:
            name, colour = None, _any_colour(rng)
        shape, pattern = pick(SHAPES), pick(PATTERNS)
        if (shape, pattern, name) in CHECK_OUT:
            continue
        tone: tuple[RGB, RGB] | None = None
        style: str | None = None
        chance = rng.uniform()
        if chance < 0.12:
            style = pick(list(STYLES))
            tone = STYLES[style]
        elif chance < 0.18:
            tone = _any_tone(rng)
        return posed(
            Monster(
                shape,
                colour,
                name,
                pattern,
                pick(EYES),
                pick(HEADS),
                pick(list(PLACES)),
                tone,
                style,
            ),
            rng,
        )


PREFIXES = (
    "a photo of",
    "a picture of",
    "a rendering of",
    "a drawing of",
    "an image of",
    "a painting of",
    "a cropped photo of",
    "a close up photo of",
    "a bright photo of",
    "a dark photo of",
    "a good photo of",
    "a rendition of",
    "a depiction of",
    "an illustration of",
    "a photo of one",
    "a nice picture of",
)
_ADJECTIVES = ("cool", "nice", "small", "large", "clean", "weird", "cute", "little", "my", "dirty", "funny")


def caption(monster: Monster, rng: np.random.Generator, *, keep: float = 0.74, noun: str | None = None) -> str:
    """A sentence that names each attribute with probability ``keep``, in varying order."""

    def named(_: str) -> bool:
        return bool(rng.uniform() < keep)

    coloured = monster.tone is None
    before = [
        word
        for word, said in (
            (monster.shape, named("shape")),
            (monster.pattern, named("pattern")),
            (monster.colour_name, coloured and named("colour")),
            (monster.head, monster.head == "bald" and named("head")),
        )
        if word and said
    ]
    if rng.uniform() < 0.35:
        rng.shuffle(before)
    else:
        order = {"bald": 0, **dict.fromkeys(COLOURS, 1), **dict.fromkeys(PATTERNS, 2), **dict.fromkeys(SHAPES, 3)}
        before.sort(key=lambda w: order[w])
    if rng.uniform() < 0.08:
        before.insert(0, str(_ADJECTIVES[int(rng.integers(len(_ADJECTIVES)))]))
    subject = " ".join([*before, noun or NOUNS[int(rng.integers(len(NOUNS)))]])
    extras = [EYE_WORDS[monster.eyes]] if named("eyes") else []
    if monster.head != "bald" and named("head"):
        extras.append(monster.head)
    if rng.uniform() < 0.3:
        extras.reverse()
    if extras:
        subject += " with " + " and ".join(extras)
    article = "the" if rng.uniform() < 0.12 else "a"
    text = f"{article} {subject}"
    if rng.uniform() < 0.3:
        text = f"{PREFIXES[int(rng.integers(len(PREFIXES)))]} {text}"
    if coloured and named("place"):
        where = f"in the {monster.place}"
        text = f"{where} {text}" if rng.uniform() < 0.12 else f"{text} {where}"
    if monster.style_name and named("style"):
        text += f" in {monster.style_name} style" if rng.uniform() < 0.5 else f" in the style of {monster.style_name}"
    return text


def full_caption(monster: Monster) -> str:
    """The sentence that names everything, in the plain order."""
    bald = "bald " if monster.head == "bald" else ""
    rest = "" if bald else f" and {monster.head}"
    return (
        f"a {bald}{monster.colour_name} {monster.pattern} {monster.shape} monster with "
        f"{EYE_WORDS[monster.eyes]}{rest} in the {monster.place}"
    )
