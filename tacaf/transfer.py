"""Copies between the host and a GPU that the host does not wait for, and the time that a GPU takes."""

import time

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`: itself if it is already there, otherwise an asynchronous copy from pinned memory."""
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Moment:
    """A point in the work that this process has launched. On a GPU it comes later than on the host."""

    def __init__(self, device: torch.device) -> None:
        self.launched_s = time.perf_counter()  # when the host was there
        self._event: torch.cuda.Event | None = None
        if device.type != "cpu":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def wait(self) -> None:
        """Return when the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Seconds from one to the other on the device, after waiting for the later one."""
        if self._event is None or earlier._event is None:
            return self.launched_s - earlier.launched_s
        return earlier._event.elapsed_time(self._event) / 1000


class HostCopy:
    """An asynchronous copy of a tensor to the host; `wait` returns it. `moment` is its end."""

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "cpu":
            self._tensor = tensor.detach().clone()
        else:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor.detach(), non_blocking=True)
        self.moment = Moment(tensor.device)

    def wait(self) -> torch.Tensor:
        """The values, once they have arrived. This is the only place where the host waits for the device."""
        self.moment.wait()
        return self._tensor
