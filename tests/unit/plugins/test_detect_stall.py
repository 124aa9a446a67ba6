# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.detect_stall import (
    Silence,
    StallDetector,
)

BEGAN = 1000.0


def silence_at(watch: StallDetector, seconds: float, printed: int = 0, ended: int = 0) -> Silence | None:
    """Return the silence that the watch reports ``seconds`` after its start."""
    return watch.check(printed, ended, BEGAN + seconds)


def watch_of(stall_timeout: float, rendezvous_timeout: float) -> StallDetector:
    return StallDetector(stall_timeout, rendezvous_timeout, BEGAN)


def test_a_stall_is_told_once_per_silence() -> None:
    watch = watch_of(60, 0)
    assert silence_at(watch, 0) is None
    assert silence_at(watch, 59.9) is None
    assert silence_at(watch, 60.1) == Silence(pytest.approx(60.1), stall=True, rendezvous=False)  # type: ignore[arg-type]
    assert silence_at(watch, 90) is None
    assert silence_at(watch, 100, printed=5) is None
    assert silence_at(watch, 159, printed=5) is None
    assert silence_at(watch, 160, printed=5) == Silence(60, stall=True, rendezvous=False)
    assert silence_at(watch, 170, printed=5, ended=1) is None
    assert silence_at(watch, 230, printed=5, ended=1) == Silence(60, stall=True, rendezvous=False, ended=1)


def test_a_rendezvous_is_told_again_when_the_job_is_twice_as_old() -> None:
    watch = watch_of(0, 120)
    assert silence_at(watch, 0) is None
    assert silence_at(watch, 119) is None
    assert silence_at(watch, 120) == Silence(120, stall=False, rendezvous=True)
    assert silence_at(watch, 239) is None
    assert silence_at(watch, 240) == Silence(240, stall=False, rendezvous=True)
    assert silence_at(watch, 400, printed=5) is None
    assert silence_at(watch, 519, printed=5) is None
    assert silence_at(watch, 520, printed=5) == Silence(120, stall=False, rendezvous=True)
    watch.past_rendezvous()
    assert silence_at(watch, 9999, printed=5) is None


def test_a_time_in_which_all_were_frozen_is_no_silence() -> None:
    watch = watch_of(60, 0)
    assert silence_at(watch, 50) is None
    watch.skip(100)
    assert silence_at(watch, 159) is None
    assert silence_at(watch, 160) == Silence(60, stall=True, rendezvous=False)


def test_who_is_left_is_looked_at_soon() -> None:
    """A rank that waits in a rendezvous for ranks that have ended, in its first or in a second one."""
    for met in (False, True):
        watch = watch_of(0, 120)
        if met:
            watch.past_rendezvous()
        assert silence_at(watch, 0) is None
        assert silence_at(watch, 50, printed=5, ended=1) is None
        assert silence_at(watch, 69, printed=5, ended=1) is None
        assert silence_at(watch, 70, printed=5, ended=1) == Silence(20, stall=False, rendezvous=True, ended=1)
        assert silence_at(watch, 90, printed=5, ended=1) is None, "once"
        assert silence_at(watch, 111, printed=5, ended=2) is None
        assert silence_at(watch, 131, printed=5, ended=2) == Silence(20, stall=False, rendezvous=True, ended=2)


def test_both_at_once() -> None:
    watch = watch_of(120, 120)
    assert silence_at(watch, 0) is None
    assert silence_at(watch, 121) == Silence(121, stall=True, rendezvous=True)


def test_off() -> None:
    watch = watch_of(0, 0)
    assert all(silence_at(watch, seconds) is None for seconds in (0, 1e9))
