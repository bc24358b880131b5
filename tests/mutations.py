"""Damaged forms of a text file, drawn from a seed: what a format's reader must refuse or survive."""

import random
from collections.abc import Iterator

WORDS = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 400, b'""', b"[]", b"{}", b'"\\u0000"', b"0.5",
    b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"\x00", b"&a [*a]", b"!!python/object:os.system", b"\t",
    b"18446744073709551616",
)  # fmt: skip


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """So many damaged forms of `data`: flipped bits, cuts, words in place of others, parts twice or left out."""
    draw = random.Random(seed)
    for _ in range(count):
        at, to = sorted(draw.randrange(len(data)) for _ in range(2))
        kind = draw.randrange(5)
        if kind == 0:
            bit = 1 << draw.randrange(8)
            yield data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
        elif kind == 1:
            yield data[:at]
        elif kind == 2:
            stop = min(to, at + draw.randrange(1, 12))
            yield data[:at] + draw.choice(WORDS) + data[stop:]
        elif kind == 3:
            stop = min(to, at + 200)
            yield data[:stop] + data[at:]
        else:
            yield data[:at] + data[min(to, at + 100) :]
