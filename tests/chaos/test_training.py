# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What needs torch: launchers, resuming, and a rendezvous that never completes. Two nodes and a spare are enough."""

import json
import random
import re
import time
from pathlib import Path

import pytest
from jobs import ALIKE_SECONDS
from machines import JOBS, Cluster, Node, until
from measuring import Timeline
from playbook import Playbook

pytestmark = pytest.mark.torch

TWO = ["--limit", "node0,node1"]
THREE = ["--limit", "node0,node1,node2"]
FIELD = Path(__file__).resolve().parents[1] / "field"


@pytest.fixture(scope="module", autouse=True)
def _torch(machines: Cluster) -> None:
    """Two nodes and a spare with the project's own requirements."""
    setup = machines.playbook("setup.yml", *THREE)
    assert setup.wait(300) == 0, setup.text


def result(run: Playbook) -> dict[str, object]:
    """Return what trains.py prints last."""
    assert run.wait() == 0, run.text
    found: dict[str, object] = json.loads(run.printed(0)[-1])
    return found


@pytest.fixture
def undisturbed(cluster: Cluster, results: dict[str, dict[str, object]]) -> dict[str, object]:
    """Return what a training prints to which nothing happens: with either launcher the numbers are the same."""
    if not results:
        results["torchrun"] = result(cluster.run("trains.py", "-e", "launcher=torchrun", "-e", "devices=1", *TWO))
    assert results["torchrun"]["world_size"] == 2
    return results["torchrun"]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, object]]:
    """Return what is the same for all tests here, once it is known."""
    return {}


def test_a_killed_training_goes_on_to_the_same_loss(
    cluster: Cluster, timeline: Timeline, undisturbed: dict[str, object]
) -> None:
    killed = cluster.run("trains.py", "-e", "retries=0", *TWO)
    killed.await_line(r"^\[0 node0\] +epoch 3$", 90)
    job, at = killed.job, time.monotonic()
    cluster.nodes[1].kill_processes(job, "trains.py")
    assert killed.wait() == 2
    cause = r"rank 1 \(node1\) was killed by (signal 9|SIGKILL)"
    assert re.search(cause, killed.words)
    assert cluster.left(job) == []
    timeline.note_end("a rank of a training is killed (SIGKILL), with retries=0", killed, at, cause)

    resumed = cluster.run("trains.py", "-e", f"resume={job}", *TWO)
    end = result(resumed)
    epochs = [int(line.split()[1]) for line in resumed.printed(0) if re.fullmatch(r"epoch \d+", line)]
    assert epochs[0] > 1 and epochs == list(range(epochs[0], 10)), "from the checkpoint on"
    assert end == undisturbed, (
        "to the last bit, also with the checkpoint that is tested, of which node1 has an older one"
    )
    timeline.note(
        "a killed training is resumed",
        f"goes on at epoch {epochs[0]} of 10; train_loss is bit-identical to an undisturbed one's: {end['train_loss']}",
    )


@pytest.mark.parametrize("follows", [True, False])
def test_a_training_goes_on_by_itself(
    cluster: Cluster, timeline: Timeline, undisturbed: dict[str, object], follows: bool
) -> None:
    """A rank is killed, then the head's: without a command, the job ends as if nothing had happened."""
    run = cluster.run("trains.py", *TWO, *(() if follows else ("-e", "detach=true")))
    run.await_line(r"trains.py on 2 nodes", 60)
    job, head, at = run.job, cluster.nodes[0], 0.0
    for attempt, node in enumerate((cluster.nodes[1], head), 1):
        await_epochs(head, job, attempt, 2)
        at = time.monotonic()
        node.kill_processes(job, "trains.py")
    logs = run if follows else cluster.playbook("logs.yml", "-e", f"job={job}")
    end = result(logs)
    assert end == undisturbed, "to the last bit"
    record = cluster.record(job)
    assert (record["state"], record["attempts"], record["cause"]) == ("succeeded", 3, None)
    for number, (sentence, name) in enumerate(
        zip(record["notices"], ("rank 1 (node1)", "rank 0 (node0)"), strict=True), 1
    ):
        assert f"attempt {number} ended: {name} was killed by SIGKILL; attempt {number + 1} goes on from " in sentence
        assert sentence in logs.text
    assert cluster.left(job) == []
    epochs = [int(line.split()[1]) for line in logs.printed(0) if re.fullmatch(r"epoch \d+", line)]
    timeline.note(
        f"a rank of a training is killed, then the head's{'' if follows else ', while nobody follows the job'}",
        f"it goes on by itself, twice, and repeats {len(epochs) - len(set(epochs))} of 10 epochs; train_loss is "
        f"bit-identical to an undisturbed one's: {end['train_loss']}",
        None,
        logs.ended_at - at,
    )


