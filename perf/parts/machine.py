"""The memory of this process, as Linux counts it."""

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFERENCES = Path("/proc/self/clear_refs")


def resident_mib() -> float:
    """The resident memory of this process now, in MiB."""
    return _status_mib("VmRSS")


def peak_resident_mib() -> float:
    """The peak of this process's resident memory since it started, or since `restart_peak`, in MiB."""
    return _status_mib("VmHWM")


def restart_peak() -> None:
    """Restart the measurement of `peak_resident_mib`."""
    _CLEAR_REFERENCES.write_text("5")


def _status_mib(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024
