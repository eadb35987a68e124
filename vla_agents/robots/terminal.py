"""Speaking to a person at a terminal while something is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vla_agents.errors import CommunicationError

REFRESH_S = 0.1


class TerminalPrompt:
    """Asks and waits for Enter.

    Args:
        console: Where to write.
        read: Waits for a line, `EOFError` at the end of the input; by default `input`.
    """

    def __init__(self, console: Console | None = None, read: Callable[[], str] | None = None) -> None:
        self.console, self._read = console or Console(), read or (lambda: input())

    def ask(self, text: str) -> None:
        """Say something and wait for Enter; `KeyboardInterrupt` at the end of the input."""
        self.console.print(f"{text}\n[bold]Then press Enter[/bold] (Ctrl-C ends).", highlight=False)
        try:
            self._read()
        except EOFError:
            raise KeyboardInterrupt from None

    def show_ranges(self, text: str, measure: Callable[[], Mapping[str, tuple[int, int, int]]]) -> None:
        """A table that follows the joints until Enter is pressed."""
        self.console.print(
            f"{text}\n[bold]Press Enter when all are done[/bold] (Ctrl-C ends).", highlight=False
        )
        done, ended = threading.Event(), []

        def wait() -> None:
            try:
                self._read()
            except EOFError:
                ended.append(True)
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        with Live(console=self.console, refresh_per_second=1 / REFRESH_S, transient=True) as live:
            while not done.is_set():
                try:
                    live.update(_table(measure()))
                except CommunicationError as error:  # a joint moved, a plug loose: seen, and asked again
                    live.update(str(error.problem))
                time.sleep(REFRESH_S / 5)
        if ended:
            raise KeyboardInterrupt
        self.console.print(_table(measure()))


def _table(ranges: Mapping[str, tuple[int, int, int]]) -> Table:
    table = Table("joint", "lowest", "now", "highest")
    for name, (low, now, high) in ranges.items():
        table.add_row(name, str(low), str(now), str(high))
    return table