@pytest.mark.parametrize("how", ["freezes", "is cut off the network"])
def test_a_training_waits_for_a_node(
    cluster: Cluster, timeline: Timeline, undisturbed: dict[str, object], how: str
) -> None:
    run, node = cluster.run("trains.py", *TWO), cluster.nodes[1]
    run.await_line(r"^\[0 node0\] +epoch 3$", 90)
    at = time.monotonic()
    if how == "freezes":
        node.freeze()
    else:
        node.cut()
    waits = (
        r"the node of rank 1 \(node1\) sent no heartbeat for \d+ s; attempt 2 goes on from \S+, step \d+, once rank 1"
    )
    run.await_line(waits, 60)
    if how == "freezes":
        node.thaw()
    else:
        node.mend()
    assert result(run) == undisturbed
    assert cluster.record(run.job)["attempts"] == 2
    assert cluster.left(run.job) == []
    line = run.first(waits, since=at)
    assert line
    timeline.note(
        f"a node of a training {how}, and is there again",
        "the job waits for it, and goes on by itself to the bit-identical loss",
        line.at - at,
        run.ended_at - at,
    )


@pytest.mark.parametrize("how", ["loses power", "freezes"])
def test_a_spare_takes_the_place_of_a_node(
    cluster: Cluster, timeline: Timeline, undisturbed: dict[str, object], how: str
) -> None:
    run, lost = cluster.run("trains.py", "-e", "spares=1", *THREE), cluster.nodes[1]
    run.await_line(r"^\[0 node0\] +epoch 3$", 90)
    at = time.monotonic()
    if how == "freezes":
        lost.freeze()
    else:
        lost.power_off()
    begins = r"attempt 2 begins with spare node2 in the place of rank 1 \(node1\)"
    run.await_line(begins, 90)
    if how == "freezes":  # it waits as a spare then
        lost.thaw()
    assert result(run) == undisturbed
    record = cluster.record(run.job)
    assert (record["state"], record["attempts"], record["nodes"]) == ("succeeded", 2, 2)
    assert [(one["rank"], one["host"]) for one in record["ranks"]] == [(0, "node0"), (1, "node2"), (None, "node1")]
    line = run.first(begins, since=at)
    assert line
    timeline.note(
        f"a node of a training with a spare {how}",
        "the spare takes its rank, and the training goes on by itself to the bit-identical loss",
        line.at - at,
        run.ended_at - at,
    )


@pytest.mark.rounds
@pytest.mark.parametrize("loses", ["a rank", "a node"])
@pytest.mark.parametrize("saves", ["each epoch", "in the middle of epochs"])
def test_a_training_that_is_killed_at_a_random_moment_ends_the_same(
    request: pytest.FixtureRequest, cluster: Cluster, timeline: Timeline, saves: str, loses: str
) -> None:
    """As many times as --rounds says: another rank at another moment, in the first half (a kill takes a second).

    A node is lost with all of the job there, its supervisor too, and a spare takes its place.
    """
    every = [] if saves == "each epoch" else ["-e", "script_args=3"]
    undisturbed = result(cluster.run("trains.py", *every, *TWO))
    nodes = TWO if loses == "a rank" else ["-e", "spares=1", *THREE]
    moments, repeated, restarted = random.Random(saves), [], 0
    rounds = request.config.getoption("--rounds")
    for _round in range(rounds):
        rank, step = moments.randrange(2), moments.randrange(20)
        run = cluster.run("trains.py", *every, *nodes)
        run.await_line(rf"^\[0 node0\] +step {step}$", 90)
        time.sleep(moments.uniform(0, 0.1))
        if loses == "a rank":
            cluster.nodes[rank].kill_processes(run.job, "trains.py")
        else:
            cluster.nodes[1].kill_unit(run.job)
        if run.wait() != 0:  # before the first checkpoint, it is not started again
            assert "there is no whole checkpoint" in run.text or "the head has no whole checkpoint" in run.text
            assert step < (3 if every else 4)
            restarted += 1
            continue
        end = result(run)
        # What Lightning logs of an epoch is the mean of the steps since it went on, and it saves once more at the end.
        alike = ["weights", "world_size"] if every else list(undisturbed)
        assert [end[name] for name in alike] == [undisturbed[name] for name in alike], f"killed at step {step}"
        steps = [int(line.split()[1]) for line in run.printed(0) if re.fullmatch(r"step \d+", line)]
        repeated.append(len(steps) - len(set(steps)))
    timeline.note(
        f"a training that saves {saves} loses {loses} at a random moment, {rounds} times",
        f"{len(repeated)} times it goes on by itself to the bit-identical weights, and repeats "
        f"{sum(repeated) / max(1, len(repeated)):.1f} of 40 steps, at most {max(repeated, default=0)}; "
        f"{restarted} times there was no checkpoint yet, and the job ended",
    )


def await_epochs(head: Node, job: str, attempt: int, count: int) -> None:
    """Return when an attempt has begun so many epochs."""

    def begun() -> int:
        _before, begin, log = head.execute("cat", f"{JOBS}/{job}/log").rpartition(f"thunderhead: attempt {attempt} ")
        return log.count("\nepoch ") if attempt == 1 or begin else 0

    until(lambda: begun() >= count, f"{count} epochs of attempt {attempt}", 90)


