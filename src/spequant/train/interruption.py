"""Ctrl-C and SIGTERM: the first one ends training after the present step, a second one ends the process at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Record the first SIGINT and the first SIGTERM inside the block; a second one acts as without this block.

    The two signals are counted separately: on Ctrl-C the terminal sends SIGINT to the processes of a launcher, and the
    launcher then sends them SIGTERM. Outside the main thread nothing is changed.

    Yields:
        A function that returns whether one of the signals arrived.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach only the main thread
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
