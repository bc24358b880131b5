"""The canvas of a procedural person: a label image (one ink per surface), to which patterns and then tones are added.

The labels depend on the shape alone; the modality only decides the tone of each ink.
Body frame: x to the person's left, y up (feet 0, crown 1), z forward; lengths are in body heights. Source: ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from shards.pedestrians.wardrobe import Paint
from tacaf.vocabulary import Modality

SUPERSAMPLING = 2
_SECOND = 128  # label of the second thread of an ink = its label + this

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """The pose of the person in front of the camera, and the position of the crop. Angles are in radians."""

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


class Canvas:
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
        """Draw a capsule that tapers from one joint to the other."""
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
        """Draw a tube of body or cloth from its sections (y, half-width, half-depth), listed from the top down."""
        left = [(y, self.half_width(width, depth)) for y, width, depth in sections]
        outline = []
        for y, half in left:
            x, py = self.at((0.0, y, 0.0))
            outline.append((x, py, half * self.unit))
        points = [(x - half, y) for x, y, half in outline] + [(x + half, y) for x, y, half in reversed(outline)]
        self.draw.polygon(points, fill=ink)

    def coloured(self, modality: Modality) -> "Cutout":
        """The drawing in the tones of a modality."""
        is_visible = modality is Modality.VISIBLE
        tones = np.zeros((256, 3 if is_visible else 1), dtype=np.uint8)
        grain = np.zeros(256, dtype=np.float32)
        for number, (paint, shade) in enumerate(self.inks, start=1):
            first, second = (
                (paint.visible, paint.visible_second) if is_visible else (paint.infrared, paint.infrared_second)
            )
            tones[number] = np.asarray(first) * shade
            tones[number + _SECOND] = np.asarray(second) * shade
            grain[[number, number + _SECOND]] = paint.grain
        step = SUPERSAMPLING
        left, top, right, bottom = self.image.getbbox() or (0, 0, step, step)
        left, top = left // step * step, top // step * step  # whole pixels of the result
        right, bottom = -(-right // step) * step, -(-bottom // step) * step
        labels = self._woven(np.asarray(self.image.crop((left, top, right, bottom))), left, top)
        painted = tones[labels] if is_visible else tones[labels, 0]
        reduced = np.asarray(Image.fromarray(painted).reduce(step))
        cover = np.asarray(Image.fromarray((labels > 0).view(np.uint8) * np.uint8(255)).reduce(step))
        return Cutout(left // step, top // step, np.atleast_3d(reduced), cover, grain[labels[::step, ::step]])

    def _woven(self, labels: np.ndarray, left: int, top: int) -> np.ndarray:
        """Change the label to that of the ink's second thread wherever its pattern shows that thread."""
        height, width = labels.shape
        v = ((self.ground - top - np.arange(height)) / self.unit).astype(np.float32)[:, None]
        across = ((left + np.arange(width) - self.centre_x) / self.unit).astype(np.float32)[None, :]
        u = (across - self.pose.lean * (v - 0.5)) / max(0.45, abs(self.cos))  # a turned stripe looks narrower
        woven = labels.copy()
        for paint in dict.fromkeys(paint for paint, _ in self.inks if paint.pattern != "plain"):
            is_own = np.zeros(256, dtype=bool)
            is_own[[number for number, (ink, _) in enumerate(self.inks, start=1) if ink == paint]] = True
            woven += (is_own[labels] & weave(paint, u, v)).view(np.uint8) * np.uint8(_SECOND)
        return woven


@dataclass(frozen=True)
class Cutout:
    """A drawn person without background, and the position in the picture of the box that the person fills."""

    left: int
    top: int
    tones: np.ndarray  # uint8 [h, w, 3 or 1], premultiplied by the cover
    cover: np.ndarray  # uint8 [h, w], 255 where the person is
    grain: np.ndarray  # float32 [h, w], relative strength of the texture noise


def weave(paint: Paint, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the second thread shows: bool, with the broadcast shape of u (across) and v (height), in body heights."""
    period, half = paint.period, paint.period / 2
    if paint.pattern == "rings":
        return (v % period) < half
    if paint.pattern == "bars":
        return (u % period) < half
    if paint.pattern == "checks":
        return ((v % period) < half) ^ ((u % period) < half)
    if paint.pattern == "dots":
        return ((u % period) - half) ** 2 + ((v % period) - half) ** 2 < (0.3 * period) ** 2
    if paint.pattern == "diagonal":
        return ((u + v) % (1.4 * period)) < 0.7 * period
    if paint.pattern == "side":  # one stripe down the outside of each leg
        return np.abs(np.abs(u) - 0.085) < 0.012
    if paint.pattern == "blocks":  # another colour above some height
        return v > 0.62 + 1.6 * (period - 0.05)
    raise ValueError(f"expected a known pattern, got {paint.pattern!r}")
