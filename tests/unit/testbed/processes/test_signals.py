"""Signals that ask for an end: as exceptions, once they can be taken, and handed back after."""

import os
import signal

import pytest

from testbed.processes.signals import ENDING, Interrupted, Interruption, handled, interrupt


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_an_exception_within_alone(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name), handled(interrupt):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("asks", [0, 1])
def test_whoever_is_ending_is_not_asked_again(asks: int) -> None:
    before = {number: signal.getsignal(number) for number in ENDING}
    asked = Interruption()
    try:
        with asked.heard():
            for _ in range(asks):
                os.kill(os.getpid(), signal.SIGTERM)
        now = {number: signal.getsignal(number) for number in ENDING}
        assert now == (dict.fromkeys(ENDING, signal.SIG_IGN) if asks else before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_came_before_is_raised_as_soon_as_it_can_be() -> None:
    asked = Interruption()
    with handled(asked.take):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"), asked.raised():
            pytest.fail("nothing is begun")


def test_the_first_signal_alone_is_raised() -> None:
    asked = Interruption()
    with handled(asked.take):
        with pytest.raises(Interrupted, match="SIGTERM"), asked.raised():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                # No other interrupts what the first one leads to.
                os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
