"""Renders a person as a camera sees them: pose and crop, background, light, occlusion, sensor response, blur, noise.

A picture is `render(person, view, camera, modality)`, a function of three frozen descriptions without any random draw.
So a study can replace one field of a view (`dataclasses.replace(view, pose=...)`) and know exactly what differs
between two pictures of one person. Source: ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.pedestrians.canvas import Pose
from shards.pedestrians.figure import draw_figure
from shards.pedestrians.wardrobe import CAMERA, VIEW, Dice, Person, dice
from tacaf.vocabulary import Modality


@dataclass(frozen=True)
class Difficulty:
    """How much may vary between two pictures of one person. 0 turns a nuisance off."""

    pose: float = 1.0  # leg and arm swing, lean; relative to the default range
    viewpoint: float = 1.0  # 1: any yaw, half of them near front or back; 0: always the front
    crop_shift: float = 0.05  # largest shift of the crop, in crop heights
    crop_scale: float = 0.10  # largest relative change of the crop's scale
    clutter: float = 1.0  # number of things in the background, relative to the default
    lighting: float = 1.0  # gain, gamma and gradient per image and camera
    colour_cast: float = 0.12  # largest relative gain of one visible channel over another, per camera
    noise: float = 1.0  # sensor noise, relative to the default
    blur: float = 1.0  # relative to the default
    occlusion: float = 0.2  # share of images with something in front of the person
    occlusion_extent: float = 0.3  # largest share of the crop's side that it hides


@dataclass(frozen=True)
class Camera:
    """One camera and the place it looks at."""

    scene_key: int  # key of the background's draws; cameras in the same place share it
    gain: float
    gamma: float
    cast: tuple[float, float, float]
    vignette: float
    noise: float  # standard deviation in grey levels
    blur: float  # radius in pixels of a 256-pixel picture
    pitch: float
    quality: int  # of the JPEG


@dataclass(frozen=True)
class View:
    """One shot: pose, light, occlusion and background."""

    pose: Pose
    aspect: float  # width over height
    size: float  # height over the nominal height
    pan: float  # which part of the place is behind the person, 0-1
    clutter: int
    gain: float
    gamma: float
    gradient: float  # light from one side
    noise: float
    blur: float
    occluder: str  # none, below, side, box
    occlusion: float  # share that is hidden
    key: int  # key of the draws of clutter and noise
    quality: int


def draw_camera(seed: int, camera_key: int, location: int, modality: Modality, difficulty: Difficulty) -> Camera:
    """Camera `camera_key` of the world `seed`, looking at `location`: a pure function of the arguments."""
    d, place = dice(CAMERA, seed, 0, camera_key), dice(CAMERA, seed, 1, location)
    light, is_infrared = difficulty.lighting, modality is Modality.INFRARED
    return Camera(
        scene_key=place.key(),
        gain=1 + light * d.between(-0.2, 0.15),
        gamma=math.exp(light * d.between(-0.25, 0.25)),
        cast=(
            1 + difficulty.colour_cast * d.between(-1, 1),
            1 + difficulty.colour_cast * d.between(-0.5, 0.5),
            1 + difficulty.colour_cast * d.between(-1, 1),
        ),
        vignette=light * (d.between(0.25, 0.5) if is_infrared else d.between(0.0, 0.12)),
        noise=difficulty.noise * (d.between(3, 8) if is_infrared else d.between(1.5, 5)),
        blur=difficulty.blur * d.between(0.2, 0.9),
        pitch=d.between(0.0, 0.25),
        quality=round(d.between(80, 93)),
    )


def _draw_pose(d: Dice, camera: Camera, difficulty: Difficulty) -> Pose:
    sector = int(d.between(0, 6))  # front and back are twice as likely as either side
    yaw = (0.0, math.pi, 0.0, math.pi, math.pi / 2, -math.pi / 2)[sector] + d.between(-0.5, 0.5)
    strength, shift, scale = difficulty.pose, difficulty.crop_shift, difficulty.crop_scale
    return Pose(
        yaw=yaw * difficulty.viewpoint,
        stride=strength * d.between(-0.45, 0.45),
        swing=strength * d.between(-0.5, 0.5),
        elbow_left=strength * d.between(0.05, 0.9),
        elbow_right=strength * d.between(0.05, 0.9),
        abduct=d.between(0.03, 0.16) + strength * d.between(0.0, 0.08),
        lean=strength * d.between(-0.05, 0.05),
        pitch=camera.pitch,
        scale=1 + d.between(-scale, scale),
        shift_x=d.between(-shift, shift),
        shift_y=d.between(-shift, shift),
    )


def draw_view(seed: int, pid: int, camera_key: int, number: int, camera: Camera, difficulty: Difficulty) -> View:
    """Shot `number` (1-based) of `pid` by a camera: a pure function of the arguments."""
    d = dice(VIEW, seed, camera_key * 65536 + number, pid, draws=64)
    light = difficulty.lighting
    occluded = d.chance(difficulty.occlusion)
    occluder = str(d.choice(("below", "below", "side", "side", "box")))
    return View(
        pose=_draw_pose(d, camera, difficulty),
        aspect=d.between(0.45, 0.55),
        size=d.between(0.9, 1.1),
        pan=d.between(0.0, 1.0),
        clutter=round(difficulty.clutter * d.between(2, 7)),
        gain=1 + light * d.between(-0.22, 0.22),
        gamma=math.exp(light * d.between(-0.2, 0.2)),
        gradient=light * d.between(-0.3, 0.3),
        noise=camera.noise * d.between(0.7, 1.3),
        blur=camera.blur + difficulty.blur * d.between(0.0, 0.7),
        occluder=occluder if occluded else "none",
        occlusion=difficulty.occlusion_extent * d.between(0.4, 1.0),
        key=d.key(),
        quality=round(camera.quality + d.between(-8, 4)),
    )


def _tone(d: Dice, is_visible: bool, low: float = 30, high: float = 220) -> tuple[int, ...]:
    """The tone of a thing in the background: nearly grey in visible light, and an independent draw in infrared."""
    grey, infrared = d.between(low, high), d.between(low * 0.7, high)
    red, green, blue = d.between(-25, 25), d.between(-25, 25), d.between(-25, 25)
    if not is_visible:
        return (round(infrared),)
    return tuple(min(255, max(0, round(grey + part))) for part in (red, green, blue))


def _background(view: View, camera: Camera, is_visible: bool, rows: int, columns: int) -> np.ndarray:
    """The background, panned, with its clutter and out of focus: uint8 [rows, columns, channels]."""
    place, d = dice(CAMERA, camera.scene_key, 2, 0), dice(VIEW, view.key, 0, 0)
    wall, floor = _tone(place, is_visible, 60, 210), _tone(place, is_visible, 50, 180)
    height, width = rows // 2, columns // 2  # drawn small and enlarged, which blurs it
    image = Image.new("RGB" if is_visible else "L", (width, height), wall)
    draw = ImageDraw.Draw(image)
    horizon = height * (place.between(0.55, 0.8) + d.between(-0.06, 0.06))
    draw.rectangle((0, horizon, width, height), fill=floor)
    for _ in range(8):  # doors, posters, pillars at fixed positions of a panorama that is eight pictures wide
        left, wide = (place.between(0, 8) - 7 * view.pan) * width, place.between(0.1, 0.6) * width
        top, tall = place.between(-0.1, 0.4) * height, place.between(0.2, 0.7) * height
        fill = _tone(place, is_visible)
        if top < horizon:
            draw.rectangle((left, top, left + wide, min(top + tall, horizon)), fill=fill)
    for _ in range(view.clutter):
        x, y, size = d.between(-0.1, 1.1) * width, d.between(0.0, 1.0) * height, d.between(0.05, 0.28) * height
        box = (x - size * d.between(0.2, 0.7), y - size, x + size * d.between(0.2, 0.7), y + size)
        fill = _tone(d, is_visible)
        (draw.ellipse if d.chance(0.4) else draw.rectangle)(box, fill=fill)
    return np.atleast_3d(np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)))


def _noise(key: int, stream: int, count: int) -> np.ndarray:
    """Approximately normal noise, float32 [count], mean 0, standard deviation 1: sums of four random bytes.

    Uses the raw words of the bit generator, because numpy promises that their values never change.
    """
    data = np.random.Philox(key=[key, stream]).random_raw((count + 1) // 2).view(np.uint8)
    sums = data[0::4].astype(np.uint16) + data[1::4] + data[2::4] + data[3::4]
    return (sums[:count] - np.float32(510)) / np.float32(147.8)


def _occlude(picture: np.ndarray, view: View, is_visible: bool) -> None:
    """Draw something in front of the person, changing `picture` in place."""
    height, width, _ = picture.shape
    d = dice(VIEW, view.key, 1, 0)
    tone, is_left = np.asarray(_tone(d, is_visible)), d.chance(0.5)
    centre_x, centre_y = d.between(0.3, 0.7), d.between(0.3, 0.8)
    share = view.occlusion
    if view.occluder == "below":
        picture[round(height * (1 - share)) :] = tone
    elif view.occluder == "side":
        hidden = round(width * share * 1.2)
        picture[:, slice(0, hidden) if is_left else slice(width - hidden, width)] = tone
    elif view.occluder == "box":
        top, left = round(height * (centre_y - share / 2)), round(width * (centre_x - share / 2))
        picture[max(0, top) : top + round(height * share), max(0, left) : left + round(width * share)] = tone


def render(person: Person, view: View, camera: Camera, modality: Modality, height: int = 256) -> np.ndarray:
    """One picture of one person, uint8 [H, W, 3], H about `height` (view.size); infrared has three equal channels.

    A pure function of its arguments: the same person and view in the other modality give the same silhouette.
    """
    is_visible = modality is Modality.VISIBLE
    rows = max(16, round(height * view.size))
    columns = max(8, round(rows * view.aspect))
    person_cut = draw_figure(person, view.pose, modality, rows, columns)
    across = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    down = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    picture = _background(view, camera, is_visible, rows, columns) * (1 + 0.5 * view.gradient * across[..., None])
    cover = person_cut.cover[..., None]
    tall, wide, _ = cover.shape
    box = picture[person_cut.top : person_cut.top + tall, person_cut.left : person_cut.left + wide]
    texture = _noise(view.key, 0, tall * wide).reshape(tall, wide)
    light = (1 + view.gradient * across[:, person_cut.left : person_cut.left + wide]) * (1 + person_cut.grain * texture)
    box *= 1 - cover / np.float32(255)
    box += person_cut.tones * light[..., None]
    _occlude(picture, view, is_visible)
    return _sensed(picture, view, camera, across, down)


def _sensed(picture: np.ndarray, view: View, camera: Camera, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Turn light (float [H, W, C], 0-255) into the sensor's picture (uint8 [H, W, 3]): vignette, blur, noise."""
    rows, columns, channels = picture.shape
    level = np.arange(256, dtype=np.float32) / 255
    response = (level ** (camera.gamma * view.gamma)) * 255 * camera.gain * view.gain
    shaded = response[np.clip(picture, 0, 255).astype(np.uint8)]
    shaded *= (1 - camera.vignette * (0.6 * across**2 + 0.4 * down**2))[..., None]
    if channels == 3:
        shaded *= np.asarray(camera.cast, dtype=np.float32)
    flat = Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8).squeeze())
    blurred = np.asarray(flat.filter(ImageFilter.GaussianBlur(view.blur * rows / 256))).reshape(rows, columns, channels)
    noisy = blurred + view.noise * _noise(view.key, 1, rows * columns * channels).reshape(blurred.shape)
    sensed = np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
    return sensed if channels == 3 else sensed.repeat(3, axis=2)
