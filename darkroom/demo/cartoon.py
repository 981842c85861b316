"""Cartoon cats in vector form: four poses, five accessories, five scenes. The cat is about 1 unit high, around (0, 0)."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from darkroom.demo.pen import Colour, Pen, Points, ellipse, mix, rectangle, smooth, tube

INK = (44, 30, 58)
WHITE = (255, 255, 255)
BLUSH = (246, 148, 160)
LEFT = (-1, 1)  # a shape of the right side times this is its mirror image


@dataclass(frozen=True)
class Look:
    """A cat and its surroundings, with their colours; `sky` is the colour at the top and at the horizon."""

    pose: str
    coat: Colour
    eyes: Colour
    accessory: str
    accessory_colour: Colour
    scene: str
    sky: tuple[Colour, Colour]
    ground: Colour


def draw_cat(look: Look, *, size: int, rng: random.Random) -> Image.Image:
    """Draw a picture of `size` x `size` px, at 8 times the size (4 times from 128 px on), and downsample it by Lanczos.

    `rng` chooses position, scale, tilt, mirroring and the small differences between two cats of the same look.
    """
    scale = 8 if size < 128 else 4
    pen = Pen(size * scale, details=size >= 48)
    draw_scene(pen, look, rng)
    shade = rng.randint(-7, 7)
    coat = [min(255, max(0, channel + shade + rng.randint(-3, 3))) for channel in look.coat]
    pen.place(
        x=0.5 + rng.uniform(-0.045, 0.045),
        y=0.535 + rng.uniform(-0.02, 0.03),
        scale=rng.uniform(0.9, 1.03),
        tilt=rng.uniform(-0.06, 0.06),
        mirrored=rng.random() < 0.5,
    )
    POSES[look.pose](pen, look, Fur.of(coat), rng)
    return pen.image.resize((size, size), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Fur:
    main: Colour
    light: Colour  # belly, muzzle, paws
    dark: Colour  # stripes
    line: Colour  # outline

    @classmethod
    def of(cls, coat: Sequence[int]) -> "Fur":
        dark_coat = sum(coat) < 200
        line = mix(coat, (150, 142, 178), 0.5) if dark_coat else mix(coat, INK, 0.62)
        light = mix(coat, WHITE, 0.14 if dark_coat else 0.3)
        dark = mix(coat, WHITE, 0.1) if dark_coat else mix(coat, INK, 0.16)
        return cls(main=mix(coat, coat, 0), light=light, dark=dark, line=line)


# ---- the cat


def draw_head(pen: Pen, look: Look, fur: Fur, rng: random.Random, *, x: float, y: float, r: float) -> None:
    """A head of half-width `r` around (x, y), slightly turned, with a hat if the look has one."""
    turn = rng.uniform(-0.1, 0.1)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])

    def at(points: Points) -> Points:
        return points * r @ rotation + (x, y)

    ear = np.array([(0.95, -0.2), (0.97, -0.72), (0.86, -1.13), (0.76, -1.15), (0.45, -0.92), (0.12, -0.6)])
    inner_ear = np.array([(0.84, -0.5), (0.81, -0.95), (0.4, -0.7)])
    cheek = [(0.55, -0.74), (0.93, -0.3), (1.04, 0.16), (0.72, 0.62)]
    skull = smooth((0, -0.82), *cheek, (0, 0.8), *((-x, y) for x, y in reversed(cheek)))
    pen.shapes([at(points) for points in (ear * LEFT, ear, skull)], fur.main, fur.line)
    pen.shapes([at(points) for points in (inner_ear * LEFT, inner_ear)], mix(BLUSH, fur.main, 0.25))
    pen.shapes([at(skull)], fur.main)
    stripes = [tube((s * 0.26, -0.8), (s * 0.2, -0.5), start=0.085, end=0.04) for s in (-1, 0, 1)]
    pen.shapes([at(points) for points in stripes], fur.dark)
    pen.shapes([at(ellipse(s * 0.2, 0.4, 0.29, 0.22)) for s in (-1, 1)], fur.light)
    pen.shapes([at(ellipse(s * 0.72, 0.28, 0.15, 0.1)) for s in (-1, 1)], mix(fur.main, BLUSH, 0.6))
    _draw_face(pen, look, fur, at)
    if look.accessory == "hat":
        tilt = rng.uniform(-0.15, 0.15)
        colour = look.accessory_colour
        cone = np.array([(-0.5, -0.72), (tilt, -1.62), (0.5, -0.72), (0.0, -0.62)])
        pen.shapes([at(cone)], colour, mix(colour, INK, 0.6))
        dots = [at(ellipse(dx, dy, 0.1, 0.1)) for dx, dy in ((-0.2, -0.84), (0.2, -0.9), (0.02, -1.15))]
        pen.shapes(dots, mix(colour, WHITE, 0.75))
        pen.shapes([at(ellipse(tilt, -1.62, 0.17, 0.17))], (255, 250, 240), mix(colour, INK, 0.6), 0.014)


def _draw_face(pen: Pen, look: Look, fur: Fur, at: Callable[[Points], Points]) -> None:
    pen.shapes([at(ellipse(s * 0.45, -0.06, 0.25, 0.3)) for s in (-1, 1)], look.eyes, INK, 0.012)
    pen.shapes([at(ellipse(s * 0.43, -0.05, 0.12, 0.24)) for s in (-1, 1)], (26, 18, 36))
    pen.shapes([at(ellipse(s * 0.45 + 0.08, -0.18, 0.08, 0.09)) for s in (-1, 1)], WHITE)
    pen.shapes([at(smooth((-0.12, 0.23), (0, 0.21), (0.12, 0.23), (0, 0.36)))], (236, 110, 130))
    if not pen.details:
        return
    ink = mix(fur.line, INK, 0.3)
    mouths = [tube((0, 0.34), (s * 0.03, 0.47), (s * 0.15, 0.51), (s * 0.27, 0.42), start=0.024, end=0.02) for s in (-1, 1)]
    whiskers = [
        tube((s * 0.62, 0.36 + dy), (s * 0.98, 0.32 + 1.8 * dy), (s * 1.3, 0.34 + 2.9 * dy), start=0.018, end=0.008)
        for s in (-1, 1)
        for dy in (-0.06, 0.03, 0.12)
    ]
    pen.shapes([at(points) for points in mouths], ink)
    pen.shapes([at(points) for points in whiskers], mix(ink, WHITE, 0.35 if sum(fur.main) > 200 else 0.75))


def draw_neckwear(pen: Pen, look: Look, *, x: float, y: float, r: float) -> None:
    """Scarf or bow tie under a chin at (x, y) of a head of half-width `r`."""
    colour, line = look.accessory_colour, mix(look.accessory_colour, INK, 0.6)

    def at(points: Points) -> Points:
        return points * r + (x, y)

    if look.accessory == "scarf":
        end = tube((0.38, 0.02), (0.5, 0.32), (0.46, 0.66), start=0.17, end=0.2)
        loop = tube((-0.78, -0.14), (-0.4, 0.06), (0, 0.12), (0.4, 0.06), (0.78, -0.14), start=0.17, end=0.17)
        pen.shapes([at(end)], mix(colour, INK, 0.12), line, 0.02)
        pen.shapes([at(loop)], colour, line, 0.02)
    elif look.accessory == "bow tie":
        wings = [at(smooth((0, 0.1), (s * 0.3, -0.16), (s * 0.56, -0.2), (s * 0.58, 0.4), (s * 0.3, 0.34))) for s in (-1, 1)]
        pen.shapes(wings, colour, line, 0.02)
        pen.shapes([at(ellipse(0, 0.1, 0.15, 0.17))], mix(colour, WHITE, 0.25), line, 0.014)


def draw_ball(pen: Pen, look: Look, *, x: float, y: float) -> None:
    if look.accessory != "ball":
        return
    colour = look.accessory_colour
    pen.shapes([ellipse(x, y, 0.125, 0.125)], colour, mix(colour, INK, 0.6), 0.018)
    pen.shapes([ellipse(x, y, 0.045, 0.122, 0.5)], (255, 246, 214))
    pen.shapes([ellipse(x - 0.055, y - 0.06, 0.022, 0.016)], mix(colour, WHITE, 0.8))


def draw_sitting(pen: Pen, look: Look, fur: Fur, rng: random.Random) -> None:
    sway = rng.uniform(-0.05, 0.05)
    _shadow(pen, look, 0.03, 0.43, 0.34)
    tail = tube((0.1, 0.38), (0.3, 0.37), (0.38, 0.24), (0.37 + sway / 2, 0.11), (0.39 + sway, -0.02), start=0.058, end=0.05)
    pen.shapes([tail], fur.main, fur.line)
    side = [(0.16, -0.02), (0.22, 0.2), (0.27, 0.36), (0.17, 0.43)]
    body = smooth((0, -0.1), *side, *((-x, y) for x, y in reversed(side)))
    pen.shapes([body], fur.main, fur.line)
    pen.shapes([smooth((0, 0.22), (0.085, 0.12), (0.06, 0.0), (-0.06, 0.0), (-0.085, 0.12))], fur.light)
    _legs(pen, fur, [(-0.08, 0.29, 0.4), (0.08, 0.29, 0.4)])
    draw_neckwear(pen, look, x=0, y=0.02, r=0.24)
    draw_head(pen, look, fur, rng, x=0, y=-0.17, r=0.25)
    draw_ball(pen, look, x=-0.33, y=0.35)


def draw_lying(pen: Pen, look: Look, fur: Fur, rng: random.Random) -> None:
    sway = rng.uniform(-0.04, 0.04)
    _shadow(pen, look, 0.0, 0.4, 0.46)
    pen.shapes([tube((0.3, 0.34), (0.44, 0.26), (0.43, 0.08 + sway), (0.33, 0.0), start=0.06, end=0.05)], fur.main, fur.line)
    body = smooth((-0.3, 0.05), (0.0, 0.0), (0.26, 0.04), (0.42, 0.24), (0.37, 0.4), (0.0, 0.42), (-0.36, 0.4), (-0.4, 0.2))
    pen.shapes([body], fur.main, fur.line)
    pen.shapes([tube((dx, 0.05), (dx + 0.03, 0.17), start=0.026, end=0.014) for dx in (0.1, 0.2, 0.3)], fur.dark)
    pen.shapes([ellipse(0.19, 0.385, 0.095, 0.052)], fur.light, fur.line, 0.014)
    pen.shapes([ellipse(dx, 0.385, 0.085, 0.055) for dx in (-0.24, -0.06)], fur.light, fur.line, 0.014)
    draw_neckwear(pen, look, x=-0.15, y=0.25, r=0.23)
    draw_head(pen, look, fur, rng, x=-0.15, y=0.07, r=0.25)
    draw_ball(pen, look, x=0.34, y=0.36)


def draw_standing(pen: Pen, look: Look, fur: Fur, rng: random.Random) -> None:
    sway = rng.uniform(-0.06, 0.06)
    _shadow(pen, look, 0.0, 0.43, 0.4)
    pen.shapes([tube((0.28, 0.12), (0.4, 0.02), (0.37 + sway, -0.18), (0.43 + sway, -0.33), start=0.055, end=0.045)], fur.main, fur.line)
    _legs(pen, Fur(fur.dark, fur.main, fur.dark, fur.line), [(-0.1, 0.2, 0.38), (0.19, 0.2, 0.38)])
    body = smooth((-0.26, 0.02), (0.0, 0.02), (0.26, 0.02), (0.36, 0.16), (0.28, 0.29), (0.0, 0.3), (-0.26, 0.28), (-0.32, 0.14))
    pen.shapes([body], fur.main, fur.line)
    pen.shapes([tube((dx, 0.03), (dx + 0.02, 0.14), start=0.026, end=0.014) for dx in (0.08, 0.17, 0.26)], fur.dark)
    _legs(pen, fur, [(-0.22, 0.2, 0.4), (0.29, 0.18, 0.4)])
    draw_neckwear(pen, look, x=-0.2, y=0.1, r=0.22)
    draw_head(pen, look, fur, rng, x=-0.2, y=-0.09, r=0.245)
    draw_ball(pen, look, x=0.04, y=0.36)


def draw_peeking(pen: Pen, look: Look, fur: Fur, rng: random.Random) -> None:
    pen.shapes([smooth((0, 0.1), (0.3, 0.2), (0.36, 0.75), (-0.36, 0.75), (-0.3, 0.2))], fur.main, fur.line)
    draw_neckwear(pen, look, x=0, y=0.29, r=0.37)
    draw_head(pen, look, fur, rng, x=0, y=0.09 if look.accessory == "hat" else 0.0, r=0.35 if look.accessory == "hat" else 0.37)
    draw_ball(pen, look, x=0.0, y=0.37)
    pen.shapes([tube((s * 0.27, 0.62), (s * 0.23, 0.42), start=0.085, end=0.085) for s in (-1, 1)], fur.light, fur.line, 0.018)


POSES = {"sitting": draw_sitting, "lying": draw_lying, "standing": draw_standing, "peeking": draw_peeking}


def _legs(pen: Pen, fur: Fur, legs: Sequence[tuple[float, float, float]]) -> None:
    """Legs with paws, each (x, top, bottom)."""
    for x, top, bottom in legs:
        pen.shapes([tube((x, top), (x, bottom), start=0.05, end=0.055)], fur.main, fur.line, 0.016)
        pen.shapes([tube((x, top - 0.06), (x, top + 0.02), start=0.052, end=0.056)], fur.main)
        pen.shapes([ellipse(x, bottom + 0.01, 0.062, 0.042)], fur.light, fur.line, 0.014)


def _shadow(pen: Pen, look: Look, x: float, y: float, radius: float) -> None:
    pen.shapes([ellipse(x, y, radius, 0.06)], mix(look.ground, INK, 0.22))


# ---- the scenes, in units of the picture


def draw_scene(pen: Pen, look: Look, rng: random.Random) -> None:
    pen.gradient(*look.sky)
    pen.place(x=0, y=0, scale=1.0, tilt=0, mirrored=False)
    SCENES[look.scene](pen, look, rng, rng.uniform(0.64, 0.7))


def _hills(pen: Pen, colour: Colour, horizon: float, lifts: tuple[float, float, float], line: Colour | None = None) -> None:
    """Ground up to `horizon`, raised by `lifts` at the left, in the middle and at the right."""
    left, middle, right = (horizon - lift for lift in lifts)
    wave = smooth((-0.3, horizon), (0.2, left), (0.7, middle), (1.2, right), (1.4, 1.3), (-0.4, 1.3))
    pen.shapes([wave], colour, line, 0.012)


def _meadow(pen: Pen, look: Look, rng: random.Random, horizon: float) -> None:
    x = rng.uniform(0.1, 0.3)
    puffs = ((-0.1, 0.02, 0.08), (0, 0, 0.11), (0.11, 0.02, 0.08))
    pen.shapes([ellipse(x + dx, 0.14 + dy, r, r * 0.62) for dx, dy, r in puffs], (244, 250, 252))
    _hills(pen, look.ground, horizon, (0.06, -0.01, 0.04))
    petals = ((-0.016, 0), (0.016, 0), (0, -0.016), (0, 0.016))
    for _ in range(5):
        x, y = rng.uniform(0.02, 0.98), rng.uniform(horizon + 0.08, 0.97)
        pen.shapes([ellipse(x + dx, y + dy, 0.014, 0.014) for dx, dy in petals], (255, 252, 244))
        pen.shapes([ellipse(x, y, 0.012, 0.012)], (250, 214, 90))


def _beach(pen: Pen, look: Look, rng: random.Random, horizon: float) -> None:
    shore = horizon + rng.uniform(-0.02, 0.02)
    pen.shapes([rectangle(0, horizon - 0.12, 1, 1)], mix(look.sky[1], (40, 165, 190), 0.55))
    _hills(pen, look.ground, shore, (-0.03, 0.02, -0.02), (244, 252, 250))


def _night(pen: Pen, look: Look, rng: random.Random, horizon: float) -> None:
    x, y = rng.uniform(0.78, 0.86), rng.uniform(0.13, 0.19)
    x = x if rng.random() < 0.5 else 1 - x
    pen.shapes([ellipse(x, y, 0.085, 0.085)], (255, 240, 190))
    pen.shapes([ellipse(x + 0.04, y - 0.025, 0.07, 0.07)], mix(*look.sky, y))
    for _ in range(9):
        pen.shapes([ellipse(rng.uniform(0, 1), rng.uniform(0, 0.6), 0.009, 0.009)], (255, 246, 214))
    _hills(pen, look.ground, horizon, (-0.03, 0.03, 0.0))


def _sunset(pen: Pen, look: Look, rng: random.Random, horizon: float) -> None:
    pen.shapes([ellipse(rng.uniform(0.2, 0.8), horizon - 0.12, 0.24, 0.24)], (255, 248, 210))
    _hills(pen, look.ground, horizon, (0.04, -0.02, 0.03))


def _room(pen: Pen, look: Look, rng: random.Random, horizon: float) -> None:
    stripes = [rectangle(x, 0, x + 0.06, horizon) for x in np.arange(rng.uniform(-0.06, 0.04), 1, 0.16)]
    pen.shapes(stripes, mix(look.sky[0], WHITE, 0.22))
    pen.shapes([rectangle(-0.1, horizon, 1.1, 1.1)], look.ground, (250, 246, 238), 0.016)


SCENES = {"meadow": _meadow, "beach": _beach, "night": _night, "sunset": _sunset, "room": _room}
