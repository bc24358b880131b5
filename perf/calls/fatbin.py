"""Makes a CUDA library compressible by replacing the device code for other chips with zeros.

A library keeps its device code in containers, with one entry for each chip and kind. Host code, offsets and sizes do
not change. This is only for a copy that is taken to a machine with a known GPU; the copy is not published.
"""

import struct
from collections.abc import Iterator

MAGIC = struct.pack("<I", 0xBA55ED50)
MACHINE_CODE = 2  # the kind of an entry; 1 is PTX, which the driver could compile for any chip
CHIP_OFFSET = 28  # of the chip's number in an entry's header


def entries(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """(kind, chip, start of the code, end) of every entry of every container in a library."""
    place = data.find(MAGIC)
    while place >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", data, place)
        end = place + header + size
        if version != 1 or end > len(data):  # not a container: other data contains the same four bytes
            place = data.find(MAGIC, place + 4)
            continue
        start = place + header
        while start < end:
            kind, _, own, length = struct.unpack_from("<HHIQ", data, start)
            if kind not in (1, MACHINE_CODE) or own < 32 or length > size:
                break
            yield kind, struct.unpack_from("<I", data, start + CHIP_OFFSET)[0], start + own, start + own + length
            start += own + length
        place = data.find(MAGIC, max(end, place + 4))


def without_other_chips(data: bytes, chips: tuple[int, ...]) -> bytes:
    """The library with zeros for all device code but these chips' (90 for an H100)."""
    slim = bytearray(data)
    for kind, chip, start, end in entries(data):
        if kind != MACHINE_CODE or chip not in chips:
            slim[start:end] = bytes(end - start)
    return bytes(slim)
