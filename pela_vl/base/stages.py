"""Progress of work in stages that each count from 0, such as samples and then layers."""

from pela_vl.base.progress import Progress


class StageBars:
    """Progress bars for a callback `on_progress(done, total, what)`: pass `show`.

    A new bar begins where `done` falls back or `total` changes. A context manager: the last bar is closed at its end.

    Args:
        label: of every bar.
        enabled: False shows nothing.
    """

    def __init__(self, label: str = "factorise", enabled: bool = True) -> None:
        self._label, self._enabled = label, enabled
        self._bar: Progress | None = None

    def show(self, done: int, total: int, what: str) -> None:
        """Show the state of the present stage.

        Args:
            done: units of the stage that are done.
            total: units of the stage.
            what: name of the stage or of its present unit.
        """
        bar = self._bar
        if bar is None or done <= bar.done or total != bar.total:
            self.close()
            # the bar's clock starts when the first unit is done
            self._bar = bar = Progress(total, self._label, initial=done, unit="step", enabled=self._enabled)
        bar.to(done, what)

    def close(self) -> None:
        """Show the last bar's final state."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
