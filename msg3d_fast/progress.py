"""Progress of long work: a bar with the time left on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType


class Progress:
    """Counts steps of known number and says how far the work is and how long it will still take.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps that earlier calls did; they do not count for the time left.
        quiet: say nothing.
        interval: seconds between plain lines.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False, interval: float = 10.0) -> None:
        self.title, self.total, self.done, self.interval = title, total, done, interval
        self._first, self._start = done, time.monotonic()
        self._spoken = self._start
        self._quiet = quiet
        self._bar = None
        if not quiet and sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text, fields = TextColumn("{task.description}"), TextColumn("{task.fields[fields]}")
            self._bar = Bar(text, BarColumn(), MofNCompleteColumn(), fields, TimeElapsedColumn(), TimeRemainingColumn())
            self._task = self._bar.add_task(title, total=total, completed=done, fields="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, steps: int = 1, fields: str = "") -> None:
        """Counts `steps` more and shows `fields` beside the count."""
        self.done += steps
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self.done, total=self.total, fields=fields)
        elif not self._quiet and steps and now - self._spoken >= self.interval:
            self._spoken = now
            left = (now - self._start) / (self.done - self._first) * (self.total - self.done)
            print(
                f"{self.title}: {self.done}/{self.total}{fields and '  ' + fields}  {duration(left)} left", flush=True
            )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            print(line, flush=True)


def duration(seconds: float) -> str:
    """`seconds` as 12s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
