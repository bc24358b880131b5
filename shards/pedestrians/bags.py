"""The bags that a person carries: in the hand, on the back, or across the body.

Body frame as in `shards.pedestrians.canvas`. Source: ours.
"""

from shards.pedestrians.canvas import Canvas, Point
from shards.pedestrians.wardrobe import Person


def handbag(canvas: Canvas, person: Person, wrist: Point, shade: float) -> None:
    ink = canvas.ink(person.bag_paint, shade)
    x, y, z = wrist
    half, drop = 0.055 * person.bag_size, 0.05
    top, low = y - drop, y - drop - 0.10 * person.bag_size
    canvas.line([(x, top, z - half * 0.7), (x, y, z), (x, top, z + half * 0.7)], 0.009, ink)
    near = 0.022
    canvas.polygon(
        [(x - near, top, z - half), (x + near, top, z + half), (x + near, low, z + half), (x - near, low, z - half)],
        ink,
    )
    canvas.polygon(
        [(x + near, top, z - half), (x - near, top, z + half), (x - near, low, z + half), (x + near, low, z - half)],
        ink,
    )


def _backpack(canvas: Canvas, person: Person) -> None:
    ink = canvas.ink(person.bag_paint, 0.95)
    near = person.shoulder * person.depth * 0.75
    far = near + 0.085 * person.bag_size
    top, low = 0.80, 0.80 - 0.25 * person.bag_size
    half = person.shoulder * 0.82
    for x in (-half, half):
        canvas.polygon([(x, top, -near), (x, top - 0.03, -far), (x, low, -far), (x, low, -near)], ink)
    canvas.polygon([(-half, top - 0.02, -far), (half, top - 0.02, -far), (half, low, -far), (-half, low, -far)], ink)
    canvas.ball((0.0, top - 0.02, -far), half * abs(canvas.cos), 0.025, ink)


def bag_on_body(canvas: Canvas, person: Person, is_front_layer: bool) -> None:
    """Draw a backpack or satchel: the parts behind the trunk before it is drawn, and those in front of it after."""
    front = 1 if canvas.cos >= 0 else -1
    if person.bag == "backpack":
        if is_front_layer == (canvas.cos < 0):
            _backpack(canvas, person)
        if is_front_layer and canvas.cos > -0.2:
            ink = canvas.ink(person.bag_paint, 0.9)
            z = person.shoulder * person.depth * 0.8
            for side in (-1, 1):
                x = side * person.shoulder * 0.62
                canvas.line([(x, 0.825, 0.0), (x, 0.78, z * 0.9), (x, 0.62, z)], 0.017, ink)
    if person.bag == "satchel":
        hip = (person.bag_side * (person.hip + 0.035), person.leg - 0.01, 0.0)
        if is_front_layer:
            z = front * person.waist * person.depth
            ink = canvas.ink(person.bag_paint, 0.9)
            canvas.line([(-person.bag_side * person.shoulder * 0.6, 0.825, 0.0), (0.0, 0.68, z), hip], 0.015, ink)
        if is_front_layer == (canvas.nearness(hip) >= -0.02):
            ink = canvas.ink(person.bag_paint)
            size, (x, y, _) = 0.07 * person.bag_size, hip
            for dx in (-0.018, 0.018):
                canvas.polygon(
                    [
                        (x + dx, y + size, -size),
                        (x + dx, y + size, size),
                        (x + dx, y - size, size),
                        (x + dx, y - size, -size),
                    ],
                    ink,
                )
            canvas.polygon(
                [
                    (x - 0.018, y + size, size),
                    (x + 0.018, y + size, size),
                    (x + 0.018, y - size, size),
                    (x - 0.018, y - size, size),
                ],
                ink,
            )
            canvas.polygon(
                [
                    (x - 0.018, y + size, -size),
                    (x + 0.018, y + size, -size),
                    (x + 0.018, y - size, -size),
                    (x - 0.018, y - size, -size),
                ],
                ink,
            )
