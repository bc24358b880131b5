"""Draws a procedural person: a small skeleton is posed, turned and projected, and its parts painted from far to near.

Body frame as in `shards.pedestrians.canvas`. Source: ours.
"""

import math

from shards.pedestrians.bags import bag_on_body, handbag
from shards.pedestrians.canvas import Canvas, Cutout, Point, Pose
from shards.pedestrians.wardrobe import Paint, Person
from tacaf.vocabulary import Modality

_STRIP = Paint((235, 235, 225), 250, grain=0.0)


def _between(start: Point, end: Point, share: float) -> Point:
    x, y, z = (a + (b - a) * share for a, b in zip(start, end, strict=True))
    return x, y, z


def _leg(canvas: Canvas, person: Person, side: int) -> None:
    angle = side * canvas.pose.stride
    shade = 1.0 if canvas.nearness((side * person.hip, 0, math.sin(angle) * 0.3)) >= 0 else 0.82
    hip = (side * person.hip * 0.5, person.leg, 0.0)
    half = person.leg * 0.52
    knee = (hip[0], hip[1] - half * math.cos(angle), half * math.sin(angle))
    bend = angle - (0.5 * abs(angle) if angle < 0 else 0.05)
    shin = person.leg - half - 0.02
    ankle = (hip[0], max(0.02, knee[1] - shin * math.cos(bend)), knee[2] + shin * math.sin(bend))
    thick, calf, thin = 0.048 * person.limb, 0.033 * person.limb, 0.02 * person.limb
    skin = canvas.ink(person.skin, shade)
    canvas.limb(hip, knee, thick, calf, skin)
    canvas.limb(knee, ankle, calf, thin, skin)
    shoe = canvas.ink(person.shoe_paint, shade)
    toe = (ankle[0], ankle[1] - 0.012, ankle[2] + 0.055)
    canvas.limb((ankle[0], ankle[1] - 0.008, ankle[2] - 0.008), toe, 0.021, 0.016, shoe)
    if person.bottom != "skirt":
        cloth = canvas.ink(person.bottom_paint, shade)
        slack = 1.02 if person.bottom == "leggings" else 1.14
        thigh_share = min(1.0, person.bottom_length * 2)
        end = _between(hip, knee, thigh_share)
        end_radius = (thick + (calf - thick) * thigh_share) * slack
        if person.bottom_length <= 0.55:
            canvas.limb(hip, end, thick * slack, end_radius * person.cuff, cloth)
        else:
            canvas.limb(hip, knee, thick * slack, calf * slack, cloth)
            low = _between(knee, ankle, person.bottom_length * 2 - 1)
            canvas.limb(knee, low, calf * slack, (thin + 0.008) * slack * person.cuff, cloth)
    if person.boot:
        canvas.limb(_between(ankle, knee, person.boot), ankle, calf * 1.15, thin * 1.35, shoe)


def _arm(canvas: Canvas, person: Person, side: int) -> None:
    angle = -side * canvas.pose.swing
    elbow_bend = canvas.pose.elbow_left if side > 0 else canvas.pose.elbow_right
    shoulder = (side * (person.shoulder - 0.012), 0.80, 0.0)
    out = side * canvas.pose.abduct
    elbow = (shoulder[0] + 0.17 * math.sin(out), 0.80 - 0.17 * math.cos(angle), 0.17 * math.sin(angle))
    fore = angle + elbow_bend
    wrist = (elbow[0] + 0.10 * math.sin(out), elbow[1] - 0.16 * math.cos(fore), elbow[2] + 0.16 * math.sin(fore))
    shade = 0.95 if canvas.nearness(_between(shoulder, elbow, 0.7)) >= -0.02 else 0.78
    thick, thin = 0.030 * person.limb, 0.018 * person.limb
    edge = canvas.ink(person.top_paint if person.sleeve > 0.1 else person.skin, 0.6)
    skin = canvas.ink(person.skin, shade)
    rim = 0.005
    reach = person.sleeve if person.sleeve > 0.1 else 1.0
    upper, lower = min(1.0, reach * 2), max(0.0, reach * 2 - 1)
    canvas.limb(shoulder, _between(shoulder, elbow, upper), thick + rim, thick - 0.003 + rim, edge)
    if lower:
        canvas.limb(elbow, _between(elbow, wrist, lower), thick - 0.003 + rim, thin + 0.005 + rim, edge)
    canvas.limb(shoulder, elbow, thick * 0.9, thick * 0.75, skin)
    canvas.limb(elbow, wrist, thick * 0.75, thin, skin)
    canvas.ball(wrist, 0.019, 0.023, skin)
    if person.sleeve > 0.1:
        cloth = canvas.ink(person.top_paint, shade)
        canvas.limb(shoulder, _between(shoulder, elbow, upper), thick, thick * 0.9, cloth)
        if lower:
            canvas.limb(elbow, _between(elbow, wrist, lower), thick * 0.9, thin + 0.006, cloth)
    if person.bag == "handbag" and side == person.bag_side:
        handbag(canvas, person, wrist, shade)


