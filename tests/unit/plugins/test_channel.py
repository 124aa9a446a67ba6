# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.active_firewalls import managed_firewalls
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import uid_of
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.network_disks import (
    identity,
    network_disks,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import MARK
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    Channel,
    NodeError,
    Unreachable,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connect import ConnectionSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import LOADER
from local_nodes import PYTHON, Connection, LocalNode

FOLLOWED = b'{"ok": true, "state": "running", "more": false, "offset": %d}'
INSPECTED = {
    **{"address": "198.18.0.9", "interface": "eth0"},
    **{"addresses": ["198.18.0.9"], "port_range": (32768, 60999), "folder": "1", "firewalls": [], "session": ""},
    **{"uid": 999, "network_disks": [], "job": None},
}
CHANGED_KEY = """\
Failed to connect to the host via ssh: @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Host key for 198.18.0.9 has changed and you have requested strict checking.
Host key verification failed.
"""
OTHER_KEY = (
    "has another SSH host key than the one in known_hosts: it was reinstalled, or another machine answers at its "
    "address; compare the fingerprint with its administrator's before you remove the old key: ssh-keygen -R gpu-1"
)
REMEDY = "install Python 3.10 to 3.13 there, or set ansible_python_interpreter for it in the inventory"


class Canned:
    """A connection on which every command ends the same way."""

    become = None

    def __init__(self, code: int = 0, output: bytes = b"", errors: bytes = b"") -> None:
        self.answer = code, output, errors

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        return self.answer


def call(code: int = 0, output: bytes = b"", errors: bytes = b"") -> tuple[dict[str, Any], bytes]:
    return Channel("gpu-1", Canned(code, output, errors), "python3", "/bin/sh").call({"op": "setup_facts"})


def log(offset: int, output: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what `follow` makes of this output for a log of which nothing is known yet."""
    request = {"op": "follow", "offset": 0, "max_bytes": offset}
    return Channel("gpu-1", Canned(0, output), "python3", "/bin/sh").call(request)


def reply(text: bytes, payload: bytes = b"") -> bytes:
    return b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text + payload


# -------------------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize("noise", [b"", b"Welcome!\n\xff\x00\x1b[0m\n", b"no newline at its end "])
def test_a_reply_behind_noise(noise: bytes) -> None:
    assert log(8, noise + reply(FOLLOWED % 8, b"pay\nload"))[1] == b"pay\nload"


def test_noise_behind_a_reply_is_not_its_payload() -> None:
    found, payload = log(4, reply(FOLLOWED % 4, b"data") + b"logout\n")
    assert found == {"state": "running", "more": False, "offset": 4}
    assert payload == b"data"


def test_a_refusal_begins_with_the_node() -> None:
    with pytest.raises(NodeError) as caught:
        call(0, reply(b'{"ok": false, "refusal": "has no job x"}'))
    assert str(caught.value) == "gpu-1 has no job x"
    assert caught.value.host == "gpu-1"
    assert not isinstance(caught.value, Unreachable)


@pytest.mark.parametrize(
    ("code", "errors", "kind", "message"),
    [
        (127, b"sh: 1: python3: not found", NodeError, f"has no usable Python: python3 was not found; {REMEDY}"),
        (
            1,
            b"too old: Python 3.8.20\n",
            NodeError,
            f"has no usable Python: python3 is too old: Python 3.8.20; {REMEDY}",
        ),
        (
            1,
            b"Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'zlib'\n",
            NodeError,
            f"has no usable Python: python3 was built without zlib; {REMEDY}",
        ),
        (
            255,
            b"Warning: x\nssh: connect to host 198.18.0.1 port 22: Connection refused\r\n",
            Unreachable,
            "is unreachable: ssh: connect to host 198.18.0.1 port 22: Connection refused",
        ),
        (255, b"", Unreachable, "is unreachable: ssh printed no error"),
        (
            1,
            b"Traceback (most recent call last):\n  ...\nValueError: a defect\n",
            NodeError,
            "could not run Thunderhead's agent (exit code 1): ValueError: a defect",
        ),
        (137, b"\xff", NodeError, "could not run Thunderhead's agent (exit code 137): \ufffd"),
        (0, b"", NodeError, f"has no usable Python: python3 is no Python interpreter (it printed no error); {REMEDY}"),
        (
            2,
            b"sh: Illegal option -I",
            NodeError,
            f"has no usable Python: python3 is no Python interpreter (sh: Illegal option -I); {REMEDY}",
        ),
    ],
)
def test_no_reply(code: int, errors: bytes, kind: type[NodeError], message: str) -> None:
    with pytest.raises(NodeError) as caught:
        call(code, b"Welcome!\n", errors)
    assert type(caught.value) is kind
    assert str(caught.value) == f"gpu-1 {message}"


@pytest.mark.parametrize("kept", range(30, 60, 3))
def test_half_a_reply_is_none(kept: int) -> None:
    whole = reply(FOLLOWED % 11, b"hello world")
    assert log(11, whole)[1] == b"hello world"
    with pytest.raises(Unreachable) as caught:
        call(255, whole[:kept], b"client_loop: send disconnect: Broken pipe\n")
    assert str(caught.value) == (
        "gpu-1 is unreachable: its reply is not complete (client_loop: send disconnect: Broken pipe)"
    )


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (AnsibleConnectionFailure("Failed\nto connect"), Unreachable, "gpu-1 is unreachable: to connect"),
        *[
            (
                AnsibleConnectionFailure(
                    f'Data could not be sent to remote host "x". Make sure this host can be reached over ssh: {said}'
                ),
                Unreachable,
                f"gpu-1 is unreachable: {said}{remedy}",
            )
            for said, remedy in [
                ("ssh: Could not resolve hostname gpu-1: Name or service not known", ""),
                (
                    "ControlPath too long ('/x/y' >= 108 bytes)",
                    "; set ansible_control_path_dir to a folder with a shorter name",
                ),
            ]
        ],
        (AnsibleConnectionFailure(CHANGED_KEY), Unreachable, f"gpu-1 {OTHER_KEY}"),
        (
            AnsibleConnectionFailure("Failed to connect to the host via ssh: Host key verification failed.\r\n"),
            Unreachable,
            "gpu-1 has an SSH host key that is not in known_hosts; log in to it once and compare the fingerprint: "
            "ssh gpu-1",
        ),
        (AnsibleError("no such plugin"), NodeError, "gpu-1 cannot be connected to: no such plugin"),
    ],
)
def test_errors_of_the_connection_plugin(error: Exception, kind: type[NodeError], message: str) -> None:
    class Failing(Canned):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            raise error

    with pytest.raises(NodeError) as caught:
        Channel("gpu-1", Failing(), "python3", "/bin/sh").call({"op": "setup_facts"})
    assert type(caught.value) is kind
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------------- real processes


def test_a_round_trip(tmp_path: Path) -> None:
    found, payload = (
        LocalNode(tmp_path)
        .channel()
        .call(
            {"op": "setup_facts", "directory": str(tmp_path), "user": "", "address": "127.0.0.1", "master_port": None}
        )
    )
    place = {"address": "127.0.0.1", "interface": "lo", "addresses": ["127.0.0.1"]}
    about = {"folder": identity(str(tmp_path)), "firewalls": managed_firewalls(), "session": ""}
    account = {"uid": uid_of(""), "network_disks": network_disks()}
    assert found == {**place, **about, **account, "port_range": list(ephemeral_ports()), "job": None}
    assert payload == b""


def test_the_command_is_what_a_login_shell_gets() -> None:
    commands = []

    class Spy(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            commands.append(command)
            return super().exec_command(command, in_data)

    node = LocalNode(Path("/nowhere"), connection=Spy())
    node.ask("setup_facts")
    assert [shlex.split(shlex.split(command)[2]) for command in commands] == [[PYTHON, "-I", "-S", "-c", LOADER]]


def test_the_users_python_settings_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    node = LocalNode(
        tmp_path / "node", connection=Connection({"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "/nowhere"})
    )
    assert node.ask("setup_facts")["interface"] == "lo"


def test_a_missing_python() -> None:
    with pytest.raises(NodeError) as caught:
        Channel("gpu-1", Connection(), "/no/such/python3", "/bin/sh").call({"op": "setup_facts"})
    assert str(caught.value) == f"gpu-1 has no usable Python: /no/such/python3 was not found; {REMEDY}"


def test_an_old_python(tmp_path: Path) -> None:
    old = LOADER.replace("(3,9)", "(99,)")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {PYTHON} -I -S -c {shlex.quote(old)}\n")
    python.chmod(0o755)
    version = ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(NodeError) as caught:
        Channel("gpu-1", Connection(), str(python), "/bin/sh").call({"op": "setup_facts"})
    assert str(caught.value) == (f"gpu-1 has no usable Python: {python} is too old: Python {version}; {REMEDY}")


def test_a_defect_in_the_agent_is_told(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        LocalNode(tmp_path).channel().call({"op": "setup_facts"})
    assert str(caught.value).startswith("node0 failed at setup_facts: KeyError in setup_facts, line ")


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 1000])
def test_a_file_is_put_for_nobody_else_to_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "it's $HOME here"
    LocalNode(tmp_path).channel().put(str(path), data)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        LocalNode(tmp_path).channel().put(f"{tmp_path}/none/file", b"x")
    assert type(caught.value) is NodeError
    message = str(caught.value)
    assert message.startswith(f"node0 could not write {tmp_path}/none/file: ")
    assert message.lower().endswith(("no such file or directory", "directory nonexistent"))


def test_a_file_put_over_a_lost_connection() -> None:
    with pytest.raises(Unreachable) as caught:
        Channel("gpu-1", Canned(255, b"", b"ssh: connect to host x: timed out\n"), "python3", "/bin/sh").put("/x", b"")
    assert str(caught.value) == "gpu-1 is unreachable: ssh: connect to host x: timed out"


# ----------------------------------------------------------------------------------------------- Ansible's own settings


def opened(variables: Mapping[str, Any], become: bool = False) -> Channel:
    task = Task.load(
        {
            **{"action": "ansible.builtin.debug", "become": become},
            **{"connection": C.DEFAULT_TRANSPORT, "become_method": "sudo"},  # else of ansible-playbook's command line
        },
        loader=DataLoader(),
    )
    variables = {"inventory_hostname": "gpu-1", **variables}
    return ConnectionSettings("gpu-1", variables, task=task, play_context=PlayContext(), loader=DataLoader()).open()


def command_of(channel: Channel) -> str:
    """What the connection is asked to execute for a request."""
    commands: list[str] = []

    def execute(command: str, in_data: bytes, sudoable: bool = False) -> tuple[int, bytes, bytes]:
        assert sudoable == ("BECOME-SUCCESS" in command), "else community.docker's does not answer sudo"
        commands.append(command)
        return 0, reply(json.dumps({"ok": True, **INSPECTED}).encode()), b""

    channel._connection.exec_command = execute
    channel.call({"op": "setup_facts"})
    return commands[0]


def options(channel: Channel, *names: str) -> list[Any]:
    return [channel._connection.get_option(name) for name in names]


def test_a_local_connection_is_opened_and_works() -> None:
    channel = opened({"ansible_connection": "local", "ansible_python_interpreter": PYTHON})
    found, _payload = channel.call(
        {"op": "setup_facts", "directory": "/opt/nowhere", "user": "", "address": "127.0.0.1", "master_port": None}
    )
    assert found["interface"] == "lo"


def test_ssh_settings_of_the_inventory_are_kept() -> None:
    from ansible.template import trust_as_template

    channel = opened(
        {
            "ansible_host": "198.18.0.9",
            "ansible_port": trust_as_template("{{ base_port + 22 }}"),
            "base_port": 2200,
            "ansible_user": "ubuntu",
            "ansible_ssh_private_key_file": "/keys/id",
            "ansible_ssh_common_args": "-J jump.example.org",
            "never_asked_for": trust_as_template("{{ no_such_variable }}"),
        }
    )
    names = ["host", "port", "remote_user", "private_key_file", "ssh_common_args"]
    assert options(channel, *names) == ["198.18.0.9", 2222, "ubuntu", "/keys/id", "-J jump.example.org"]


def test_a_host_without_settings_is_reached_by_its_name_over_ssh() -> None:
    channel = opened({})
    assert channel._connection.transport == "ssh"
    assert options(channel, "host") == ["gpu-1"]


@pytest.mark.parametrize(
    ("task_become", "variables", "expected"),
    [
        (False, {}, None),
        (True, {}, "sudo"),
        (True, {"ansible_become": False}, None),
        (True, {"ansible_become": "false"}, None),
        (False, {"ansible_become": True}, "sudo"),
        (True, {"ansible_become_method": "su"}, "su"),
    ],
)
def test_become(task_become: bool, variables: dict[str, Any], expected: str | None) -> None:
    channel = opened({"ansible_user": "ubuntu", **variables}, become=task_become)
    become = channel._connection.become
    assert (become.name if become else None) == expected
    command = shlex.split(command_of(channel))[2]
    assert command.startswith(f"{expected} " if expected else "python3 ")


def test_root_does_not_become_root() -> None:
    channel = opened({"ansible_user": "root"}, become=True)
    assert "sudo" not in command_of(channel)


@pytest.mark.parametrize(
    ("given", "python"),
    [
        (None, "python3"),
        ("auto", "python3"),
        ("auto_silent", "python3"),
        ("/opt/my python/bin/python3.12", "/opt/my python/bin/python3.12"),
    ],
)
def test_interpreter(given: str | None, python: str) -> None:
    variables = {"ansible_python_interpreter": given} if given else {}
    assert shlex.split(shlex.split(command_of(opened(variables)))[2])[0] == python


def test_a_connection_that_is_not_installed() -> None:
    with pytest.raises(NodeError) as caught:
        opened({"ansible_connection": "no-such-plugin"})
    assert str(caught.value) == "gpu-1 has ansible_connection no-such-plugin, which is not installed"


def test_a_setting_that_cannot_be_resolved() -> None:
    from ansible.template import trust_as_template

    with pytest.raises(NodeError) as caught:
        opened({"ansible_host": trust_as_template("{{ nowhere }}")})
    assert str(caught.value).startswith("gpu-1 has connection settings that cannot be used: ")
    assert "'nowhere' is undefined" in str(caught.value)


def test_a_become_method_that_is_not_installed() -> None:
    with pytest.raises(NodeError) as caught:
        opened({"ansible_become_method": "no-such-plugin"}, become=True)
    assert str(caught.value) == "gpu-1 has ansible_become_method no-such-plugin, which is not installed"


def test_a_sudo_that_asks_for_a_password_is_answered(tmp_path: Path) -> None:
    """The agent's input must not be taken for the password, nor the password for the agent's input."""
    sudo = tmp_path / "sudo"
    sudo.write_text(
        "#!/bin/sh\n"
        "while [ $# -gt 0 ]; do case $1 in -p) prompt=$2; shift 2;; -u) shift 2;; -*) shift;; *) break;; esac; done\n"
        'printf "%s" "$prompt" >&2\n'
        "IFS= read -r word\n"
        '[ "$word" = "pass word" ] || { echo "sudo: a password is required" >&2; exit 1; }\n'
        'exec "$@"\n'
    )
    sudo.chmod(stat.S_IRWXU)
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": PYTHON,
        "ansible_become": True,
        "ansible_become_exe": str(sudo),
        "ansible_become_user": "somebody-else",
        "ansible_become_password": "pass word",
    }
    request = {
        "op": "setup_facts",
        "directory": "/opt/nowhere",
        "user": "",
        "address": "127.0.0.1",
        "master_port": None,
    }
    channel = opened(variables)
    assert [channel.call(request)[0]["interface"] for _time in range(2)] == ["lo", "lo"]
    channel.put(str(tmp_path / "file"), b"pass word\n")
    assert (tmp_path / "file").read_bytes() == b"pass word\n"
