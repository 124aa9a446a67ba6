# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import errno
import socket
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import (
    ephemeral_ports,
    free_port,
    reserved_ports,
)


def test_a_free_port() -> None:
    first, last = ephemeral_ports()
    found = {free_port() for _attempt in range(50)}
    assert all(first <= port <= last for port in found)
    assert not found & reserved_ports()


@pytest.mark.parametrize("has_ipv6", [True, False])
def test_a_free_port_other_than_one(monkeypatch: pytest.MonkeyPatch, has_ipv6: bool) -> None:
    chosen = iter([40001, 40003])

    class Socket(contextlib.nullcontext[Any]):
        def __init__(self, family: int) -> None:
            if family == socket.AF_INET6 and not has_ipv6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(self)

        def setsockopt(self, *_option: int) -> None:
            pass

        def bind(self, at: tuple[str, int]) -> None:
            assert at == ("::" if has_ipv6 else "0.0.0.0", 0)
            self.port = next(chosen)

        def getsockname(self) -> tuple[str, int]:
            return "", self.port

    monkeypatch.setattr(socket, "socket", Socket)
    assert free_port(but=40001) == 40003


def test_no_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_self: Any, _address: Any) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket.socket, "bind", none)
    assert free_port() == 0
