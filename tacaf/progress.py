"""The progress of a run: a progress bar on a terminal, or plain lines elsewhere."""

import sys
import time


class Progress:
    """A progress bar on a terminal, a plain line every `every_s` seconds elsewhere; prints nothing if not `active`."""

    def __init__(self, total: int, start: int, active: bool, every_s: float = 10.0) -> None:
        self.total, self.done, self.active, self.every_s = total, start, active, every_s
        self.first, self.began, self.last = start, time.monotonic(), 0.0
        self.bar = None
        if active and sys.stderr.isatty():
            from tqdm import tqdm  # imported here, so that benchmarks run where only PyTorch is installed

            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def step(self, text: str) -> None:
        """Count one step; `text` is shown after the count."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        elif self.active and (time.monotonic() - self.last >= self.every_s or self.done == self.total):
            self.last = time.monotonic()
            print(f"step {self.done}/{self.total} | {text} | {self._left()} left", flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays above the bar."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.active:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _left(self) -> str:
        spent, made = time.monotonic() - self.began, self.done - self.first
        seconds = int(spent / made * (self.total - self.done)) if made else 0
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
