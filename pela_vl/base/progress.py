"""Progress on stderr: a bar on a terminal, a plain line every few seconds in a log file."""

import sys
import time
from typing import TextIO

from tqdm import tqdm


def clock(seconds: float) -> str:
    """A duration for people: 4s, 3m07s, 2h05m."""
    whole = int(round(max(seconds, 0)))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Shows how far a loop is, with its speed and the time left.

    Without a terminal it prints at the first update, then every `interval` seconds, then at the end.

    Args:
        total: units of the loop; None: unknown.
        label: what is done.
        initial: units that an earlier run did.
        unit: name of a unit, for the speed.
        enabled: False shows nothing.
        stream: None: stderr.
        interval: seconds between lines without a terminal.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        initial: int = 0,
        unit: str = "it",
        enabled: bool = True,
        stream: TextIO | None = None,
        interval: float = 10.0,
    ) -> None:
        self.total, self.label, self.unit, self.interval = total, label, unit, interval
        self.done = self.initial = initial
        self.detail = ""
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._bar: tqdm | None = None
        self._start = time.monotonic()
        self._shown_at: float | None = None
        self._shown_done = -1
        self._closed = False
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label,
                unit=unit,
                file=self._stream,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    def to(self, done: int, detail: str = "") -> None:
        """Set the number of units done; `detail` is a few words such as the losses."""
        self.update(done - self.done, detail)

    def update(self, count: int = 1, detail: str = "") -> None:
        """Add `count` units to those done; `detail` is a few words such as the losses."""
        self.done += count
        self.detail = detail or self.detail
        if not self._enabled or self._closed:
            return
        if self._bar is not None:
            if detail:
                self._bar.set_postfix_str(detail, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._shown_at is None or now - self._shown_at >= self.interval:
            self._print(now)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the final state, once."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._shown_done != self.done:
            self._print(time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _print(self, now: float) -> None:
        self._shown_at, self._shown_done = now, self.done
        elapsed, fresh = now - self._start, self.done - self.initial
        parts = [f"{self.label}: {self.done}"]
        if self.total:
            parts = [f"{self.label}: {100 * self.done / self.total:3.0f}% {self.done}/{self.total}"]
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{rate:.3g} {self.unit}/s")
            if self.total and self.done < self.total:
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        if self.total and self.done >= self.total:
            parts.append(f"took {clock(elapsed)}")
        if self.detail:
            parts.append(self.detail)
        print("  ".join(parts), file=self._stream, flush=True)