@pytest.mark.parametrize(
    ("options", "sums"),
    [
        (["-e", "launcher=python"], {0: ["rank 0 of 2: 3"], 1: ["rank 1 of 2: 3"]}),
        (
            ["-e", "launcher=torchrun", "-e", "devices=2"],
            {0: ["rank 0 of 4: 10", "rank 1 of 4: 10"], 1: ["rank 2 of 4: 10", "rank 3 of 4: 10"]},
        ),
    ],
    ids=["once-per-node", "torchrun"],
)
def test_plain_torch(cluster: Cluster, options: list[str], sums: dict[int, list[str]]) -> None:
    run = cluster.run("plain.py", "-e", "logs=all", *options, *TWO)
    assert run.wait() == 0, run.text
    assert {rank: sorted(line for line in run.printed(rank) if "of" in line.split()[2:3]) for rank in sums} == sums


def test_a_rendezvous_that_never_completes(cluster: Cluster, timeline: Timeline) -> None:
    """It ends the job for the same reason at the same age, whether somebody follows it or comes later."""
    short = ("-e", "script_args=1", "-e", "launcher=python", "-e", "job_rendezvous_timeout_seconds=10")
    causes, ages, at = [], [], time.monotonic()
    for follows in (True, False):
        job, run = ended_job(cluster, "plain.py", *short, follows=follows)
        assert run.process.returncode == 2, run.text
        record = cluster.record(job)
        cause, _see, stacks = record["cause"].partition("; what every rank was doing: ")
        assert re.search(r"rendezvous|never came|num_nodes|world_size|WORLD_SIZE", cause)
        assert len(list(Path(stacks).iterdir())) >= 2, stacks
        cluster.await_nothing_left(job, 5)
        causes.append(cause)
        ages.append(max(rank["seconds"] for rank in record["ranks"]))
        if follows:
            timeline.note("a rendezvous that never completes", cause[:200], None, run.ended_at - at)
    assert causes[0] == causes[1]
    assert abs(ages[0] - ages[1]) < ALIKE_SECONDS, ages


def ended_job(cluster: Cluster, script: str, *arguments: str, follows: bool) -> tuple[str, Playbook]:
    """Run a job on two nodes to its end; return its id, and the playbook that followed it or came once it was over."""
    run = cluster.run(script, *arguments, *TWO, *(() if follows else ("-e", "detach=true")))
    status, job = run.wait(), run.job
    if follows:
        return job, run
    assert status == 0, run.text
    until(lambda: all(node.state(job)["state"] != "running" for node in cluster.nodes[:2]), f"{job} ends", 60)
    logs = cluster.playbook("logs.yml", "-e", f"job={job}")
    logs.wait()
    return job, logs


@pytest.mark.parametrize(
    ("script", "how", "together"),
    [
        ("trainer.py", "by Lightning's own launcher, because trainer.py uses Lightning's Trainer", "0 of 2"),
        ("reads_rank.py", "with torchrun, because reads_rank.py uses torch.distributed", "all reduced: 2 of 2"),
        ("per_node.py", "once per node, because per_node.py uses torch.distributed", "all reduced: 2 of 2"),
    ],
)
def test_a_script_as_it_is_trains_on_all_nodes(cluster: Cluster, script: str, how: str, together: str) -> None:
    """Nobody said how many nodes there are, nor how it is to be launched."""
    run = cluster.run(script, "-e", f"project_dir={FIELD}", *TWO)
    assert run.wait() == 0, run.text
    assert how in run.text
    assert together in run.printed(0)
    record = cluster.record(run.job)
    assert (record["nodes"], record["world_size"], record["met"], record["warning"]) == (2, 2, True, "")


@pytest.mark.parametrize(
    ("script", "follows"),
    [("trainer_alone.py", False), ("one_machine.py", True), ("two_gpus.py", True), ("shards.py", True)],
)
def test_nodes_that_never_met_are_no_plain_success(cluster: Cluster, script: str, follows: bool) -> None:
    """The same scripts, meant to work each for itself, give no alarm."""
    job, run = ended_job(cluster, script, "-e", f"project_dir={FIELD}", follows=follows)
    assert run.process.returncode == 0, run.text
    record = cluster.record(job)
    assert (record["nodes"], record["world_size"], record["met"]) == (2, 1, False)
    assert record["warning"].startswith("the ranks never met: ") and f"warning: {record['warning']}" in run.text
    status = cluster.playbook("status.yml")
    assert status.wait() == 0 and f"{job}: {record['warning']}" in status.text
    alone = cluster.run(script, "-e", f"project_dir={FIELD}", "-e", "gang=false", *TWO)
    assert alone.wait() == 0, alone.text
    record = cluster.record(alone.job)
    assert (record["world_size"], record["met"], record["warning"]) == (1, None, "")
    assert "never met" not in alone.text
