# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""One node's channel: a request to the agent there and its reply, through the host's own Ansible connection plugin."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import MARK
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import literals
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.program import LOADER, frame
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.replies import flaw
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown

_HEAD = re.compile(rb"%b ([0-9]{1,12}) ([0-9]{1,12})\n" % MARK.encode())
LONGEST_WORDS = 2000
"""Characters of what a node says of itself, on its way into a sentence."""


class NodeError(Exception):
    """What one node could not do.

    ``str()`` is a sentence that begins with the node's name, in one line that a terminal may show, whoever wrote
    ``state``; ``facts`` are for code.
    """

    def __init__(self, host: str, state: str, **facts: Any) -> None:
        words = shown(state)
        super().__init__(f"{host} {words if len(words) <= LONGEST_WORDS else f'{words[:LONGEST_WORDS]}…'}")
        self.host = host
        self.facts = facts


class Unreachable(NodeError):
    """The node gave no reply: what happened there is not known."""


class Refused(NodeError):
    """The agent there says no, or why it could not: a valid reply."""


class Channel:
    """Requests to one host's agent. Each call is one ``exec_command``; a channel serves one thread at a time."""

    def __init__(self, host: str, connection: Any, python: str, executable: str) -> None:
        self.host = host
        self._connection = connection
        self._python = python
        self._executable = executable

    def call(self, request: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send ``request`` and return the reply and its payload.

        Raises:
            Unreachable: no reply came; the node may or may not have done what was asked.
            NodeError: the node refused, or cannot run the agent.
        """
        command = f"{shlex.quote(self._python)} -I -S -c {shlex.quote(LOADER)}"
        return self._parse(request, *self._execute(command, frame(request["op"], ascii(dict(request)), payload)))

    def put(self, path: str, data: bytes) -> None:
        """Make the file ``path`` appear on the node, whole and readable by nobody else.

        By a shell alone: where the moment matters, an interpreter would take longer to start than all the rest.

        Raises:
            Unreachable: no reply came; the file may or may not be there.
            NodeError: it could not be written.
        """
        part = shlex.quote(path + ".part")
        code, _output, errors = self._execute(f"umask 077 && cat > {part} && mv {part} {shlex.quote(path)}", data)
        if code == 255:  # ssh's own
            raise self._unreachable(errors)
        if code:
            raise NodeError(self.host, f"could not write {path}: {_last_line(errors)}")

    def _execute(self, command: str, data: bytes) -> tuple[int, bytes, str]:
        rights: dict[str, bool] = {}
        if self._connection.become and not _is_same_user(self._connection):
            # For this one execution: the connection waits for the marker that the plugin has made up last.
            command = self._connection.become.build_become_command(command, self._connection._shell)
            rights["sudoable"] = True
        try:
            code, output, errors = self._connection.exec_command(
                f"{self._executable} -c {shlex.quote(command)}", in_data=data, **rights
            )
        except AnsibleConnectionFailure as error:
            raise self._unreachable(str(error)) from error
        except AnsibleError as error:
            raise NodeError(self.host, f"cannot be talked to: {error}") from error
        return code, output, errors.decode(errors="replace")

    def _parse(self, request: Mapping[str, Any], code: int, output: bytes, errors: str) -> tuple[dict[str, Any], bytes]:
        # A login shell may print before the agent does, so the reply begins at the mark.
        head = _HEAD.search(output)
        if not head:
            raise self._no_reply(code, errors)
        payload = head.end() + int(head[1])
        end = payload + int(head[2])
        if len(output) < end:  # the connection broke: half a log would pass for a whole one
            raise Unreachable(self.host, f"is unreachable: its reply broke off, {_last_line(errors)}")
        try:
            reply = literals.parse(output[head.end() : payload].decode("ascii"))
        except ValueError as error:
            raise self._unbelievable(request, f"form: {error}") from None
        wrong = flaw(request, reply, output[payload:end])
        if wrong:
            raise self._unbelievable(request, wrong)
        if not reply.pop("ok"):
            raise Refused(self.host, reply.pop("refusal"), **reply)
        return reply, output[payload:end]

    def _unbelievable(self, request: Mapping[str, Any], what: str) -> NodeError:
        return NodeError(
            self.host,
            f"sent a reply that Thunderhead's agent never gives (to {request['op']}, by its {what}); something else "
            "may have answered for it: find out what before you use that machine again",
        )

    def _unreachable(self, said: str) -> Unreachable:
        """Return what ssh's last words mean; of a host key, which it says much about, what to do."""
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            return Unreachable(
                self.host,
                "shows another SSH host key than the one you know it by: it was installed anew, or another machine "
                "answers in its place; compare the fingerprint with its administrator's before you remove the old key: "
                f"ssh-keygen -R {self._address}",
            )
        if "Host key verification failed" in said:
            return Unreachable(
                self.host,
                "shows an SSH host key that you do not know it by; log in to it once and compare the fingerprint: "
                f"ssh {self._address}",
            )
        return Unreachable(self.host, f"is unreachable: {_last_line(said)}")

    @property
    def _address(self) -> str:
        """Where the connection leads, as far as it says so."""
        with contextlib.suppress(AttributeError, KeyError):
            return str(self._connection.get_option("host"))
        return self.host

    def _no_reply(self, code: int, errors: str) -> NodeError:
        remedy = "install Python 3.10 to 3.13 there, or set ansible_python_interpreter for it in the inventory"
        if code == 127:
            return NodeError(self.host, f"has no usable Python: {self._python} was not found; {remedy}")
        if "too old: Python" in errors:
            return NodeError(self.host, f"has no usable Python: {self._python} is {_last_line(errors)}; {remedy}")
        if "No module named 'zlib'" in errors:
            return NodeError(self.host, f"has no usable Python: {self._python} was built without zlib; {remedy}")
        if code == 255:  # ssh's own
            return self._unreachable(errors)
        return NodeError(self.host, f"could not run Thunderhead's agent (exit code {code}): {_last_line(errors)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _is_same_user(connection: Any) -> bool:
    """As in Ansible: no sudo from root to root, unless the configuration asks for it."""
    if C.config.get_config_value("BECOME_ALLOW_SAME_USER"):
        return False
    try:
        login = connection.get_option("remote_user")
    except KeyError:
        login = None
    wanted = connection.become.get_option("become_user", playcontext=None) or "root"
    return (login or getattr(connection, "default_user", None)) == wanted
