"""Show a running sweep on stderr: a live board on a terminal, plain lines elsewhere."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segsweep.console import SILENCE
from segsweep.process import printable
from segsweep.runs.trial import Trial, seconds_left
from segsweep.sweeping.finalists import FOLDER
from segsweep.sweeping.scheduler import Event

REDRAWN = 0.5  # seconds between two drawings, at least
ROWS = 16  # running trials that the board shows
SHOWN = {"started": "starts", "adopted": "continues", "continued": "continues", "halved": "starts again"}


class Board:
    """Use as a context manager; `show` each event of a search that wants so many trials finished.

    The trials, by name, are living: they are looked at whenever the board is drawn.
    """

    def __init__(self, trials: dict[str, Trial], wanted: int, slots: int, console: Console | None = None):
        self._trials, self._wanted, self._slots = trials, wanted, slots
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._told: set[str] = set()  # why trials were refused
        self._last = 0.0  # when the board was drawn
        self._said = 0.0  # when a line was printed

    def __enter__(self) -> "Board":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._drawn, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Print a line for each start and end of a trial; epochs appear only on the board."""
        if event.kind != "epoch":
            known = event.kind == "refused" and event.trial.reason in self._told
            self._say(line(event, not known))
            if event.kind == "refused":
                self._told.add(event.trial.reason)
            self._said = time.monotonic()
        elif not self._live and time.monotonic() - self._said > SILENCE:
            self._said = time.monotonic()
            over = sum(trial.state in ("complete", "pruned") for trial in self._trials.values())
            self._say(f"{line(event)}; {over} of {self._wanted} finished")
        # All trials are looked at for it: of thousands, at each event, that would be the controller's main work.
        if self._live and time.monotonic() - self._last > REDRAWN:
            self._last = time.monotonic()
            self._live.refresh()

    def _say(self, text: str) -> None:
        self._console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def _drawn(self) -> Group:
        trials = list(self._trials.values())
        over = [t for t in trials if t.state in ("complete", "pruned")]
        best = max((t for t in trials if t.iou is not None), key=lambda t: t.iou or 0.0, default=None)
        left = seconds_left(trials, self._wanted, self._slots)
        head = Text(f"{len(over)} of {self._wanted} finished")
        for state in ("pruned", "refused", "failed"):
            if count := sum(t.state == state for t in trials):
                head.append(f", {count} {state}")
        if left is not None:
            head.append(f"; {duration(left)} to go")
        if best:
            head.append(f"; best IoU {best.iou:.4f}: {' '.join(best.typed)}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, width in (("slot", 5), ("trial", 5), ("epoch", 5), ("IoU", 6), ("", None)):  # the last one gives way
            table.add_column(title, overflow="ellipsis", no_wrap=True, min_width=width)
        running = [t for t in trials if t.state == "running"]
        for t in running[:ROWS]:
            total, epochs = t.run.start and t.run.start.settings.train.epochs, len(t.run.epochs)
            epoch = f"{epochs}/{total}" if total else f"{epochs}"
            table.add_row(t.slot, t.name, epoch, "" if t.iou is None else f"{t.iou:.4f}", " ".join(t.typed))
        more = Text(f"and {len(running) - ROWS} more" if len(running) > ROWS else "")
        return Group(Text(""), head, table, more)


def line(event: Event, with_reason: bool = True) -> str:
    """Return the line to print for an event."""
    trial = event.trial
    typed, name = " ".join(trial.typed), trial.name.removeprefix(f"{FOLDER}/")
    score = "" if trial.iou is None else f"IoU {trial.iou:.4f}  "
    if event.kind == "epoch":
        return f"trial {name:>3}  epoch {trial.run.epochs[-1].epoch:<2}  {score}{typed}"
    if event.kind == "halved":
        return f"trial {name:>3}  out of memory: starts again with half the micro-batch"
    if event.kind == "thinned":
        return f"trial {name:>3}  {event.words}"
    if event.kind in SHOWN:
        why = f"  ({event.words})" if event.words else ""
        return f"trial {name:>3}  {SHOWN[event.kind]} on {trial.slot}  {typed}{why}"
    why = f"  ({trial.reason})" if trial.reason and with_reason else ""
    return f"trial {name:>3}  {event.kind:8}  {score}{typed}{why}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
