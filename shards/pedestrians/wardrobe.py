"""The appearance of a procedural pedestrian: body, clothes, hair, hat and bag, drawn from (seed, pid) alone.

Every surface is a `Paint` with a visible colour and an infrared tone. For clothes these are independent draws, because
near infrared shows how a dye and a fibre reflect, which their colour does not tell; the pattern, the cut and the
contrast between the two threads of a pattern are common to both. Source: ours (no public set may be shipped).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tacaf.draws import Stream, uniform

PERSON, VIEW, CAMERA, SPLIT, PRESENCE = range(5)  # purposes of Stream.SYNTH's draws: the `epoch` word of the counter

# There are few colours, so that several identities share each of them.
CLOTH_COLOURS = (
    (28, 28, 32),
    (60, 62, 68),
    (130, 132, 136),
    (225, 224, 220),
    (32, 42, 84),
    (58, 98, 168),
    (168, 36, 40),
    (96, 26, 38),
    (40, 104, 62),
    (104, 104, 58),
    (206, 180, 140),
    (104, 70, 44),
    (222, 186, 50),
    (206, 120, 150),
)
HAIR_COLOURS = ((24, 20, 18), (52, 36, 24), (92, 62, 36), (176, 140, 82), (140, 138, 136))
SKIN_COLOURS = ((236, 196, 170), (214, 166, 132), (172, 118, 84), (112, 74, 52))
# material -> (darkest and lightest infrared tone, strength of its grain)
MATERIALS = {
    "cotton": (70, 235, 0.03),
    "wool": (40, 200, 0.06),
    "denim": (60, 210, 0.07),
    "nylon": (20, 240, 0.02),
    "leather": (16, 110, 0.04),
}
TOP_PATTERNS = ("plain", "plain", "rings", "rings", "bars", "checks", "dots", "blocks", "diagonal")
BOTTOM_PATTERNS = ("plain", "plain", "plain", "plain", "rings", "bars", "checks", "side")


@dataclass(frozen=True)
class Paint:
    """A surface: two threads, each with a visible RGB colour and an infrared tone (0-255), and how they are woven.

    `period` is in body heights. `grain` is the relative strength of the texture noise of the material.
    """

    visible: tuple[int, int, int]
    infrared: int
    visible_second: tuple[int, int, int] = (0, 0, 0)
    infrared_second: int = 0
    pattern: str = "plain"
    period: float = 0.05
    grain: float = 0.04


@dataclass(frozen=True)
class Person:
    """One identity. Lengths are in body heights; half-widths are measured from the middle line."""

    head: float
    shoulder: float
    waist: float
    hip: float
    depth: float  # front-to-back size over width
    leg: float  # height of the hip joints
    limb: float  # thickness of arms and legs, 1 = average
    hair: str
    hat: str
    skin: Paint
    hair_paint: Paint
    hat_paint: Paint
    top: str  # tshirt, shirt, jacket, hoodie, coat, dress
    top_paint: Paint
    inner_paint: Paint  # under an open jacket or coat; also hood, collar, scarf
    is_open: bool
    sleeve: float  # share of the arm that is covered
    hem: float  # height of the lower edge of the top
    flare: float  # half-width of a skirt, dress or coat at its hem over the hip's
    bottom: str  # trousers, shorts, skirt, leggings
    bottom_paint: Paint
    bottom_length: float  # share of the leg that is covered
    cuff: float  # width of the trouser leg at its end, 1 = straight
    shoe_paint: Paint
    boot: float  # share of the shin that is covered by the shoe
    bag: str  # none, backpack, handbag, satchel
    bag_size: float
    bag_side: int  # -1 or 1
    bag_paint: Paint
    logo: str  # none, front, back, both
    scarf: bool
    strip: bool  # a band that reflects in both modalities


class Dice:
    """A sequence of uniform draws. Every method call takes exactly one, so that no result depends on another."""

    def __init__(self, draws: np.ndarray) -> None:
        self._draws = iter(draws.tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(next(self._draws))

    def choice(self, options: Sequence[object]) -> object:
        return options[int(next(self._draws) * len(options))]

    def chance(self, probability: float) -> bool:
        return float(next(self._draws)) < probability

    def key(self) -> int:
        return int(next(self._draws) * 4294967296.0)


def dice(kind: int, seed: int, step: int, position: int, draws: int = 128) -> Dice:
    """The draws for one thing: `kind` says what it is (PERSON, VIEW, ...), `step` and `position` say which one."""
    return Dice(uniform(Stream.SYNTH, seed, kind, step, position, np.arange(draws)))


def luminance(colour: tuple[int, int, int]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _cloth(d: Dice, patterns: Sequence[str] = ("plain",), coarse: float = 1.0) -> Paint:
    """A cloth. Its colour and its infrared tone are independent; the second thread is visible in both modalities."""
    low, high, grain = MATERIALS[str(d.choice(tuple(MATERIALS)))]
    first, second = int(d.between(0, len(CLOTH_COLOURS))), int(d.between(0, len(CLOTH_COLOURS)))
    shift = d.between(-14, 14)
    infrared, contrast = d.between(low, high), d.between(70, 130)
    pattern, period = str(d.choice(patterns)), d.between(0.028, 0.075) * coarse
    while abs(luminance(CLOTH_COLOURS[first]) - luminance(CLOTH_COLOURS[second])) < 60:
        second = (second + 1) % len(CLOTH_COLOURS)
    return Paint(
        visible=_shifted(CLOTH_COLOURS[first], shift),
        infrared=round(infrared),
        visible_second=_shifted(CLOTH_COLOURS[second], -shift),
        infrared_second=round(infrared - contrast if infrared > 128 else infrared + contrast),
        pattern=pattern,
        period=period,
        grain=grain,
    )


def _shifted(colour: tuple[int, int, int], shift: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value + shift))) for value in colour)
    return red, green, blue


def draw_person(seed: int, pid: int) -> Person:
    """The identity `pid` of the world `seed`: a pure function of both. Source: ours."""
    d = dice(PERSON, seed, 0, pid, draws=192)
    tone = d.between(0, 1)  # skin and hair keep part of their brightness in infrared; cloth does not
    skin_colour = SKIN_COLOURS[int(tone * len(SKIN_COLOURS))]
    hair_colour = HAIR_COLOURS[int(d.between(0, len(HAIR_COLOURS)))]
    skin = Paint(skin_colour, round(215 - 45 * tone + d.between(-10, 10)), grain=0.02)
    hair_paint = Paint(hair_colour, round(50 + 0.45 * luminance(hair_colour) + d.between(-15, 15)), grain=0.08)
    top = str(d.choice(("tshirt", "shirt", "jacket", "hoodie", "coat", "dress")))
    bottom = str(d.choice(("trousers", "trousers", "shorts", "skirt", "leggings")))
    leg = d.between(0.45, 0.53)
    hems = {"tshirt": leg - 0.01, "shirt": leg - 0.04, "jacket": leg + 0.03, "hoodie": leg - 0.03}
    hem_long = d.between(0.22, 0.34)
    sleeve_short, sleeve_dress, short_leg = d.between(0.2, 0.45), d.between(0.0, 1.0), d.between(0.3, 0.52)
    sleeves = {"tshirt": sleeve_short, "dress": 0.0 if sleeve_dress < 0.4 else sleeve_dress}
    lengths = {"trousers": 1.0, "leggings": 0.93, "shorts": short_leg, "skirt": d.between(0.3, 0.7)}
    shoulder = d.between(0.098, 0.135)
    return Person(
        head=d.between(0.052, 0.064),
        shoulder=shoulder,
        waist=shoulder * d.between(0.68, 1.05),
        hip=d.between(0.078, 0.112),
        depth=d.between(0.55, 0.95),
        leg=leg,
        limb=d.between(0.8, 1.3),
        hair=str(d.choice(("bald", "short", "short", "bob", "long", "ponytail", "bun"))),
        hat=str(d.choice(("none", "none", "none", "none", "cap", "beanie", "brim"))),
        skin=skin,
        hair_paint=hair_paint,
        hat_paint=_cloth(d),
        top=top,
        top_paint=_cloth(d, TOP_PATTERNS),
        inner_paint=_cloth(d),
        is_open=d.chance(0.5) and top in ("jacket", "coat", "shirt"),
        sleeve=sleeves.get(top, 1.0),
        hem=hems.get(top, hem_long),
        flare=d.between(1.0, 1.9),
        bottom=bottom,
        bottom_paint=_cloth(d, BOTTOM_PATTERNS),
        bottom_length=lengths[bottom],
        cuff={"leggings": 0.75, "trousers": 1.0}.get(bottom, 1.2)
        * d.between(0.85, 1.5 if bottom != "leggings" else 1.0),
        shoe_paint=_cloth(d),
        boot=d.between(0.2, 0.75) if d.chance(0.3) else 0.0,
        bag=str(d.choice(("none", "none", "backpack", "backpack", "handbag", "satchel"))),
        bag_size=d.between(0.8, 1.35),
        bag_side=-1 if d.chance(0.5) else 1,
        bag_paint=_cloth(d, ("plain", "plain", "blocks", "rings", "bars")),
        logo=str(d.choice(("none", "none", "front", "back", "both"))),
        scarf=d.chance(0.15),
        strip=d.chance(0.15),
    )
