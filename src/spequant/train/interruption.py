"""Ctrl-C and SIGTERM: asked once, training ends after the step at hand; asked twice, at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT and the first SIGTERM make the function given true; a second one acts as ever.

    Counted apart: on Ctrl-C a launcher sends its processes the one after the terminal has sent them the other.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
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
