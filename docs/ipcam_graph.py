"""IPCAM's graph as a drawing, from the mask that the model uses (`tacaf.model.ipcam.graph_mask`)."""

from tacaf.model.ipcam import graph_mask

LEVELS = (1, 3, 6)
WIDTH, HEIGHT, TOP, STEP, RADIUS = 720, 360, 50, 120, 20
NAMES = ["g", *(f"c{part}" for part in (1, 2, 3)), *(f"f{part}" for part in range(1, 7))]
STYLE = """
  <style>
    line, path { fill: none; stroke-width: 1.6; } .star { stroke: #b9c0d4; } .part { stroke: #2f7d6b; }
    .ring { stroke: #5363a8; } circle { fill: #f4f6fb; stroke: #1d2540; stroke-width: 1.4; }
    text { fill: #1d2540; font: 15px sans-serif; text-anchor: middle; } .key { font-size: 13px; text-anchor: start; }
  </style>"""


def places() -> list[tuple[int, float, float]]:
    """(level, x, y) of each node, coarse to fine."""
    return [
        (level, WIDTH * (part + 0.5) / count, TOP + STEP * level)
        for level, count in enumerate(LEVELS)
        for part in range(count)
    ]


def drawing() -> str:
    """The SVG. Every edge of the mask is a line; that each node also sees itself is not drawn."""
    mask, nodes = graph_mask(LEVELS), places()
    lines = [_edge(nodes, a, b) for a in range(len(nodes)) for b in range(a + 1, len(nodes)) if mask[a, b]]
    lines.sort(key=lambda line: "star" not in line)  # the star behind the others
    dots = [
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{RADIUS}"/><text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        for name, (_, x, y) in zip(NAMES, nodes, strict=True)
    ]
    words = {"ring": "neighbours on a ring", "part": "part and whole", "star": "the global node and every part"}
    key = [
        f'<line class="{kind}" x1="{20 + 215 * i}" y1="348" x2="{50 + 215 * i}" y2="348"/>'
        f'<text class="key" x="{58 + 215 * i}" y="352">{text}</text>'
        for i, (kind, text) in enumerate(words.items())
    ]
    title = "IPCAM's graph: one global, three coarse and six fine nodes"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head + STYLE, paper, *lines, *dots, *key, "</svg>"]) + "\n"


def _edge(nodes: list[tuple[int, float, float]], a: int, b: int) -> str:
    (level_a, x_a, y_a), (level_b, x_b, y_b) = nodes[a], nodes[b]
    if level_a == level_b and abs(x_a - x_b) > 1.5 * WIDTH / LEVELS[level_a]:  # the end of a ring, around the others
        middle, low = (x_a + x_b) / 2, y_a + 75
        return f'<path class="ring" d="M{x_a:.0f} {y_a:.0f} Q{middle:.0f} {low:.0f} {x_b:.0f} {y_b:.0f}"/>'
    kind = "ring" if level_a == level_b else "star" if level_a == 0 else "part"
    return f'<line class="{kind}" x1="{x_a:.0f}" y1="{y_a:.0f}" x2="{x_b:.0f}" y2="{y_b:.0f}"/>'