def _trunk(canvas: Canvas, person: Person) -> None:
    depth, leg = person.depth, person.leg
    if person.bottom == "skirt":
        hem = leg - person.bottom_length * leg
        spread = person.hip * person.flare
        skirt = canvas.ink(person.bottom_paint)
        canvas.tube(
            [
                (leg + 0.08, person.waist, person.waist * depth),
                (leg - 0.02, person.hip * 1.1, person.hip * depth),
                (hem, spread, max(spread * depth, 0.28 * abs(math.sin(canvas.pose.stride)))),
            ],
            skirt,
        )
    else:
        canvas.tube(
            [
                (leg + 0.08, person.waist, person.waist * depth),
                (leg - 0.01, person.hip, person.hip * depth),
                (leg - 0.06, person.hip * 0.92, person.hip * depth * 0.8),
            ],
            canvas.ink(person.bottom_paint, 0.97),
        )
    thick = 1.12 if person.top in ("jacket", "coat", "hoodie") else 1.0
    wide = [
        (0.835, 0.045, 0.045),
        (0.815, person.shoulder * 0.86, person.shoulder * 0.5 * depth),
        (0.785, person.shoulder * thick, person.shoulder * depth * 0.9),
        (0.70, person.shoulder * 0.93 * thick, person.shoulder * depth * thick),
    ]
    wide.append((leg + 0.12, person.waist * thick, person.waist * depth * thick))
    hip = person.hip * thick * 1.04
    if person.hem < leg - 0.06:
        stretch = 0.2 * abs(math.sin(canvas.pose.stride))
        wide += [(leg, hip, hip * depth), (person.hem, hip * person.flare, max(hip * person.flare * depth, stretch))]
    else:
        wide.append((person.hem, hip, hip * depth))
    canvas.tube(wide, canvas.ink(person.top_paint))
    if person.is_open and canvas.cos > 0:
        z = person.shoulder * depth * 0.9
        inner = canvas.ink(person.inner_paint, 0.97)
        canvas.polygon(
            [
                (-0.03, 0.825, z * 0.6),
                (0.03, 0.825, z * 0.6),
                (0.042, leg - 0.0, z),
                (0.05, person.hem, z),
                (-0.05, person.hem, z),
                (-0.042, leg, z),
            ],
            inner,
        )
    if person.strip:
        y, half = 0.66, person.shoulder * 0.93 * thick
        canvas.tube([(y + 0.012, half, half * depth), (y - 0.012, half, half * depth)], canvas.ink(_STRIP))
    _logo(canvas, person)


def _logo(canvas: Canvas, person: Person) -> None:
    facing = {"front": canvas.cos, "back": -canvas.cos, "both": abs(canvas.cos)}.get(person.logo, 0.0)
    if facing <= 0.25 or (person.is_open and canvas.cos > 0):
        return
    z = (1 if canvas.cos > 0 else -1) * person.shoulder * person.depth
    second = Paint(person.top_paint.visible_second, person.top_paint.infrared_second)
    ink = canvas.ink(second)
    size = 0.03 + 0.3 * person.top_paint.period
    if person.bag_side > 0:
        canvas.ball((0.0, 0.715, z), size * facing, size * 0.9, ink)
    else:
        canvas.polygon(
            [(-size * 1.3, 0.745, z), (size * 1.3, 0.745, z), (size * 1.3, 0.69, z), (-size * 1.3, 0.69, z)], ink
        )


