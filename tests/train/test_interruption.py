"""Signals: the first one is recorded, a second one acts as usual, and handlers are restored."""

import os
import signal
import threading

import pytest

from spequant.train.interruption import interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_the_second_acts_as_usual(number):
    class Acted(Exception):
        pass

    def act(number, frame):
        raise Acted

    before = signal.signal(number, act)
    try:
        with interruptions() as asked:
            assert not asked()
            os.kill(os.getpid(), number)
            assert asked()
            with pytest.raises(Acted):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


def test_signals_are_counted_separately_and_handlers_restored_after_an_exception():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), interruptions() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # from a launcher, after SIGINT from the terminal: no handler acts
        assert asked()
        raise KeyError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def work():
        with interruptions() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
