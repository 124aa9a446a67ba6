# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.become_errors import WITHOUT
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError

NONE_GIVEN = (
    "asks for a password for sudo, and none was given: set ansible_become_password (from a vault), give "
    "--ask-become-pass, or let the account there use sudo without one (NOPASSWD in sudoers); an account "
    "that may not use sudo at all is asked for one too"
)
WRONG = (
    "does not take the password for sudo: correct ansible_become_password, or what --ask-become-pass is given; an "
    "account that may not use sudo at all is asked for one too"
)
ABSENT = (
    "has no sudo, which Ansible's account needs to become another account: install it there, set "
    f"ansible_become_method to what there is, log in as root (ansible_user: root), {WITHOUT}"
)


class Sudo:
    """A become plugin that adds nothing to the command."""

    name = "sudo"

    def get_option(self, name: str, playcontext: None = None) -> str:
        return "root"

    def build_become_command(self, command: str, shell: object) -> str:
        return command


class Answering:
    """A connection on which every command ends the same way."""

    become = Sudo()
    _shell = None
    default_user = "admin"

    def __init__(self, answer: Exception | tuple[int, bytes]) -> None:
        self.answer = answer

    def get_option(self, name: str) -> str:
        raise KeyError(name)

    def exec_command(self, command: str, in_data: bytes, sudoable: bool) -> tuple[int, bytes, bytes]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[0], b"", self.answer[1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (AnsibleError("Missing sudo password"), NONE_GIVEN),
        ((1, b"sudo: a password is required\n"), NONE_GIVEN),
        ((1, b"sudo: a terminal is required to read the password; either use the -S option\n"), NONE_GIVEN),
        (AnsibleError("Incorrect sudo password"), WRONG),
        (AnsibleError("Duplicate become password prompt encountered waiting for become password"), WRONG),
        (
            (1, b"admin is not in the sudoers file.  This incident will be reported.\n"),
            "does not let Ansible's account use sudo (admin is not in the sudoers file.  This incident will be "
            f"reported.): allow it there, name one that may with ansible_user, {WITHOUT}",
        ),
        (
            (1, b"Sorry, user admin is not allowed to execute '/bin/sh -c x' as root on gpu-1.\n"),
            "does not let Ansible's account use sudo (Sorry, user admin is not allowed to execute '/bin/sh -c x' as "
            f"root on gpu-1.): allow it there, name one that may with ansible_user, {WITHOUT}",
        ),
        (
            (1, b"sudo: sorry, you must have a tty to run sudo\n"),
            "does not let sudo be used without a terminal (sudo: sorry, you must have a tty to run sudo): take "
            "requiretty out of its sudoers, for this account at least (Defaults:NAME !requiretty)",
        ),
        (
            AnsibleConnectionFailure("Timeout (12s) waiting for privilege escalation prompt: "),
            "took too long to run sudo (Timeout (12s) waiting for privilege escalation prompt): if it waits for a "
            "name server, put the node's own name into its /etc/hosts; else raise ansible_timeout",
        ),
        ((127, b"/bin/sh: 1: sudo: not found\n"), ABSENT),
        ((127, b"bash: line 1: sudo: command not found\n"), ABSENT),
        (
            (
                1,
                b"sudo: unable to resolve host gpu-1\nsudo: /usr/bin/sudo must be owned by uid 0\n",
            ),
            "does not let Ansible's account become another account (sudo: /usr/bin/sudo must be owned by uid 0): "
            f"repair sudo there, {WITHOUT}",
        ),
    ],
)
@pytest.mark.parametrize("put", [False, True])
def test_what_keeps_an_account_from_its_rights_is_named(
    answer: Exception | tuple[int, bytes], expected: str, put: bool
) -> None:
    channel = Channel("gpu-1", Answering(answer), "python3", "/bin/sh")
    with pytest.raises(NodeError) as caught:
        channel.put("/x", b"") if put else channel.call({"op": "setup_facts"})
    assert str(caught.value) == f"gpu-1 {expected}"
    assert caught.value.facts == {"unsent": True}


@pytest.mark.parametrize(
    "said",
    [
        b"sudo: unable to resolve host gpu-1: Name or service not known\n",
        b"sudo: setrlimit(RLIMIT_CORE)\nPermissionError: [Errno 1] Operation not permitted\n",
    ],
)
def test_other_words_are_not_taken_for_it(said: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        Channel("gpu-1", Answering((1, said)), "python3", "/bin/sh").call({"op": "setup_facts"})
    assert str(caught.value).startswith("gpu-1 could not run Thunderhead's agent (exit code 1): ")
