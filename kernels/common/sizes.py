"""Integer arithmetic for grids and tiles. Triton's functions do the same, but take the host some microseconds each."""


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` hold `count` elements."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, for count >= 1."""
    return 1 << (count - 1).bit_length()