def _head(canvas: Canvas, person: Person) -> None:
    r = person.head
    y = 1 - r * 1.25
    nape, top = (0.0, y, -0.3 * r), (0.0, y, 0.0)
    skin, hair = canvas.ink(person.skin), canvas.ink(person.hair_paint)
    canvas.limb((0.0, 0.80, 0.0), (0.0, y, 0.0), 0.026, 0.026, canvas.ink(person.skin, 0.85))
    back_shown = canvas.cos < 0.2
    if person.hair == "long" and not back_shown:
        canvas.tube([(y, r * 1.25, r * 1.1), (y - 2.0 * r, r * 1.5, r * 1.2)], hair)
    canvas.ball(top, r * 0.88, r * 1.2, skin)
    if person.scarf:
        canvas.tube([(0.862, 0.05, 0.05), (0.81, 0.072, 0.072)], canvas.ink(person.inner_paint))
    if person.hair != "bald":
        canvas.ball((0.0, y + 0.12 * r, -0.1 * r), r * 1.0, r * 1.2, hair)
        if canvas.cos > -0.35:  # the face is in front of the hair
            canvas.ball((0.0, y - 0.22 * r, 0.5 * r), r * (0.42 + 0.38 * max(0.0, canvas.cos)), r * 0.95, skin)
    if person.hair == "bob" and back_shown:
        canvas.tube([(y + 0.2 * r, r, r), (y - 1.1 * r, r * 1.25, r * 1.1)], hair)
    elif person.hair == "bob":
        for side in (-1, 1):
            canvas.limb(
                (side * 0.8 * r, y + 0.2 * r, -0.2 * r),
                (side * 0.95 * r, y - 0.9 * r, -0.2 * r),
                0.3 * r,
                0.35 * r,
                hair,
            )
    elif person.hair == "long" and back_shown:
        canvas.tube([(y + 0.2 * r, r, r), (y - 2.9 * r, r * 1.5, r * 1.1)], hair)
    elif person.hair == "ponytail":
        canvas.limb((0.0, y + 0.5 * r, -1.1 * r), (0.0, y - 1.8 * r, -1.8 * r), 0.4 * r, 0.25 * r, hair)
    elif person.hair == "bun":
        canvas.ball((0.0, y + 1.15 * r, -0.6 * r), 0.55 * r, 0.5 * r, hair)
    if person.hat != "none":
        _hat(canvas, person, nape, y)


def _hat(canvas: Canvas, person: Person, nape: Point, y: float) -> None:
    r, ink = person.head, canvas.ink(person.hat_paint)
    crown = (0.0, y + 0.25 * r, nape[2] * 0.3)
    canvas.ball(crown, 1.1 * r, (1.25 if person.hat == "beanie" else 1.1) * r, ink, span=(180, 360))
    if person.hat == "cap":
        canvas.limb((0.0, y + 0.3 * r, 0.5 * r), (0.0, y + 0.15 * r, 1.7 * r), 0.16 * r, 0.12 * r, ink)
        if canvas.cos > 0:
            canvas.ball((0.0, y + 0.22 * r, 0.6 * r), r * 0.95, r * 0.2, canvas.ink(person.hat_paint, 0.75))
    elif person.hat == "brim":
        canvas.ball((0.0, y + 0.3 * r, 0.0), 2.0 * r, 0.28 * r, canvas.ink(person.hat_paint, 0.85))
    else:
        canvas.ball((0.0, y + 1.5 * r, 0.0), 0.32 * r, 0.3 * r, ink)


def draw_figure(person: Person, pose: Pose, modality: Modality, height: int, width: int) -> Cutout:
    """The person alone, on a picture of height x width pixels."""
    canvas = Canvas(pose, height, width)
    near_first = 1 if canvas.nearness((1.0, 0.0, 0.0)) >= 0 else -1
    bag_on_body(canvas, person, is_front_layer=False)
    if canvas.nearness((-near_first, 0, 0)) < -0.4:
        _arm(canvas, person, -near_first)
    _leg(canvas, person, -near_first)
    _leg(canvas, person, near_first)
    if person.hair != "bald" and canvas.cos < 0.2:
        _trunk(canvas, person)
        _head(canvas, person)
    else:
        _head(canvas, person)
        _trunk(canvas, person)
    if canvas.nearness((-near_first, 0, 0)) >= -0.4:
        _arm(canvas, person, -near_first)
    bag_on_body(canvas, person, is_front_layer=True)
    _arm(canvas, person, near_first)
    return canvas.coloured(modality)
