# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import authenticated_stream
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import (
    LONGEST_HELLO,
    AuthenticatedStream,
    ForgedMessage,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member
from hypothesis import given
from hypothesis import strategies as st

KEY = bytes(range(32))
FIRST, SECOND = {"kind": "alive"}, {"kind": "report"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def take(stream: AuthenticatedStream) -> bytes:
    data, stream.unsent = stream.unsent, b""
    return data


def pair(key: bytes = KEY, other: bytes = KEY) -> tuple[AuthenticatedStream, AuthenticatedStream]:
    """Return both sides of a connection that know each other's nonces."""
    dialed, accepted = AuthenticatedStream(key, True, b"a" * 16), AuthenticatedStream(other, False, b"b" * 16)
    hellos = take(dialed), take(accepted)
    assert dialed.receive(hellos[1]) == accepted.receive(hellos[0]) == []
    return dialed, accepted


def lines(stream: AuthenticatedStream, *messages: dict[str, Any]) -> list[bytes]:
    """Return what is sent for each message."""
    found = []
    for message in messages:
        stream.send(message)
        found.append(take(stream))
    return found


@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), max_size=5), st.integers(1, 200))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(messages: list[dict[str, Any]], size: int) -> None:
    messages = json.loads(json.dumps(messages))
    for sender, receiver in (pair(), pair()[::-1]):
        data = b"".join(lines(sender, FIRST, *messages))
        arrived = [one for at in range(0, len(data), size) for one in receiver.receive(data[at : at + size])]
        assert json.dumps(arrived) == json.dumps([FIRST, *messages])


def test_what_is_sent_before_the_other_nonce_is_known_follows_it() -> None:
    dialed, accepted = AuthenticatedStream(KEY, True, b"a" * 16), AuthenticatedStream(KEY, False, b"b" * 16)
    dialed.send({"join": 1})
    assert accepted.receive(take(dialed)) == []
    dialed.receive(take(accepted))
    assert not accepted.proven
    assert accepted.receive(take(dialed)) == [{"join": 1}]
    assert accepted.proven


@pytest.mark.parametrize("at", range(0, 100, 3))
def test_a_changed_byte(at: int) -> None:
    dialed, accepted = pair()
    data = lines(dialed, {"text": "x" * 40})[0]
    assert len(data) > 100
    with pytest.raises(ForgedMessage):
        accepted.receive(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] + data)


def test_repeated_reordered_left_out_and_reflected_messages() -> None:
    for order in ((0, 0), (1,), (1, 0)):
        dialed, accepted = pair()
        sent = lines(dialed, FIRST, SECOND)
        with pytest.raises(ForgedMessage):
            accepted.receive(b"".join(sent[number] for number in order))
    dialed, _accepted = pair()
    with pytest.raises(ForgedMessage):
        dialed.receive(lines(dialed, FIRST)[0])


def test_a_message_of_another_connection() -> None:
    recorded = lines(pair()[0], FIRST)[0]
    accepted = AuthenticatedStream(KEY, False, b"c" * 16)
    with pytest.raises(ForgedMessage):
        accepted.receive(take(AuthenticatedStream(KEY, True, b"a" * 16)) + recorded)


def test_another_key() -> None:
    dialed, accepted = pair(other=bytes(32))
    with pytest.raises(ForgedMessage):
        accepted.receive(lines(dialed, FIRST)[0])
    assert not accepted.proven


def test_one_s_own_nonce_is_no_other_s() -> None:
    accepted = AuthenticatedStream(KEY, False, b"b" * 16)
    with pytest.raises(ForgedMessage):
        accepted.receive(take(accepted))


@given(st.binary(max_size=400))
def test_whatever_a_stranger_sends(data: bytes) -> None:
    for begin in (b"", take(AuthenticatedStream(bytes(32), True, b"a" * 16))):
        stream = AuthenticatedStream(KEY, False, b"b" * 16)
        try:
            assert stream.receive(begin + data) == []
        except ForgedMessage:
            continue
        assert not stream.proven


@pytest.mark.parametrize("begin", [b"", take(AuthenticatedStream(KEY, True, b"a" * 16))])
def test_a_stranger_fills_no_memory(begin: bytes) -> None:
    stream = AuthenticatedStream(KEY, False, b"b" * 16)
    stream.receive(begin)
    with pytest.raises(ForgedMessage):
        for _number in range(20):
            stream.receive(b"1" * LONGEST_HELLO)
    stream = AuthenticatedStream(KEY, False, b"b" * 16)
    with pytest.raises(ForgedMessage):
        stream.receive(begin + b"99999999 " + b"0" * 200)


def test_a_member_s_message_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dialed, accepted = pair()
    accepted.receive(lines(dialed, FIRST)[0])
    monkeypatch.setattr(authenticated_stream, "LONGEST_MESSAGE", 10_000)
    with pytest.raises(ForgedMessage):
        accepted.receive(lines(dialed, {"text": "x" * 10_000})[0][:500])


@given(st.lists(st.dictionaries(st.sampled_from(["kind", "term", "states", "why", "verdict", "state"]), JSON)))
def test_whatever_a_member_sends(messages: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        member = GangMember(rank, 3, 6, 0.0)
        member.start([Member("a", "198.18.0.1", 1), Member("b", "198.18.0.2", 2), Member("c", "198.18.0.3", 3)], 0.0)
        member.connected(1 - rank, 0.0)
        for number, message in enumerate(messages):
            for kind in ("lead", "alive", "verdict", "over", "report", "vote", "ask_vote", "outdated"):
                member.received(1 - rank, {**message, "kind": kind}, number)
                member.received(1 - rank, {**message, "kind": kind, "term": 1 + number % 3}, number)
                member.tick(number)
        json.dumps(member.outbox)
