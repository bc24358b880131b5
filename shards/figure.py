"""How a person is drawn: a small skeleton is posed, turned and projected, and its parts painted from far to near.

The parts are drawn as labels (one ink per surface), woven by their patterns, and only then coloured. So the same person
and view give the same shape in both modalities, and the modality decides nothing but the tone of each ink.
Body frame: x to the person's left, y up (feet 0, crown 1), z forward; lengths are in body heights. Source: ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from shards.wardrobe import Paint, Person
from tacaf.vocabulary import Modality

SUPERSAMPLING = 2
_SECOND = 128  # label of the second thread of an ink = its label + this
_STRIP = Paint((235, 235, 225), 250, grain=0.0)

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """How the person stands before the camera, and where the crop lies. Angles in radians."""

    yaw: float  # 0 faces the camera, pi shows the back
    stride: float  # swing of the legs
    swing: float  # swing of the arms
    elbow_left: float
    elbow_right: float
    abduct: float  # arms away from the body
    lean: float  # shear sideways
    pitch: float  # camera above: the head looks larger than the feet
    scale: float  # body height over 0.9 crop height
    shift_x: float  # in crop heights
    shift_y: float


class _Sheet:
    """A label image at SUPERSAMPLING times the size, with the projection and the inks used so far."""

    def __init__(self, pose: Pose, height: int, width: int) -> None:
        self.pose = pose
        self.size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self.image = Image.new("L", self.size)
        self.draw = ImageDraw.Draw(self.image)
        self.inks: list[tuple[Paint, float]] = []
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.unit = 0.9 * pose.scale * self.size[1]  # pixels per body height
        self.centre_x = self.size[0] / 2 + pose.shift_x * self.size[1]
        self.ground = self.size[1] * (0.5 + pose.shift_y) + self.unit / 2

    def ink(self, paint: Paint, shade: float = 1.0) -> int:
        self.inks.append((paint, shade))
        return len(self.inks)

    def nearness(self, point: Point) -> float:
        """Depth towards the camera."""
        return point[2] * self.cos - point[0] * self.sin

    def at(self, point: Point) -> tuple[float, float]:
        x, y, z = point
        across = (x * self.cos + z * self.sin) * (1 + self.pose.pitch * (y - 0.5)) + self.pose.lean * (y - 0.5)
        return self.centre_x + across * self.unit, self.ground - y * self.unit

    def half_width(self, width: float, depth: float) -> float:
        """Half-width of an elliptic body section, seen from the yaw."""
        return math.hypot(width * self.cos, depth * self.sin)

    def polygon(self, points: list[Point], ink: int) -> None:
        self.draw.polygon([self.at(point) for point in points], fill=ink)

    def line(self, points: list[Point], thickness: float, ink: int) -> None:
        width = max(1, round(thickness * self.unit))
        self.draw.line([self.at(point) for point in points], fill=ink, width=width, joint="curve")

    def ball(
        self, centre: Point, radius_x: float, radius_y: float, ink: int, span: tuple[int, int] | None = None
    ) -> None:
        x, y = self.at(centre)
        dx, dy = radius_x * self.unit, radius_y * self.unit
        if span is None:
            self.draw.ellipse((x - dx, y - dy, x + dx, y + dy), fill=ink)
        else:
            self.draw.chord((x - dx, y - dy, x + dx, y + dy), *span, fill=ink)

    def limb(self, start: Point, end: Point, radius_start: float, radius_end: float, ink: int) -> None:
        """A capsule that tapers from one joint to the other."""
        (x0, y0), (x1, y1) = self.at(start), self.at(end)
        r0, r1 = radius_start * self.unit, radius_end * self.unit
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        corners = [(x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1)]
        corners += [(x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)]
        self.draw.polygon(corners, fill=ink)
        self.draw.ellipse((x0 - r0, y0 - r0, x0 + r0, y0 + r0), fill=ink)
        self.draw.ellipse((x1 - r1, y1 - r1, x1 + r1, y1 + r1), fill=ink)

    def tube(self, sections: list[tuple[float, float, float]], ink: int) -> None:
        """A body or cloth tube: sections (y, half-width, half-depth) from the top down."""
        left = [(y, self.half_width(width, depth)) for y, width, depth in sections]
        outline = []
        for y, half in left:
            x, py = self.at((0.0, y, 0.0))
            outline.append((x, py, half * self.unit))
        points = [(x - half, y) for x, y, half in outline] + [(x + half, y) for x, y, half in reversed(outline)]
        self.draw.polygon(points, fill=ink)


def _between(start: Point, end: Point, share: float) -> Point:
    x, y, z = (a + (b - a) * share for a, b in zip(start, end, strict=True))
    return x, y, z


def _leg(sheet: _Sheet, person: Person, side: int) -> None:
    angle = side * sheet.pose.stride
    shade = 1.0 if sheet.nearness((side * person.hip, 0, math.sin(angle) * 0.3)) >= 0 else 0.82
    hip = (side * person.hip * 0.5, person.leg, 0.0)
    half = person.leg * 0.52
    knee = (hip[0], hip[1] - half * math.cos(angle), half * math.sin(angle))
    bend = angle - (0.5 * abs(angle) if angle < 0 else 0.05)
    shin = person.leg - half - 0.02
    ankle = (hip[0], max(0.02, knee[1] - shin * math.cos(bend)), knee[2] + shin * math.sin(bend))
    thick, calf, thin = 0.048 * person.limb, 0.033 * person.limb, 0.02 * person.limb
    skin = sheet.ink(person.skin, shade)
    sheet.limb(hip, knee, thick, calf, skin)
    sheet.limb(knee, ankle, calf, thin, skin)
    shoe = sheet.ink(person.shoe_paint, shade)
    toe = (ankle[0], ankle[1] - 0.012, ankle[2] + 0.055)
    sheet.limb((ankle[0], ankle[1] - 0.008, ankle[2] - 0.008), toe, 0.021, 0.016, shoe)
    if person.bottom != "skirt":
        cloth = sheet.ink(person.bottom_paint, shade)
        slack = 1.02 if person.bottom == "leggings" else 1.14
        thigh_share = min(1.0, person.bottom_length * 2)
        end = _between(hip, knee, thigh_share)
        end_radius = (thick + (calf - thick) * thigh_share) * slack
        if person.bottom_length <= 0.55:
            sheet.limb(hip, end, thick * slack, end_radius * person.cuff, cloth)
        else:
            sheet.limb(hip, knee, thick * slack, calf * slack, cloth)
            low = _between(knee, ankle, person.bottom_length * 2 - 1)
            sheet.limb(knee, low, calf * slack, (thin + 0.008) * slack * person.cuff, cloth)
    if person.boot:
        sheet.limb(_between(ankle, knee, person.boot), ankle, calf * 1.15, thin * 1.35, shoe)


def _arm(sheet: _Sheet, person: Person, side: int) -> None:
    angle = -side * sheet.pose.swing
    elbow_bend = sheet.pose.elbow_left if side > 0 else sheet.pose.elbow_right
    shoulder = (side * (person.shoulder - 0.012), 0.80, 0.0)
    out = side * sheet.pose.abduct
    elbow = (shoulder[0] + 0.17 * math.sin(out), 0.80 - 0.17 * math.cos(angle), 0.17 * math.sin(angle))
    fore = angle + elbow_bend
    wrist = (elbow[0] + 0.10 * math.sin(out), elbow[1] - 0.16 * math.cos(fore), elbow[2] + 0.16 * math.sin(fore))
    shade = 0.95 if sheet.nearness(_between(shoulder, elbow, 0.7)) >= -0.02 else 0.78
    thick, thin = 0.030 * person.limb, 0.018 * person.limb
    edge = sheet.ink(person.top_paint if person.sleeve > 0.1 else person.skin, 0.6)
    skin = sheet.ink(person.skin, shade)
    rim = 0.005
    reach = person.sleeve if person.sleeve > 0.1 else 1.0
    upper, lower = min(1.0, reach * 2), max(0.0, reach * 2 - 1)
    sheet.limb(shoulder, _between(shoulder, elbow, upper), thick + rim, thick - 0.003 + rim, edge)
    if lower:
        sheet.limb(elbow, _between(elbow, wrist, lower), thick - 0.003 + rim, thin + 0.005 + rim, edge)
    sheet.limb(shoulder, elbow, thick * 0.9, thick * 0.75, skin)
    sheet.limb(elbow, wrist, thick * 0.75, thin, skin)
    sheet.ball(wrist, 0.019, 0.023, skin)
    if person.sleeve > 0.1:
        cloth = sheet.ink(person.top_paint, shade)
        sheet.limb(shoulder, _between(shoulder, elbow, upper), thick, thick * 0.9, cloth)
        if lower:
            sheet.limb(elbow, _between(elbow, wrist, lower), thick * 0.9, thin + 0.006, cloth)
    if person.bag == "handbag" and side == person.bag_side:
        _handbag(sheet, person, wrist, shade)


def _handbag(sheet: _Sheet, person: Person, wrist: Point, shade: float) -> None:
    ink = sheet.ink(person.bag_paint, shade)
    x, y, z = wrist
    half, drop = 0.055 * person.bag_size, 0.05
    top, low = y - drop, y - drop - 0.10 * person.bag_size
    sheet.line([(x, top, z - half * 0.7), (x, y, z), (x, top, z + half * 0.7)], 0.009, ink)
    near = 0.022
    sheet.polygon(
        [(x - near, top, z - half), (x + near, top, z + half), (x + near, low, z + half), (x - near, low, z - half)],
        ink,
    )
    sheet.polygon(
        [(x + near, top, z - half), (x - near, top, z + half), (x - near, low, z + half), (x + near, low, z - half)],
        ink,
    )


def _backpack(sheet: _Sheet, person: Person) -> None:
    ink = sheet.ink(person.bag_paint, 0.95)
    near = person.shoulder * person.depth * 0.75
    far = near + 0.085 * person.bag_size
    top, low = 0.80, 0.80 - 0.25 * person.bag_size
    half = person.shoulder * 0.82
    for x in (-half, half):
        sheet.polygon([(x, top, -near), (x, top - 0.03, -far), (x, low, -far), (x, low, -near)], ink)
    sheet.polygon([(-half, top - 0.02, -far), (half, top - 0.02, -far), (half, low, -far), (-half, low, -far)], ink)
    sheet.ball((0.0, top - 0.02, -far), half * abs(sheet.cos), 0.025, ink)


def _bag_on_body(sheet: _Sheet, person: Person, is_front_layer: bool) -> None:
    """Backpack or satchel, called once before the trunk and once after it; each draws what lies on that side."""
    front = 1 if sheet.cos >= 0 else -1
    if person.bag == "backpack":
        if is_front_layer == (sheet.cos < 0):
            _backpack(sheet, person)
        if is_front_layer and sheet.cos > -0.2:
            ink = sheet.ink(person.bag_paint, 0.9)
            z = person.shoulder * person.depth * 0.8
            for side in (-1, 1):
                x = side * person.shoulder * 0.62
                sheet.line([(x, 0.825, 0.0), (x, 0.78, z * 0.9), (x, 0.62, z)], 0.017, ink)
    if person.bag == "satchel":
        hip = (person.bag_side * (person.hip + 0.035), person.leg - 0.01, 0.0)
        if is_front_layer:
            z = front * person.waist * person.depth
            ink = sheet.ink(person.bag_paint, 0.9)
            sheet.line([(-person.bag_side * person.shoulder * 0.6, 0.825, 0.0), (0.0, 0.68, z), hip], 0.015, ink)
        if is_front_layer == (sheet.nearness(hip) >= -0.02):
            ink = sheet.ink(person.bag_paint)
            size, (x, y, _) = 0.07 * person.bag_size, hip
            for dx in (-0.018, 0.018):
                sheet.polygon(
                    [
                        (x + dx, y + size, -size),
                        (x + dx, y + size, size),
                        (x + dx, y - size, size),
                        (x + dx, y - size, -size),
                    ],
                    ink,
                )
            sheet.polygon(
                [
                    (x - 0.018, y + size, size),
                    (x + 0.018, y + size, size),
                    (x + 0.018, y - size, size),
                    (x - 0.018, y - size, size),
                ],
                ink,
            )
            sheet.polygon(
                [
                    (x - 0.018, y + size, -size),
                    (x + 0.018, y + size, -size),
                    (x + 0.018, y - size, -size),
                    (x - 0.018, y - size, -size),
                ],
                ink,
            )


def _trunk(sheet: _Sheet, person: Person) -> None:
    depth, leg = person.depth, person.leg
    if person.bottom == "skirt":
        hem = leg - person.bottom_length * leg
        spread = person.hip * person.flare
        skirt = sheet.ink(person.bottom_paint)
        sheet.tube(
            [
                (leg + 0.08, person.waist, person.waist * depth),
                (leg - 0.02, person.hip * 1.1, person.hip * depth),
                (hem, spread, max(spread * depth, 0.28 * abs(math.sin(sheet.pose.stride)))),
            ],
            skirt,
        )
    else:
        sheet.tube(
            [
                (leg + 0.08, person.waist, person.waist * depth),
                (leg - 0.01, person.hip, person.hip * depth),
                (leg - 0.06, person.hip * 0.92, person.hip * depth * 0.8),
            ],
            sheet.ink(person.bottom_paint, 0.97),
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
        stretch = 0.2 * abs(math.sin(sheet.pose.stride))
        wide += [(leg, hip, hip * depth), (person.hem, hip * person.flare, max(hip * person.flare * depth, stretch))]
    else:
        wide.append((person.hem, hip, hip * depth))
    sheet.tube(wide, sheet.ink(person.top_paint))
    if person.is_open and sheet.cos > 0:
        z = person.shoulder * depth * 0.9
        inner = sheet.ink(person.inner_paint, 0.97)
        sheet.polygon(
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
        sheet.tube([(y + 0.012, half, half * depth), (y - 0.012, half, half * depth)], sheet.ink(_STRIP))
    _logo(sheet, person)


def _logo(sheet: _Sheet, person: Person) -> None:
    facing = {"front": sheet.cos, "back": -sheet.cos, "both": abs(sheet.cos)}.get(person.logo, 0.0)
    if facing <= 0.25 or (person.is_open and sheet.cos > 0):
        return
    z = (1 if sheet.cos > 0 else -1) * person.shoulder * person.depth
    second = Paint(person.top_paint.visible_second, person.top_paint.infrared_second)
    ink = sheet.ink(second)
    size = 0.03 + 0.3 * person.top_paint.period
    if person.bag_side > 0:
        sheet.ball((0.0, 0.715, z), size * facing, size * 0.9, ink)
    else:
        sheet.polygon(
            [(-size * 1.3, 0.745, z), (size * 1.3, 0.745, z), (size * 1.3, 0.69, z), (-size * 1.3, 0.69, z)], ink
        )


def _head(sheet: _Sheet, person: Person) -> None:
    r = person.head
    y = 1 - r * 1.25
    nape, top = (0.0, y, -0.3 * r), (0.0, y, 0.0)
    skin, hair = sheet.ink(person.skin), sheet.ink(person.hair_paint)
    sheet.limb((0.0, 0.80, 0.0), (0.0, y, 0.0), 0.026, 0.026, sheet.ink(person.skin, 0.85))
    back_shown = sheet.cos < 0.2
    if person.hair == "long" and not back_shown:
        sheet.tube([(y, r * 1.25, r * 1.1), (y - 2.0 * r, r * 1.5, r * 1.2)], hair)
    sheet.ball(top, r * 0.88, r * 1.2, skin)
    if person.scarf:
        sheet.tube([(0.862, 0.05, 0.05), (0.81, 0.072, 0.072)], sheet.ink(person.inner_paint))
    if person.hair != "bald":
        sheet.ball((0.0, y + 0.12 * r, -0.1 * r), r * 1.0, r * 1.2, hair)
        if sheet.cos > -0.35:  # the face lies before the hair
            sheet.ball((0.0, y - 0.22 * r, 0.5 * r), r * (0.42 + 0.38 * max(0.0, sheet.cos)), r * 0.95, skin)
    if person.hair == "bob" and back_shown:
        sheet.tube([(y + 0.2 * r, r, r), (y - 1.1 * r, r * 1.25, r * 1.1)], hair)
    elif person.hair == "bob":
        for side in (-1, 1):
            sheet.limb(
                (side * 0.8 * r, y + 0.2 * r, -0.2 * r),
                (side * 0.95 * r, y - 0.9 * r, -0.2 * r),
                0.3 * r,
                0.35 * r,
                hair,
            )
    elif person.hair == "long" and back_shown:
        sheet.tube([(y + 0.2 * r, r, r), (y - 2.9 * r, r * 1.5, r * 1.1)], hair)
    elif person.hair == "ponytail":
        sheet.limb((0.0, y + 0.5 * r, -1.1 * r), (0.0, y - 1.8 * r, -1.8 * r), 0.4 * r, 0.25 * r, hair)
    elif person.hair == "bun":
        sheet.ball((0.0, y + 1.15 * r, -0.6 * r), 0.55 * r, 0.5 * r, hair)
    if person.hat != "none":
        _hat(sheet, person, nape, y)


def _hat(sheet: _Sheet, person: Person, nape: Point, y: float) -> None:
    r, ink = person.head, sheet.ink(person.hat_paint)
    crown = (0.0, y + 0.25 * r, nape[2] * 0.3)
    sheet.ball(crown, 1.1 * r, (1.25 if person.hat == "beanie" else 1.1) * r, ink, span=(180, 360))
    if person.hat == "cap":
        sheet.limb((0.0, y + 0.3 * r, 0.5 * r), (0.0, y + 0.15 * r, 1.7 * r), 0.16 * r, 0.12 * r, ink)
        if sheet.cos > 0:
            sheet.ball((0.0, y + 0.22 * r, 0.6 * r), r * 0.95, r * 0.2, sheet.ink(person.hat_paint, 0.75))
    elif person.hat == "brim":
        sheet.ball((0.0, y + 0.3 * r, 0.0), 2.0 * r, 0.28 * r, sheet.ink(person.hat_paint, 0.85))
    else:
        sheet.ball((0.0, y + 1.5 * r, 0.0), 0.32 * r, 0.3 * r, ink)


def _woven(labels: np.ndarray, sheet: _Sheet) -> np.ndarray:
    """Move to its second thread every label pixel where the ink's pattern says so."""
    height, width = labels.shape
    v = (sheet.ground - np.arange(height)[:, None]) / sheet.unit
    u = (np.arange(width)[None, :] - sheet.centre_x) / sheet.unit - sheet.pose.lean * (v - 0.5)
    u = u / max(0.45, abs(sheet.cos))  # a turned stripe looks narrower
    fields: dict[Paint, np.ndarray] = {}
    shift = np.zeros_like(labels)
    for number, (paint, _) in enumerate(sheet.inks, start=1):
        if paint.pattern == "plain":
            continue
        if paint not in fields:
            fields[paint] = _pattern(paint, u, v)
        shift[(labels == number) & fields[paint]] = _SECOND
    return labels + shift


