# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import job_plan
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import launch as launch_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.companion_files import companion_files
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle, make_bundle
from local_nodes import SLEEP, Altered, Connection, LocalNode, alive, code, gang_of, until

NEVER_STARTED = "Nothing was started on any node."


def why_not(launch: Launch, **more: Any) -> str:
    with pytest.raises(JobError) as caught:
        launch.prepare(**more)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ preparing


def test_all_nodes_are_prepared_and_ranked(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(list(reversed(nodes)), code(tmp_path / "code", ""))
    topology = launch.prepare()
    assert [(one.rank, one.host, one.address, one.interface) for one in topology.nodes] == [
        (0, "node1", "127.0.0.2", "lo"),
        (1, "node0", "127.0.0.1", "lo"),
    ]
    assert [node.jobs for node in nodes] == [["job-1"]] * 2
    assert launch.notes == []


def test_a_dry_preparation_changes_nothing(nodes: list[LocalNode], tmp_path: Path) -> None:
    assert gang_of(nodes, code(tmp_path / "code", "")).prepare(dry=True).world_size == 2
    shutil.rmtree(nodes[1].directory / "env")
    why_not(gang_of(nodes, code(tmp_path / "code", "")), dry=True)
    assert [node.jobs for node in nodes] == [[], []]


@pytest.mark.parametrize("broken", [[0], [1], [0, 1]])
def test_if_one_node_cannot_nothing_is_left_on_any(nodes: list[LocalNode], tmp_path: Path, broken: list[int]) -> None:
    for number in broken:
        shutil.rmtree(nodes[number].directory / "env")
    reasons = [
        f"node{number} is not set up: there is no {nodes[number].directory}/env/bin/python; "
        "run: ansible-playbook setup.yml"
        for number in broken
    ]
    separator = ". " if len(broken) == 1 else "\n"
    assert why_not(gang_of(nodes, code(tmp_path / "code", ""))) == separator.join([*reasons, NEVER_STARTED])
    assert [node.jobs for node in nodes] == [[], []]


class Losing(Connection):
    """Loses the replies to the first requests of some kinds: what was asked is done all the same.

    Args:
        losses: how many replies to lose, by operation.
        done: whether the node does it.
    """

    def __init__(self, losses: dict[str, int], done: bool = True) -> None:
        super().__init__()
        self.losses, self.done = losses, done

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        for op, left in self.losses.items():
            if (f'"op": "{op}"'.encode() in in_data or op in command) and left:
                self.losses[op] -= 1
                if self.done:
                    super().exec_command(command, in_data)
                raise AnsibleConnectionFailure("the line broke")
        return super().exec_command(command, in_data)


def test_a_node_without_an_answer_is_cleaned_up_too(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].connection = Losing({"prepare": 99})
    message = why_not(gang_of(nodes, code(tmp_path / "code", "")))
    assert message == f"node1 is unreachable: the line broke. {NEVER_STARTED}"
    assert [node.jobs for node in nodes] == [[], []]


def test_an_answer_that_was_lost_is_asked_for_again(nodes: list[LocalNode], tmp_path: Path) -> None:
    """What the first request left on the node is this job's own, not another host's."""
    nodes[0].connection = Losing({"prepare": 1})
    launch = gang_of(nodes, code(tmp_path / "code", "print('trained')"))
    launch.prepare()
    launch.start()
    assert [node.wait()[1] for node in nodes] == ["trained\n"] * 2


class Breaking(Connection):
    """Does what it is asked until, of some operation, it does not even reach the node, for a reason of this machine's.

    Args:
        op: the operation.
        losses: how many answers to it are lost before.
    """

    def __init__(self, op: str, losses: int = 0) -> None:
        super().__init__()
        self.op, self.losses = op, losses

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if f'"op": "{self.op}"'.encode() not in in_data:
            return super().exec_command(command, in_data)
        if not self.losses:
            raise OSError(errno.EMFILE, "Too many open files")
        self.losses -= 1
        super().exec_command(command, in_data)
        raise AnsibleConnectionFailure("the line broke")


@pytest.mark.parametrize(
    "connection", [Breaking("receive_code"), Breaking("receive_code_piece"), Breaking("prepare", losses=1)]
)
def test_a_node_that_is_held_already_is_released_though_it_cannot_be_asked_more(
    node: LocalNode, tmp_path: Path, connection: Breaking
) -> None:
    node.connection = connection
    size = {"receive_code": 100_000, "receive_code_piece": 3_000_000}.get(connection.op, 0)
    bundle = with_data(tmp_path / "code", size)
    message = why_not(gang_of([node], bundle))
    assert message.startswith("this machine cannot start what connects to a node: Too many open files;"), message
    assert node.jobs == [] and node.supervisor() is None


def test_a_node_that_refuses_a_piece_of_the_code_is_released(node: LocalNode, tmp_path: Path) -> None:
    node.connection = Altered(("has += file.write(payload)", "raise OSError(28, 'No space left on device')"))
    assert "has too little disk space" in why_not(gang_of([node], with_data(tmp_path / "code")))
    assert node.jobs == [] and node.supervisor() is None


def test_a_node_is_released_whose_agent_failed_after_it_was_held(node: LocalNode, tmp_path: Path) -> None:
    node.connection = Altered(("LONGEST_REPLY = 2**22", "LONGEST_REPLY = 300"))
    assert "has more to say than a reply holds" in why_not(gang_of([node], code(tmp_path / "code", "")))
    assert node.jobs == [] and node.supervisor() is None


def test_a_node_that_cannot_be_released_is_named(nodes: list[LocalNode], tmp_path: Path) -> None:
    shutil.rmtree(nodes[0].directory / "env")
    nodes[1].connection = Losing({"discard": 99}, done=False)
    first, second = why_not(gang_of(nodes, code(tmp_path / "code", ""))).split("\n")
    assert first.endswith(NEVER_STARTED)
    assert second == (
        "node1 could not be released, and may be held for this job for up to 5 minutes (node1 is unreachable: the line "
        "broke); release it: ansible-playbook stop.yml -e job=job-1"
    )
    assert [node.jobs for node in nodes] == [[], ["job-1"]]


def test_a_release_is_tried_again(nodes: list[LocalNode], tmp_path: Path) -> None:
    shutil.rmtree(nodes[0].directory / "env")
    nodes[1].connection = Losing({"discard": 1}, done=False)
    assert why_not(gang_of(nodes, code(tmp_path / "code", ""))).endswith(NEVER_STARTED)
    assert [node.jobs for node in nodes] == [[], []]


def test_a_start_that_fails_halfway_says_where_the_job_may_run(three: list[LocalNode], tmp_path: Path) -> None:
    three[0].connection = Losing({".start": 99}, done=False)
    three[2].connection = Losing({"stop": 99}, done=False)
    launch = gang_of(three, code(tmp_path / "code", SLEEP))
    launch.prepare()
    with pytest.raises(JobError) as caught:
        launch.start()
    assert str(caught.value).split("\n") == [
        "node0 is unreachable: the line broke",
        "node2 is unreachable: the line broke",
        "The job was stopped on every node but node2, where it may run; stop it there: ansible-playbook stop.yml -e "
        "job=job-1",
    ]
    assert [bool(node.supervisor()) for node in three[:2]] == [False, False]


class Thin(Connection):
    """A line that brings code slowly, and breaks when it has brought so many pieces of it."""

    def __init__(self, seconds: float = 0, breaks_after: int = 99) -> None:
        super().__init__()
        self.seconds, self.left = seconds, breaks_after
        self.offsets: list[int] = []

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        found = re.search(rb'"op": "receive_code_piece", "offset": (\d+)', in_data)
        if found:
            if not self.left:
                raise AnsibleConnectionFailure("the line broke")
            self.left -= 1
            self.offsets.append(int(found[1]))
            time.sleep(self.seconds)
        return super().exec_command(command, in_data)


def with_data(folder: Path, size: int = 3_000_000) -> Bundle:
    """Return a bundle that is larger than ``size`` bytes, compressed too."""
    code(folder, "print(sum(open('data', 'rb').read()))")
    (folder / "data").write_bytes(random.Random(0).randbytes(size))
    return make_bundle(folder, "train.py", 100)


class Noting(Connection):
    """Notes what a node is asked, and how many bytes that was."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        found = re.search(rb'"op": "(\w+)"', in_data)
        self.asked.append((found[1].decode() if found else "put", len(in_data)))
        return super().exec_command(command, in_data)


@pytest.mark.parametrize(
    ("size", "executions"),
    [
        (0, ["prepare"]),
        (100_000, ["prepare", "receive_code"]),
        (2_000_000, ["prepare", *["receive_code_piece"] * 3, "receive_code"]),
    ],
)
def test_new_code_that_is_small_takes_no_execution_of_its_own(
    nodes: list[LocalNode], tmp_path: Path, size: int, executions: list[str]
) -> None:
    noting = [Noting(), Noting()]
    for node, connection in zip(nodes, noting):
        node.connection = connection
    launch = gang_of(nodes, with_data(tmp_path / "code", size))
    launch.prepare()
    launch.start()
    assert [node.wait()[0]["state"] for node in nodes] == ["succeeded"] * 2
    asked = [[op for op, _bytes in connection.asked if op != "follow"] for connection in noting]
    assert asked == [[*executions, "put", "find_unreached"], executions]


def test_code_does_not_travel_each_time_that_a_busy_node_is_asked(
    node: LocalNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    node.start(code(tmp_path / "before", SLEEP), "job-0")
    node.connection = noting = Noting()
    bundle = with_data(tmp_path / "code", 50_000)
    why_not(gang_of([node], bundle, wait_seconds=1))
    first, second, *_more = [size for op, size in noting.asked if op == "prepare"]
    assert first - second == len(bundle.content)


def test_a_thin_line_is_waited_for_as_long_as_code_arrives(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PREPARE_SECONDS": 6, "QUICK_SECONDS": 0, "PROGRESS_SECONDS": 0.5, "EXTEND_SECONDS": 1}.items():
        monkeypatch.setattr(launch_module, name, value)
    nodes[1].connection = Thin(seconds=2.5)
    nodes[0].connection = Altered(("START_SECONDS = 300", "START_SECONDS = 6"))
    said: list[str] = []
    bundle = with_data(tmp_path / "code")
    launch = gang_of(nodes, bundle)
    launch.prepare(say=said.append)
    assert [os.listdir(node.directory / "bundles") for node in nodes] == [[bundle.sha256]] * 2
    assert any(re.fullmatch(r"sending the code: node1 has \d\.\d+ MB of 3\.0 MB", line) for line in said), said
    launch.start()
    total = sum((tmp_path / "code" / "data").read_bytes())
    assert [node.wait()[1] for node in nodes] == [f"{total}\n"] * 2


def test_what_has_arrived_is_kept_for_the_next_try(node: LocalNode, tmp_path: Path) -> None:
    bundle = with_data(tmp_path / "code")
    node.connection = Thin(breaks_after=2)
    assert why_not(gang_of([node], bundle)) == f"node0 is unreachable: the line broke. {NEVER_STARTED}"
    assert node.connection.offsets == [0, 0] and node.jobs == []
    node.connection = Thin()
    gang_of([node], bundle).prepare()
    assert node.connection.offsets[:2] == [0, 2**20]
    assert os.listdir(node.directory / "bundles") == [bundle.sha256]


def test_who_has_given_up_sends_no_more(node: LocalNode, tmp_path: Path) -> None:
    """Else the node is held for a cancelled job until all of its code has come."""
    node.connection = Thin()

    def check_interrupt() -> None:
        if len(node.connection.offsets) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gang_of([node], with_data(tmp_path / "code")).prepare(check_interrupt=check_interrupt)
    assert node.connection.offsets == [0, 0] and node.jobs == []


def test_a_node_that_takes_no_code_is_not_sent_it_for_ever(node: LocalNode, tmp_path: Path) -> None:
    node.connection = Altered(("has += file.write(payload)", "pass"))
    message = why_not(gang_of([node], with_data(tmp_path / "code")))
    assert message == f"node0 keeps no more than 0 B of the code that it is sent. {NEVER_STARTED}"


def test_pieces_that_make_no_bundle_are_not_kept(node: LocalNode, tmp_path: Path) -> None:
    bundle = with_data(tmp_path / "code")
    launch = gang_of([node], bundle)
    node.ask("prepare", bundle)
    node.channel().call(
        {**node.request("receive_code_piece", bundle), "packed": launch._packed, "offset": 0}, b"x" * 2**20
    )
    node.ask("discard")
    assert "received a bundle that does not match its SHA-256" in why_not(launch)
    assert os.listdir(node.directory / "bundles") == []
    gang_of([node], bundle).prepare()


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_an_incomplete_start_message_is_ignored(node: LocalNode, tmp_path: Path, kept: int) -> None:
    """A shell that reads it sees the end of a connection that broke as the end of the file."""
    launch = gang_of([node], code(tmp_path / "code", "print('trained')"))
    prepared = launch.prepare() and launch._prepared[node.host]
    members = [[one.host, one.address, 0] for one in launch.gang.topology.nodes]
    message = launch_module.with_checksum(json.dumps(members).encode())
    node.channel().put(prepared["start_file"], message[:kept])
    time.sleep(0.3)
    assert node.state() == {} and node.supervisor()
    node.channel().put(prepared["start_file"], message)
    assert node.wait()[1] == "trained\n"


def test_a_user_who_gives_up_leaves_nothing(nodes: list[LocalNode], tmp_path: Path) -> None:
    class GivenUp(BaseException):
        pass

    class Interrupted(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            answer = super().exec_command(command, in_data)
            if b'"op": "prepare"' in in_data:
                raise GivenUp
            return answer

    nodes[1].connection = Interrupted()
    with pytest.raises(GivenUp):
        gang_of(nodes, code(tmp_path / "code", "")).prepare()
    assert [node.jobs for node in nodes] == [[], []]


def test_a_user_who_gives_up_before_a_node_was_reached(nodes: list[LocalNode], tmp_path: Path) -> None:
    """What is on its way to a node must not arrive after the word to release it."""

    class GivenUp(BaseException):
        pass

    class Interrupting(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "prepare"' in in_data:
                raise GivenUp
            return super().exec_command(command, in_data)

    class Slow(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "prepare"' in in_data:
                time.sleep(2)
            return super().exec_command(command, in_data)

    nodes[0].connection, nodes[1].connection = Slow(), Interrupting()
    with pytest.raises(GivenUp):
        gang_of(nodes, code(tmp_path / "code", "")).prepare()
    time.sleep(2.5)
    assert [node.jobs for node in nodes] == [[], []]


def test_two_hosts_that_are_one(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].address = nodes[0].address
    with pytest.raises(JobError) as caught:
        gang_of(nodes, code(tmp_path / "code", ""))
    assert str(caught.value) == (
        "node0 and node1 have the same address 127.0.0.1, but every node needs its own; fix ansible_host or "
        "cluster_address in the inventory, or remove one of them"
    )


def test_two_hosts_with_one_folder(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].directory = nodes[0].directory
    message = why_not(gang_of(nodes, code(tmp_path / "code", "")))
    told = (
        f" shares the cluster_dir {nodes[0].directory} with another host of the inventory (the same machine, or a disk "
        "that they share); give each its own. "
    )
    assert message in [f"{host}{told}{NEVER_STARTED}" for host in ("node0", "node1")]
    assert nodes[0].jobs == []


def test_code_of_an_earlier_job_that_is_nowhere_any_more(nodes: list[LocalNode], tmp_path: Path) -> None:
    known = code(tmp_path / "code", "")
    nodes[0].prepare(known)
    nodes[0].ask("discard")
    kept = Bundle(known.sha256, b"", known.size, None, None)
    message = why_not(gang_of(nodes, kept))
    assert message == (
        f"node1 does not have that job's code any more; run the script again, without rerun. {NEVER_STARTED}"
    )
    assert [node.jobs for node in nodes] == [[], []]
    gang_of(nodes[:1], kept).prepare()


# ----------------------------------------------------------------------------------------------------- who has the node


def test_a_busy_node_names_its_job_and_frees_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    nodes[1].start(bundle, job="other-job")
    until(lambda: nodes[1].state("other-job"))
    assert why_not(gang_of(nodes, bundle)) == (
        "node1 runs job other-job, which trainer started at 2026-11-22T17:30:00+01:00, and a node runs one job at a "
        "time; wait for it with -e wait=SECONDS, end it with: ansible-playbook stop.yml -e job=other-job, or leave the "
        f"node out with --limit. {NEVER_STARTED}"
    )
    assert [node.jobs for node in nodes] == [[], ["other-job"]]
    assert nodes[1].follow(wait_seconds=0, job="other-job")[0]["state"] == "running"


def test_waiting_for_a_node_that_runs_another_job(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    bundle = code(tmp_path / "code", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)")
    nodes[1].start(bundle, job="other-job")
    until(lambda: nodes[1].state("other-job"))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        assert nodes[0].jobs == [], "others may want what this job could hold"
        (nodes[1].job_dir("other-job") / "work" / "go").touch()

    assert gang_of(nodes, bundle, wait_seconds=20).prepare(say=say).world_size == 2
    (line,) = said
    assert line.startswith("waiting for up to 20 s: node1 runs job other-job, which trainer started at ")
    assert [node.jobs for node in nodes] == [["job-1"], ["job-1", "other-job"]]


def test_waiting_in_vain(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    bundle = code(tmp_path / "code", SLEEP)
    nodes[1].start(bundle, job="other-job")
    until(lambda: nodes[1].state("other-job"))
    said: list[str] = []
    began = time.monotonic()
    message = why_not(gang_of(nodes, bundle, wait_seconds=1), say=said.append)
    assert time.monotonic() - began > 1
    assert message.startswith("node1 runs job other-job, ")
    assert len(said) == 1
    assert [node.jobs for node in nodes] == [[], ["other-job"]]


def test_a_node_that_cannot_at_all_is_not_waited_for(nodes: list[LocalNode], tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    nodes[1].start(bundle, job="other-job")
    shutil.rmtree(nodes[0].directory / "env")
    said: list[str] = []
    message = why_not(gang_of(nodes, bundle, wait_seconds=600), say=said.append)
    assert [line.split()[0] for line in message.split("\n")] == ["node0", "node1", "Nothing"]
    assert said == []


@pytest.mark.parametrize("started", [True, False])
def test_a_look_says_which_job_holds_a_node_and_does_not_wait(
    nodes: list[LocalNode], tmp_path: Path, started: bool
) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    other = nodes[1].start if started else nodes[1].prepare
    other(bundle, job="other-job")
    until(lambda: bool(nodes[1].state("other-job")) is started)
    before = [(node.jobs, (node.directory / "jobs" / "current").exists()) for node in nodes]
    message = why_not(gang_of(nodes, bundle, wait_seconds=600), dry=True)
    assert message.startswith(
        f"node1 {'runs' if started else 'is held for'} job other-job, which trainer started at "
        "2026-11-22T17:30:00+01:00, and a node runs one job at a time; wait for it with -e wait=SECONDS"
    )
    assert [(node.jobs, (node.directory / "jobs" / "current").exists()) for node in nodes] == before


def test_a_look_at_a_node_whose_job_has_ended(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].run("", tmp_path / "code")
    assert gang_of(nodes, code(tmp_path / "code", "")).prepare(dry=True).world_size == 2


def install(node: LocalNode, *packages: str) -> None:
    for package in packages:
        (node.directory / "env/lib/python3.11/site-packages" / f"{package}.dist-info").mkdir(parents=True)


def test_nodes_with_different_packages_start_nothing(nodes: list[LocalNode], tmp_path: Path) -> None:
    install(nodes[0], "torch-2.13.0+cpu", "numpy-2.2.6")
    install(nodes[1], "torch-2.12.1+cpu", "numpy-2.0.0")
    bundle = code(tmp_path / "code", SLEEP)
    assert why_not(gang_of(nodes, bundle)) == (
        "torch is 2.13.0+cpu (node0), 2.12.1+cpu (node1), but nodes that train together need the same; on the odd ones "
        "remove envs in the cluster_dir, and run: ansible-playbook setup.yml. Nothing was started on any node."
    )
    assert [node.jobs for node in nodes] == [[], []]
    assert gang_of(nodes, bundle, preflight={"skip": ["software"]}).prepare(dry=True).world_size == 2


def test_nodes_that_two_people_have_set_up_in_two_ways(nodes: list[LocalNode], tmp_path: Path) -> None:
    install(nodes[0], "torch-2.13.0+cpu", "numpy-2.2.6")
    install(nodes[1], "torch-2.13.0+cpu", "numpy-2.0.0")
    (nodes[0].directory / "node.env").write_text("WORLD_SIZE=1\nNODE_RANK=0\nMINE='\nNODE_RANK=7\n'\n")
    (nodes[1].directory / "node.env").write_text("WORLD_SIZE=2\nNODE_RANK=1\n")
    expected = [
        "inventory.ranks: node0 was set up as rank 0 of 1, but the inventory has 2 hosts now, or in another order: "
        "node.env and the firewalls are of an earlier one; run: ansible-playbook setup.yml",
        "software.packages: the nodes' environments differ (numpy is 2.2.6 (node0), 2.0.0 (node1)), as those of two "
        "setups with different requirements; run: ansible-playbook setup.yml",
    ]
    bundle = code(tmp_path / "code", "")
    for dry in (True, False):
        launch = gang_of(nodes, bundle)
        launch._members = ["node0", "node1"]
        launch.prepare(dry=dry)
        assert launch.notes == expected
        launch.discard()
    few = gang_of(nodes[1:], bundle)
    few._members = ["node0", "node1"]
    few.prepare(dry=True)
    assert few.notes == [], "setup has numbered the whole cluster, also if a job takes a part of it"


def test_what_a_script_may_not_need_is_only_said(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang = gang_of(nodes, code(tmp_path / "code", SLEEP), preflight={"shm_min_mb": 10**9, "nofile_min": 0})
    gang.prepare(dry=True)
    (note,) = gang.notes
    assert note.startswith("hardware.shm: each of node0, node1 has ")


def rivals(launches: Sequence[Launch]) -> list[str]:
    """Launch all at the same moment; return what each one's user reads, "" for a job that was started."""
    outcomes = [""] * len(launches)
    together = threading.Barrier(len(launches))

    def launch(number: int) -> None:
        together.wait()
        try:
            launches[number].prepare()
            launches[number].start()
        except JobError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(len(launches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("attempt", range(5))
def test_of_two_jobs_for_the_same_nodes_one_wins(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    bundle = code(tmp_path / "code", SLEEP)
    orders = [nodes, list(reversed(nodes)) if attempt % 2 else nodes]
    outcomes = rivals([gang_of(order, bundle, id=f"job-{n}") for n, order in enumerate(orders)])
    assert outcomes.count("") == 1, outcomes
    winner = f"job-{outcomes.index('')}"
    assert [node.jobs for node in nodes] == [[winner], [winner]]
    (loser,) = filter(None, outcomes)
    assert f" job {winner}, which trainer started at 2026-11-22T17:30:00+01:00, " in loser
    assert loser.endswith(NEVER_STARTED)


@pytest.mark.parametrize("attempt", range(4))
def test_of_jobs_that_share_nodes_one_wins(
    three: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    bundle = code(tmp_path / "code", SLEEP)
    wanted = [[three[0], three[1]], [three[1], three[2]], [three[2], three[0]] if attempt % 2 else three]
    outcomes = rivals([gang_of(some, bundle, id=f"job-{n}") for n, some in enumerate(wanted)])
    assert outcomes.count("") == 1, outcomes
    winner = outcomes.index("")
    assert [node.jobs for node in three] == [[f"job-{winner}"] if node in wanted[winner] else [] for node in three]


def test_the_one_that_waits_gets_the_nodes_of_its_rival_at_last(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "RETRY_SECONDS", 0.1)
    bundle = code(tmp_path / "code", "")
    launches = [gang_of(nodes, bundle, id=f"job-{n}", wait_seconds=30) for n in range(2)]
    done: list[int] = []

    def run(number: int) -> None:
        launches[number].prepare()
        assert [node.jobs for node in nodes] == [[f"job-{number}"]] * 2
        launches[number].discard()
        done.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1]
    assert [node.jobs for node in nodes] == [[], []]


def test_a_hold_of_a_supervisor_that_was_killed_is_void(nodes: list[LocalNode], tmp_path: Path) -> None:
    crashed = gang_of(nodes, code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP), id="crashed-job")
    crashed.prepare()
    crashed.start()
    until(lambda: all(b"ready" in node.follow(wait_seconds=0, job="crashed-job")[1] for node in nodes))
    script = int(nodes[1].follow(wait_seconds=0, job="crashed-job")[1].split()[0])
    supervisor = nodes[1].supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    nodes[0].ask("stop", job="crashed-job", grace_seconds=2)
    assert alive(script)
    launch = gang_of(nodes, code(tmp_path / "code", "print(1)"))
    launch.prepare()
    assert not alive(script), "what it left running has the GPUs"
    assert launch.notes == [
        "node1 was still locked by job crashed-job, which trainer started at 2026-11-22T17:30:00+01:00 and which a "
        "crash or a reboot ended there; the lock was removed"
    ]
    launch.start()
    assert [node.wait()[1] for node in nodes] == ["1\n", "1\n"]
    after = gang_of(nodes, code(tmp_path / "code", ""), id="job-2")
    after.prepare()
    assert after.notes == [], "said once"


# ------------------------------------------------------------------------------------------------------------- starting


def test_a_node_that_cannot_start_stops_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    supervisor = nodes[1].supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(JobError) as caught:
        launch.start()
    assert str(caught.value) == (
        "node1 lost the job's supervisor process before the start. The job was stopped on every other node."
    )
    assert [node.supervisor() for node in nodes] == [None, None]
    assert nodes[1].jobs == []
    state = nodes[0].state()
    assert (state["state"], state["because"]) == ("stopped", "node1 could not start")


def test_a_head_that_cannot_start_starts_nobody(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    part = nodes[0].directory / "jobs" / "job-1.start.part"
    part.mkdir()
    with pytest.raises(JobError) as caught:
        launch.start()
    assert str(caught.value).startswith(f"node0 could not write {nodes[0].directory}/jobs/job-1.start: ")
    part.rmdir()
    assert [node.supervisor() for node in nodes] == [None, None]


def test_every_rank_has_its_environment(nodes: list[LocalNode], tmp_path: Path) -> None:
    names = ["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "JOB_ID", "CKPT_PATH", "A", "B", "C"]
    script = f"import os, json, sys\nprint(json.dumps([os.environ.get(n) for n in {names!r}] + sys.argv[1:]))"
    for node in nodes:
        node.variables = {"A": f"inventory {node.host}", "B": "inventory"}
    launch = gang_of(nodes, code(tmp_path / "code", script), env={"B": "user", "C": "ü $x"}, args=["--lr", "a b"])
    launch.prepare()
    launch.start()
    ended = [node.wait() for node in nodes]
    assert [state["state"] for state, _log in ended] == ["succeeded", "succeeded"]
    port = str(nodes[0].master_port)
    assert [json.loads(log) for _state, log in ended] == [
        ["127.0.0.1", port, "2", str(rank), "2", "job-1", None, f"inventory node{rank}", "user", "ü $x", "--lr", "a b"]
        for rank in (0, 1)
    ]


def test_each_node_puts_its_own_values_into_the_arguments(nodes: list[LocalNode], tmp_path: Path) -> None:
    """--trainer.num_nodes=$NUM_NODES."""
    for node in nodes:
        node.variables = {"DATA": f"/data of {node.host}"}
    args = [
        "--n=$NUM_NODES/${NODE_RANK}",
        "$DATA",
        "${LATER}",
        "$$NUM_NODES",
        "a$",
        "$5",
        "${now:%Y}",
        "ü$B$B_",
        "$HOME",
    ]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    launch = gang_of(nodes, code(tmp_path / "code", script), env={"B": "", "LATER": "$DATA", "B_": "é"}, args=args)
    launch.prepare()
    launch.start()
    assert [json.loads(node.wait()[1]) for node in nodes] == [
        [
            f"--n=2/{rank}",
            f"/data of node{rank}",
            "$DATA",
            "$NUM_NODES",
            "a$",
            "$5",
            "${now:%Y}",
            "üé",
            os.path.expanduser("~"),
        ]
        for rank in range(2)
    ]
    assert json.loads((nodes[0].job_dir() / "spec.json").read_text())["args"] == args


@pytest.mark.parametrize(
    ("commit", "dirty", "expected"), [(None, None, ""), ("1a2b", False, "1a2b"), ("1a2b", True, "1a2b-dirty")]
)
def test_the_commit_of_the_code(
    node: LocalNode, tmp_path: Path, commit: str | None, dirty: bool | None, expected: str
) -> None:
    """.git does not travel, so a script is told."""
    script = "import os; print(os.environ['JOB_GIT_COMMIT'])"
    launch = gang_of([node], dataclasses.replace(code(tmp_path / "code", script), commit=commit, dirty=dirty))
    launch.prepare()
    launch.start()
    assert node.wait()[1] == f"{expected}\n"


@pytest.mark.parametrize("launcher", ["lightning", "python"])
def test_a_module_is_started_as_python_does_by_its_name(node: LocalNode, tmp_path: Path, launcher: str) -> None:
    """Its imports may be relative, and those from the project are found there."""
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "part": "import top",
        "train": "from . import part\nprint(__name__, __package__)",
    }.items():
        (tmp_path / "code" / "pkg" / f"{name}.py").write_text(text)
    (tmp_path / "code" / "top.py").write_text("")
    launch = gang_of(
        [node],
        make_bundle(tmp_path / "code", "pkg/train.py", 1),
        script="pkg/train.py",
        module="pkg.train",
        launcher=launcher,
    )
    launch.prepare()
    launch.start()
    state, log = node.wait()
    assert (state["state"], log) == ("succeeded", "__main__ pkg\n")


def test_where_the_checkpoint_is_to_be_found(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os; print(os.environ['CKPT_PATH'])"
    launch = gang_of(nodes, code(tmp_path / "code", script), checkpoint="logs/last v1.ckpt")
    launch.prepare()
    launch.start()
    assert [node.wait()[1] for node in nodes] == [
        f"{node.job_dir() / 'work' / 'logs' / 'last v1.ckpt'}\n" for node in nodes
    ]


def test_what_a_node_keeps_of_the_job(nodes: list[LocalNode], tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    launch = gang_of(nodes, bundle, args=["a b", "ü"], env={"TOKEN": "hush"}, node_timeout_seconds=7)
    launch.prepare()
    launch.start()
    until(lambda: all((node.job_dir() / "spec.json").exists() for node in nodes))
    for rank, node in enumerate(nodes):
        assert json.loads((node.job_dir() / "spec.json").read_text()) == {
            "id": "job-1",
            "user": "trainer",
            "start": "2026-11-22T17:30:00+01:00",
            "script": "train.py",
            "module": "",
            "args": ["a b", "ü"],
            "launcher": "lightning",
            "devices": None,
            "gang": True,
            "uses": "plain",
            "bundle": bundle.sha256,
            "grace_seconds": 2,
            "node_timeout_seconds": 7,
            "world_size": 2,
            "master_addr": "127.0.0.1",
            "master_port": nodes[0].master_port,
            "ranks": [{"rank": n, "host": f"node{n}", "address": f"127.0.0.{n + 1}"} for n in range(2)],
            "spares": 0,
            "rank": rank,
            "python": f"{node.directory}/env/bin/python",
        }


def filled_in(launch: Launch, rank: int = 0) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Return the command, the variables and the spec that a node's supervisor makes of its plan."""
    members = [job_plan.Member(one.host, one.address, 0) for one in launch.gang.topology.nodes]
    host = members[rank].host
    prepared = launch._prepared[host]
    facts = job_plan.NodeFacts(*(prepared[name] for name in ("job_dir", "python", "interface", "gpus")))
    roster = list(range(launch.gang.topology.world_size))
    return job_plan.fill_in(job_plan.Plan(**launch._plan(host)), facts, members, roster)


def test_what_a_node_is_to_run(nodes: list[LocalNode], tmp_path: Path) -> None:
    given = {"args": ["", "two\nlines"], "env": {"A": "=\n'\"{job_dir}"}, "node_timeout_seconds": 7}
    launch = gang_of(nodes, code(tmp_path / "code", ""), **given)
    launch.prepare()
    first, second = (job_plan.Plan(**launch._plan(node.host)) for node in nodes)
    assert (first.grace_seconds, first.node_timeout_seconds) == (2, 7)
    assert (first.rank, second.rank, second.world_size) == (0, 1, 2)
    assert first.gang_key == second.gang_key and len(bytes.fromhex(first.gang_key)) == 32
    assert len({launch._prepared[node.host]["gang_port"] for node in nodes} - {0}) == 2
    assert first.arguments == ["train.py", "", "two\nlines"]
    assert filled_in(launch)[1]["A"] == "=\n'\"{job_dir}"


def test_two_jobs_have_two_keys_and_one_node_needs_no_gang(node: LocalNode, tmp_path: Path) -> None:
    launches = [gang_of([node], code(tmp_path / "code", "")) for _number in range(2)]
    for launch in launches:
        launch.prepare()
        assert launch._prepared["node0"]["gang_port"] == 0
        launch.discard()
    assert len({launch._plan("node0")["gang_key"] for launch in launches}) == 2


def test_nodes_that_the_head_cannot_reach_are_started_over_ssh(three: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(three, code(tmp_path / "code", "import os; print(os.environ['MASTER_ADDR'])"))
    launch.prepare()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for host in ("node1", "node2"):
            launch._prepared[host]["gang_port"] = silent.getsockname()[1]
        said: list[str] = []
        launch.start(said.append)
    assert [line.partition(", so ")[0] for line in said] == ["node0, the head, could not connect to node1, node2"]
    assert [node.wait()[1] for node in three] == ["127.0.0.1\n"] * 3


def test_a_head_that_ends_before_it_starts_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    supervisor = nodes[0].supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(JobError) as caught:
        launch.start()
    assert "lost the job's supervisor process before it had started the job on the other nodes" in str(caught.value)
    assert [node.supervisor() for node in nodes] == [None, None]


# ------------------------------------------------------------------------------------------------------------ launchers


def commands(nodes: list[LocalNode], tmp_path: Path, gpus: Sequence[int] = (0, 0), **changes: Any) -> list[list[str]]:
    """Return the command of every rank, on nodes with so many GPUs."""
    launch = gang_of(nodes, code(tmp_path / "code", ""), **changes)
    launch.prepare(dry=True)
    for node, count in zip(nodes, gpus, strict=True):
        launch._prepared[node.host]["gpus"] = count
        launch._prepared[node.host]["python"] = "PYTHON"
    ranks = range(len(nodes))
    return [[*filled_in(launch, rank)[0], *launch._plan(nodes[rank].host)["arguments"]] for rank in ranks]


def test_lightning_runs_the_script_once_per_node(nodes: list[LocalNode], tmp_path: Path) -> None:
    assert commands(nodes, tmp_path, args=["--lr", "a b"]) == [["PYTHON", "train.py", "--lr", "a b"]] * 2
    assert commands(nodes, tmp_path, script="-c")[0] == ["PYTHON", "./-c"]


@pytest.mark.parametrize(
    ("devices", "gpus", "expected"), [(None, (0, 0), 1), (None, (4, 4), 4), (3, (0, 8), 3), (1, (2, 2), 1)]
)
def test_torchrun(
    nodes: list[LocalNode], tmp_path: Path, devices: int | None, gpus: tuple[int, int], expected: int
) -> None:
    found = commands(nodes, tmp_path, gpus, launcher="torchrun", devices=devices, args=["--lr", "a b"])
    assert found == [
        [
            *("PYTHON", "-m", "torch.distributed.run"),
            *("--nnodes=2", f"--node-rank={rank}", f"--nproc-per-node={expected}"),
            *("--rdzv-backend=static", "--rdzv-id=job-1", "--max-restarts=0", "--log-dir=../torchrun"),
            *("--master-addr=127.0.0.1", f"--master-port={nodes[0].master_port}"),
            *("train.py", "--lr", "a b"),
        ]
        for rank in (0, 1)
    ]


def test_torchrun_starts_a_module(nodes: list[LocalNode], tmp_path: Path) -> None:
    found = commands(nodes, tmp_path, launcher="torchrun", module="pkg.train", args=["--lr", "1"])
    assert found[0][-4:] == ["-m", "pkg.train", "--lr", "1"]


def with_gpus(node: LocalNode, count: int) -> Connection:
    """Return a connection to a node that has so many GPUs."""
    folder = node.directory / "gpus"
    for number in range(count):
        (folder / str(number)).mkdir(parents=True)
    return Altered(("/proc/driver/nvidia/gpus", str(folder)))


def test_devices_auto_needs_the_same_gpus_everywhere(nodes: list[LocalNode], tmp_path: Path) -> None:
    for number, node in enumerate(nodes):
        node.connection = with_gpus(node, 2 + number)
    bundle = code(tmp_path / "code", "")
    expected = (
        "devices is auto, but the nodes have different numbers of GPUs (node0 has 2, node1 has 3), and every node runs "
        "as many ranks; set -e devices=N, or leave nodes out with --limit"
    )
    assert why_not(gang_of(nodes, bundle, launcher="torchrun"), dry=True) == expected
    assert why_not(gang_of(nodes, bundle, launcher="torchrun")) == expected
    assert [node.jobs for node in nodes] == [[], []]
    for allowed in ({"launcher": "torchrun", "devices": 2}, {"launcher": "lightning"}):
        assert gang_of(nodes, bundle, **allowed).prepare(dry=True).world_size == 2


def test_torchrun_for_real(nodes: list[LocalNode], tmp_path: Path) -> None:
    """With a module of its own in place of torch's, which takes seconds to import."""
    package = tmp_path / "code" / "torch" / "distributed"
    package.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py"):
        (package / name).write_text("")
    (package / "run.py").write_text("import sys\nprint(sys.argv[1:])\n")
    launch = gang_of(nodes, code(tmp_path / "code", ""), launcher="torchrun", devices=2)
    launch.prepare()
    launch.start()
    for rank, node in enumerate(nodes):
        assert f"'--node-rank={rank}', '--nproc-per-node=2'" in node.wait()[1]


def test_discard_frees_every_node(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", ""))
    launch.discard()
    launch.prepare()
    held: Callable[[], list[bool]] = lambda: [bool(node.supervisor()) for node in nodes]  # noqa: E731
    assert held() == [True, True]
    launch.discard()
    assert held() == [False, False]
    assert [node.jobs for node in nodes] == [[], []]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"launcher": "torchrun", "uses": "fabric", "devices": 2}, {"LT_DEVICES": "2", "LT_CLI_USED": "1"}),
        ({"launcher": "torchrun", "uses": "fabric-launched"}, {"LT_DEVICES": "1"}),  # it would refuse to launch
        ({"launcher": "lightning", "uses": "fabric-launched"}, {}),
        ({"launcher": "lightning", "uses": "trainer"}, {}),
        (
            {"launcher": "lightning", "uses": "cli"},
            {
                "JSONARGPARSE_DEFAULT_ENV": "true",
                **{f"PL_{name}TRAINER__NUM_NODES": "2" for name in ("", "FIT__", "VALIDATE__", "TEST__", "PREDICT__")},
            },
        ),
        ({"launcher": "lightning", "uses": "cli", "gang": False}, {}),
        (
            {"launcher": "lightning", "uses": "cli", "gang": False, "checkpoint": "/data/it's last.ckpt"},
            {
                "JSONARGPARSE_DEFAULT_ENV": "true",
                **{f"PL_{name}__CKPT_PATH": "/data/it's last.ckpt" for name in ("FIT", "VALIDATE", "TEST", "PREDICT")},
            },
        ),
    ],
)
def test_the_variables_of_a_framework(
    nodes: list[LocalNode], tmp_path: Path, changes: dict[str, Any], expected: dict[str, str]
) -> None:
    """Beside the number of nodes, which every job's environment has; a CLI, the checkpoint it goes on from."""
    launch = gang_of(nodes, code(tmp_path / "code", ""), **changes)
    launch.prepare()
    environment = filled_in(launch, 1)[1]
    launch.discard()
    ours = ("LT_NUM_NODES", "PL_TRAINER_NUM_NODES")
    assert {name: value for name, value in environment.items() if name.startswith(("LT_", "PL_", "JSON"))} == {
        **expected,
        **({name: "2" for name in ours} if changes.get("gang", True) else {}),
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"uses": "trainer"}, "JOB_DIR/companion"),
        ({"uses": "trainer", "env": {"PYTHONPATH": "src:/mine"}}, "JOB_DIR/companion:src:/mine"),
        ({"uses": "trainer", "companion": False}, None),
        ({"uses": "trainer", "checkpoint": ""}, None),
        ({"uses": "trainer", "checkpoint": "", "retries": 1}, "JOB_DIR/companion"),
        ({"uses": "distributed", "env": {"PYTHONPATH": "/mine"}}, "/mine"),
    ],
)
def test_a_trainer_finds_the_companion_where_it_is_to_go_on(
    node: LocalNode, tmp_path: Path, changes: dict[str, Any], expected: str | None
) -> None:
    launch = gang_of([node], code(tmp_path / "code", ""), **{"checkpoint": "last.ckpt", **changes})
    launch.prepare()
    found = filled_in(launch)[1].get("PYTHONPATH")
    launch.start()
    node.wait()
    assert found == (expected and expected.replace("JOB_DIR", str(node.job_dir())))
    there = {str(path.relative_to(node.job_dir())) for path in node.job_dir().glob("companion/**/*") if path.is_file()}
    is_found = "JOB_DIR" in (expected or "")
    assert there == ({f"companion/{name}" for name in companion_files()} if is_found else set())


def test_torchrun_of_nodes_that_work_for_themselves(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Each is a world of its own."""
    for command in commands(nodes, tmp_path, launcher="torchrun", gang=False):
        assert {"--nnodes=1", "--node-rank=0", "--master-addr=127.0.0.1"} <= set(command)
