"""The memory of a process, as Linux counts it."""

from perf.parts.machine import peak_resident_mib, resident_mib, restart_peak


def test_the_peak_is_counted_from_where_it_is_restarted():
    large = bytearray(64 * 2**20)
    large[::4096] = b"x" * len(large[::4096])  # touched, so that it is resident
    with_it = resident_mib()
    assert peak_resident_mib() >= with_it > 64
    del large
    restart_peak()
    assert resident_mib() <= peak_resident_mib() < with_it - 32
