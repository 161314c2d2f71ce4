"""Signals: the first asks, a second one acts as ever; handlers are put back."""

import os
import signal
import threading

import pytest

from spequant.train.interruption import interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts_as_ever(number):
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


def test_the_two_are_counted_apart_and_handlers_put_back_after_an_exception():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), interruptions() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher's, after the terminal's: nothing acts
        assert asked()
        raise KeyError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_beside_the_main_thread_nothing_is_changed():
    found = []

    def work():
        with interruptions() as asked:
            found.append((asked(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
