# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import threading
import time

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out


def test_results_are_in_the_order_given_whoever_is_first() -> None:
    delays = {"a": 0.06, "b": 0.03, "c": 0.0}

    def call(delay: float) -> float:
        time.sleep(delay)
        return delay

    results, errors = fan_out(delays, call, 5)
    assert list(results.items()) == list(delays.items())
    assert errors == {}


def test_all_calls_run_at_the_same_time() -> None:
    everyone = threading.Barrier(40)
    results, errors = fan_out({str(n): n for n in range(40)}, lambda n: (everyone.wait(5), n)[1], 10)
    assert list(results.values()) == list(range(40))
    assert errors == {}


def test_errors_of_nodes_are_returned_in_order_beside_the_results() -> None:
    def call(host: str) -> str:
        time.sleep(0.02 if host == "b" else 0)
        if host in "bd":
            raise NodeError(host, "has no disk")
        return host.upper()

    results, errors = fan_out({host: host for host in "dcba"}, call, 5)
    assert results == {"c": "C", "a": "A"} and list(results) == ["c", "a"]
    assert [str(error) for error in errors.values()] == ["d has no disk", "b has no disk"]
    assert list(errors) == ["d", "b"]


def test_a_node_that_does_not_answer_holds_nobody_up() -> None:
    release = threading.Event()
    began = time.monotonic()
    results, errors = fan_out({"a": 0, "b": 1}, lambda n: n or release.wait(60), 0.2)
    took = time.monotonic() - began
    (left,) = [thread for thread in threading.enumerate() if thread.name == "a"]
    release.set()
    assert 0.2 <= took < 2
    assert results == {"b": 1}
    assert isinstance(errors["a"], Unreachable)
    assert str(errors["a"]) == "a gave no answer within 0 s"
    assert left.daemon, "it must not hold up the end of the run either"


def test_a_late_answer_is_not_mixed_into_the_next_call() -> None:
    release = threading.Event()
    fan_out({"a": 0}, lambda _n: release.wait(60), 0.05)
    release.set()
    results, errors = fan_out({"a": 0}, lambda _n: "second", 5)
    assert (results, errors) == ({"a": "second"}, {})


@pytest.mark.parametrize("defect", [ValueError("a defect"), KeyboardInterrupt()])
def test_an_exception_of_another_kind_is_raised_here(defect: BaseException) -> None:
    def call(host: str) -> None:
        if host == "b":
            raise defect

    with pytest.raises(type(defect)) as caught:
        fan_out({"a": "a", "b": "b"}, call, 5)
    assert caught.value is defect


def test_nobody() -> None:
    assert fan_out({}, lambda item: item, 5) == ({}, {})