def _pattern(paint: Paint, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    period, half = paint.period, paint.period / 2
    rings, bars = (v % period) < half, (u % period) < half
    if paint.pattern == "rings":
        return np.broadcast_to(rings, np.broadcast_shapes(u.shape, v.shape))
    if paint.pattern == "bars":
        return bars & (v > -9)
    if paint.pattern == "checks":
        return rings ^ bars
    if paint.pattern == "dots":
        return ((u % period) - half) ** 2 + ((v % period) - half) ** 2 < (0.3 * period) ** 2
    if paint.pattern == "diagonal":
        return ((u + v) % (1.4 * period)) < 0.7 * period
    if paint.pattern == "side":
        return np.abs(np.abs(u) - 0.085) < 0.012
    return np.broadcast_to(v > 0.62 + 1.6 * (period - 0.05), np.broadcast_shapes(u.shape, v.shape))  # blocks


def draw_figure(
    person: Person, pose: Pose, modality: Modality, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The person alone.

    Returns (tones uint8 [height, width, channels], premultiplied by the cover; cover uint8 [height, width], 255 where
    the person is; grain float32 [height, width], the strength of the texture noise), with 3 channels for visible and
    1 for infrared.
    """
    sheet = _Sheet(pose, height, width)
    near_first = 1 if sheet.nearness((1.0, 0.0, 0.0)) >= 0 else -1
    _bag_on_body(sheet, person, is_front_layer=False)
    if sheet.nearness((-near_first, 0, 0)) < -0.4:
        _arm(sheet, person, -near_first)
    _leg(sheet, person, -near_first)
    _leg(sheet, person, near_first)
    if person.hair != "bald" and sheet.cos < 0.2:
        _trunk(sheet, person)
        _head(sheet, person)
    else:
        _head(sheet, person)
        _trunk(sheet, person)
    if sheet.nearness((-near_first, 0, 0)) >= -0.4:
        _arm(sheet, person, -near_first)
    _bag_on_body(sheet, person, is_front_layer=True)
    _arm(sheet, person, near_first)
    return _coloured(sheet, modality)


def _coloured(sheet: _Sheet, modality: Modality) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    is_visible = modality is Modality.VISIBLE
    tones = np.zeros((256, 3 if is_visible else 1), dtype=np.uint8)
    grain = np.zeros(256, dtype=np.float32)
    for number, (paint, shade) in enumerate(sheet.inks, start=1):
        first, second = (paint.visible, paint.visible_second) if is_visible else (paint.infrared, paint.infrared_second)
        tones[number] = np.asarray(first) * shade
        tones[number + _SECOND] = np.asarray(second) * shade
        grain[[number, number + _SECOND]] = paint.grain
    labels = _woven(np.asarray(sheet.image), sheet)
    painted = tones[labels] if is_visible else tones[labels, 0]
    reduced = np.asarray(Image.fromarray(painted).reduce(SUPERSAMPLING))
    cover = np.asarray(Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).reduce(SUPERSAMPLING))
    return reduced.reshape(*cover.shape, -1), cover, grain[labels[::SUPERSAMPLING, ::SUPERSAMPLING]]
