# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send requests to one node's agent through its Ansible connection, and read the replies."""

from __future__ import annotations

import contextlib
import errno
import random
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import MARK
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.become_errors import (
    explain_become_failure,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import HostSlots
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import LOADER, frame
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import (
    find_flaw,
    parse,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.ssh_errors import (
    explain_ssh_failure,
    is_closed_before_login,
    last_error,
)

_HEAD = re.compile(rb"%b ([0-9]{1,12}) ([0-9]{1,12})\n" % MARK.encode())
CONNECT_TRIES = 12
CONNECT_PAUSE_SECONDS = 0.3
LONGEST_PAUSE_SECONDS = 4
LONGEST_STATE = 2000
"""Characters of a node's state in a sentence."""


class NodeError(Exception):
    """One node failed to do something.

    ``str()`` is a sentence that begins with the node's name, in one line that a terminal may show, whoever wrote
    ``state``; ``facts`` are for code.
    """

    def __init__(self, host: str, state: str, **facts: Any) -> None:
        text = escape(state)
        super().__init__(f"{host} {text if len(text) <= LONGEST_STATE else f'{text[:LONGEST_STATE]}…'}")
        self.host = host
        self.facts = facts


class Unreachable(NodeError):
    """The node gave no reply: what happened there is not known."""


class Unable(NodeError):
    """This machine could not ask the node: nothing happened there. ``why`` is the reason without the node's name."""

    def __init__(self, host: str, what: str) -> None:
        self.why = f"this machine cannot {what}"
        super().__init__(host, f"was not asked: {self.why}")


class Refused(NodeError):
    """The agent there refused the request, and has undone what it had begun."""


class Channel:
    """Requests to one host's agent. Each call is one ``exec_command``; a channel serves one thread at a time."""

    def __init__(
        self,
        host: str,
        connection: Any,
        python: str,
        executable: str,
        slots: HostSlots | None = None,
        environment: str = "",
    ) -> None:
        """Keep what a call needs; nothing is sent.

        Args:
            host: inventory name.
            connection: Ansible's, with its become and shell plugins.
            python: the interpreter there.
            executable: the shell there.
            slots: where new connections wait for their turn.
            environment: variables for the interpreter, as the shell takes them in front of a command.
        """
        self.host = host
        self._environment = environment
        self._slots = slots
        self._connection = connection
        self._python = python
        self._executable = executable

    def call(self, request: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send ``request`` and return the reply and its payload.

        Raises:
            Unreachable: no reply came; the node may or may not have done what was asked, unless ``facts`` says that
                it was not reached at all (``unsent``).
            Unable: this machine could not ask.
            Refused: the agent refused it.
            NodeError: the node cannot run the agent, or the agent failed.
        """
        command = f"{self._environment} {shlex.quote(self._python)} -I -S -c {shlex.quote(LOADER)}".lstrip()
        return self._parse(request, *self._execute(command, frame(request, payload)))

    def put(self, path: str, data: bytes) -> None:
        """Make the file ``path`` appear on the node, complete and readable by no other account.

        By a shell alone: where the moment matters, an interpreter would take longer to start than all the rest.

        Raises:
            Unreachable: no reply came; the file may or may not be there.
            Unable: this machine could not ask.
            NodeError: it could not be written.
        """
        part = shlex.quote(path + ".part")
        command = f"umask 077 && cat > {part} && mv {part} {shlex.quote(path)}"
        code, _output, errors = self._execute(command, data)
        if code == 255:  # ssh's own
            raise self._unreachable(errors)
        if code:
            raise self._become_failure(errors) or NodeError(self.host, f"could not write {path}: {last_error(errors)}")

    def _execute(self, command: str, data: bytes) -> tuple[int, bytes, str]:
        """Execute a command; while no request has come through to this host, again if an sshd has too many now."""
        slots = self._slots
        if not slots or slots.is_open:
            return self._execute_once(command, data)
        for number in range(CONNECT_TRIES):
            if number:
                # At random, so that those turned away together do not come back together.
                time.sleep(min(CONNECT_PAUSE_SECONDS * 1.5**number, LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.5))
            with slots.slot():
                try:
                    answer = self._execute_once(command, data)
                except Unreachable as error:
                    if "closed_before_login" not in error.facts:
                        raise
                    cause = error.facts["closed_before_login"]
                    slots.refused()
                else:
                    slots.is_open = True
                    return answer
        raise Unreachable(
            self.host,
            f"is unreachable: an sshd, its own or that of a machine on the way, closed the connection before it began, "
            f"{CONNECT_TRIES} times ({cause}); it may let in few new connections at once (MaxStartups): set "
            "cluster_connections in the inventory to fewer, or raise MaxStartups in that machine's sshd_config",
            unsent=True,
        )

    def _execute_once(self, command: str, data: bytes) -> tuple[int, bytes, str]:
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
            raise self._become_failure(str(error)) or self._unreachable(str(error)) from error
        except (AnsibleError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError):
                raise self._unable(cause) from error
            raise self._become_failure(str(error)) or NodeError(
                self.host, f"cannot be connected to: {error}"
            ) from error
        error_output = errors.decode(errors="replace")
        if code == 255 and not output and is_closed_before_login(error_output):
            raise self._unreachable(error_output)
        return code, output, error_output

    def _become_failure(self, error_output: str) -> NodeError | None:
        """Return why Ansible's account cannot become another there, if that is the error."""
        why = explain_become_failure(self._connection.become.name, error_output) if self._connection.become else None
        return NodeError(self.host, why, unsent=True) if why else None

    def _unable(self, cause: OSError) -> Unable:
        """Return what kept this machine from starting a process that leads to the node, and what helps."""
        remedies = {
            errno.EMFILE: "; raise the number of files a program may have open: ulimit -n 4096",
            errno.ENFILE: "; raise the number of files it may have open: sysctl fs.file-max",
            errno.EAGAIN: "; raise the number of processes a user may have: ulimit -u",
            errno.ENOMEM: "; free some memory here",
            errno.ENOENT: "; install it here",
        }
        what = f"{cause.strerror or cause}{f' ({cause.filename})' if cause.filename else ''}"
        return Unable(self.host, f"start what connects to a node: {what}{remedies.get(cause.errno or 0, '')}")

    def _parse(self, request: Mapping[str, Any], code: int, output: bytes, errors: str) -> tuple[dict[str, Any], bytes]:
        # A login shell may print before the agent does, so the reply begins at the mark.
        head = _HEAD.search(output)
        if not head:
            raise self._no_reply(code, errors)
        payload = head.end() + int(head[1])
        end = payload + int(head[2])
        if len(output) < end:  # the connection broke: part of a log would pass for all of it
            raise Unreachable(self.host, f"is unreachable: its reply is not complete ({last_error(errors)})")
        try:
            reply = parse(output[head.end() : payload])
        except ValueError as error:
            raise self._invalid_reply(request, f"form: {error}") from None
        wrong = find_flaw(request, reply, output[payload:end])
        if wrong:
            raise self._invalid_reply(request, wrong)
        if not reply.pop("ok"):
            kind = NodeError if reply.get("failed") else Refused
            raise kind(self.host, reply.pop("refusal"), **reply)
        return reply, output[payload:end]

    def _invalid_reply(self, request: Mapping[str, Any], what: str) -> NodeError:
        return NodeError(
            self.host,
            f"sent an invalid reply to {request['op']} ({what}); another program than Thunderhead's agent may have "
            "answered: find out which before you use that machine again",
        )

    def _unreachable(self, error_output: str) -> Unreachable:
        """Return the error that ssh's output means."""
        state, facts = explain_ssh_failure(error_output, self._address)
        return Unreachable(self.host, state, **facts)

    @property
    def _address(self) -> str:
        """The address that the connection leads to, as far as its plugin has it."""
        with contextlib.suppress(AttributeError, KeyError):
            return str(self._connection.get_option("host"))
        return self.host

    def _no_reply(self, code: int, errors: str) -> NodeError:
        become_failure = self._become_failure(errors) if code != 255 else None
        if become_failure:
            return become_failure
        remedy = "install Python 3.10 to 3.13 there, or set ansible_python_interpreter for it in the inventory"
        if code == 127:
            return NodeError(self.host, f"has no usable Python: {self._python} was not found; {remedy}")
        if "too old: Python" in errors:
            return NodeError(self.host, f"has no usable Python: {self._python} is {last_error(errors)}; {remedy}")
        if "No module named 'zlib'" in errors:
            return NodeError(self.host, f"has no usable Python: {self._python} was built without zlib; {remedy}")
        if code == 255:  # ssh's own
            return self._unreachable(errors)
        if code in (0, 2, 126):  # of another program, or of a file that is none
            return NodeError(
                self.host,
                f"has no usable Python: {self._python} is no Python interpreter ({last_error(errors)}); {remedy}",
            )
        return NodeError(self.host, f"could not run Thunderhead's agent (exit code {code}): {last_error(errors)}")


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
