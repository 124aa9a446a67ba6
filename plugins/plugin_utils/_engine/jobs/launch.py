# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prepare a job on all nodes or on none, then start it on all at once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes, join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import START_SECONDS
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import environment_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import (
    DISCARD_SECONDS,
    Gang,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import (
    Topology,
    rank_nodes,
    require_distinct,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.job import ANY, Job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import prepared_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.clocks import ahead
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import (
    CLI,
    FABRIC,
    FABRIC_LAUNCHED,
    TRAINER,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Refused,
    Unable,
    Unreachable,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import (
    renew_deadline,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.open_files import (
    allow_files_for_nodes,
    too_few_files,
)

PREPARE_SECONDS = 120
"""After this long without an answer a node counts as unreachable before the start."""
RIVAL_SECONDS = 10
"""How long a job waits for one that came at the same moment to give way."""
RETRY_SECONDS = 1
"""How often a job that waits for nodes asks again."""
ENCLOSED_BYTES = 2**16
"""A compressed bundle up to this size, less than the agent's own text, goes with the request to prepare, whether a node
has it or not: else one that does not is asked twice."""
PIECE_BYTES = 2**20
"""A compressed bundle that is larger goes to a node in pieces, which grow on a quick line."""
LONGEST_PIECE_BYTES = 2**24
QUICK_SECONDS = 2
PROGRESS_SECONDS = 10
EXTEND_SECONDS = 60
"""How often nodes that are ready are asked to wait on for those that are not yet."""
RELEASE_POLL_SECONDS = 0.02
"""How often it is checked whether a node that is about to be released has answered."""
FIND_UNREACHED_SECONDS = 10
"""How long the head may take to say which nodes it could not start; it tries to reach them for two."""
CLI_PREFIXES = [f"PL_{command}__" for command in ("FIT", "VALIDATE", "TEST", "PREDICT")]
"""How variables begin that are defaults of LightningCLI's commands."""
PREPARE_TRIES = 3
"""How often a node is asked whose answer is lost with the connection."""


def with_checksum(message: bytes) -> bytes:
    """Return a start message with its length and CRC-32 in front: a supervisor ignores one that is not complete."""
    return b"%d %d\n%b" % (len(message), zlib.crc32(message), message)


class Launch:
    """Brings a job onto its nodes. Methods are called from one thread, in the order prepare, start."""

    def __init__(self, job: Job, nodes: NodeGroup, members: Sequence[str] = ()) -> None:
        """Keep what is needed; no node is reached yet.

        Args:
            job: what is to run.
            nodes: those that take part, in inventory order: the first is the head.
            members: all hosts of the cluster, in inventory order, those that do not take part too.
        """
        require_distinct({one.host: one.address for one in nodes.settings})
        self.job = job
        self.gang = Gang(job.identity, nodes)
        self.notes = list(job.bundle.notes)
        self._members = members
        self._head = nodes.settings[0].host
        self._open = functools.cache(nodes.open_channel)  # each host is talked to by one thread at a time
        self._enclosed = job.bundle.content if len(job.bundle.content) <= ENCLOSED_BYTES else b""
        self._prepared: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()  # to hold their node, which they do or may do
        self._asking: set[str] = set()  # whose answer to that is awaited
        self._given_up = False
        self._gang_key = secrets.token_hex(32)
        self._say: Callable[[str], None] = lambda line: None
        self._check_interrupt: Callable[[], None] = lambda: None
        self._progress_lock = threading.Lock()
        self._last_report = self._last_extension = time.monotonic()

    def prepare(
        self,
        dry: bool = False,
        say: Callable[[str], None] = lambda line: None,
        check_interrupt: Callable[[], None] = lambda: None,
    ) -> Topology:
        """Make every node ready, or none: checks, the hold on it, the code.

        Args:
            dry: only check; hold and copy nothing.
            say: is called with a sentence that the job waits for nodes, or how far the code is if that takes long.
            check_interrupt: is called while it takes long; what it raises, from any thread, ends that.

        Raises:
            JobError: names every node that could not, with its reason; the others are as they were before.
        """
        at_once, files = allow_files_for_nodes(len(self.gang.settings))
        if at_once < len(self.gang.settings):  # each is followed all the time
            raise JobError(f"{too_few_files(files)}. Nothing was started on any node.")
        self._say, self._check_interrupt = say, check_interrupt
        with self.undo_on_failure(say):
            self._prepare_all(dry, say)
            self.gang = self.gang.ranked(rank_nodes(list(self.gang.settings.values()), self._prepared, self.job.spares))
            self._require_alike()
            settings = list(self.gang.settings.values())
            self.notes += prepared_nodes.check_prepared_nodes(
                settings, self._prepared, self.job.preflight, self._members
            )
        for host, reply in self._prepared.items():
            if "stale" in reply:
                self.notes.append(
                    "{host} was still locked by job {id}, which {user} started at {start} and which a crash or a "
                    "reboot "
                    "ended there; the lock was removed".format(host=host, **reply["stale"])
                )
        return self.gang.topology

    def _prepare_all(self, dry: bool, say: Callable[[str], None]) -> None:
        began = time.monotonic()
        waiting = False
        while True:
            hosts = {host: host for host in self.gang.settings if host not in self._prepared}
            replies, errors = fan_out(hosts, functools.partial(self._prepare_one, dry), PREPARE_SECONDS)
            self._prepared.update(replies)
            if not errors:
                return
            waited = time.monotonic() - began
            if dry or not all("busy" in error.facts for error in errors.values()):
                patience = 0.0
            elif all(self._is_rival(error) for error in errors.values()):
                patience = RIVAL_SECONDS
            else:  # others may want what this job holds
                patience = self.job.wait_seconds
                if waited < patience:
                    self.discard()
                    self._prepared = {}
            if waited >= patience:
                raise join_errors(errors.values(), "Nothing was started on any node.")
            self._enclosed = b""  # from now on they are asked every second
            if not waiting and patience == self.job.wait_seconds:
                say(f"waiting for up to {patience:.0f} s: {next(iter(errors.values()))}")
                waiting = True
            time.sleep(RETRY_SECONDS)
            self._check_interrupt()

    def _is_rival(self, error: NodeError) -> bool:
        """Whether a node is held by a job that is not started yet and will see that this one was first."""
        busy = error.facts["busy"]
        return bool(busy["prepared"]) and Identity(busy["start"], busy["id"], busy["user"]) > self.job.identity

    def _prepare_one(self, dry: bool, host: str) -> dict[str, Any]:
        one = self.gang.settings[host]
        request = self.gang.request(
            "prepare",
            host,
            host=host,
            address=one.address,
            master_port=one.master_port if host == self._head else None,
            plan=None if dry else self._plan(host),
            bundle=self.job.bundle.sha256,
            size=self.job.bundle.size,
            dry=dry,
        )
        self._asking.add(host)
        if not dry:
            self._asked.add(host)
        try:
            reply = self._ask_to_prepare(request, host)
        finally:
            self._asking.discard(host)
        self._deliver(request, host, reply, dry)
        return reply

    def _ask_to_prepare(self, request: dict[str, Any], host: str) -> dict[str, Any]:
        for number in range(PREPARE_TRIES):
            before = time.time()
            try:
                reply, _payload = self._open(host).call(request, b"" if request["dry"] else self._enclosed)
            except NodeError as error:
                is_unasked = isinstance(error, Unable) or error.facts.get("unsent", False)
                # It has undone what it did, or was not reached; but of an earlier try nothing is known.
                if (is_unasked or isinstance(error, Refused)) and not number:
                    self._asked.discard(host)
                is_lost = isinstance(error, Unreachable) and not is_unasked
                if not is_lost or number == PREPARE_TRIES - 1 or self._given_up:
                    raise
                time.sleep(RETRY_SECONDS)  # then it takes its own earlier hold back
            else:
                reply["clock"] = ahead(before, reply["clock"], time.time())
                return reply
        raise AssertionError

    def _deliver(self, request: dict[str, Any], host: str, reply: dict[str, Any], dry: bool) -> None:
        if not dry and not reply["has_bundle"]:
            if not self.job.bundle.content:  # an earlier job's, which is nowhere else
                raise NodeError(host, "does not have that job's code any more; run the script again, without rerun")
            # The same for all nodes with the same settings, so that they share one copy of it.
            delivery = {name: request[name] for name in ("directory", "user", "job", "bundle")}
            if len(self.job.bundle.content) <= PIECE_BYTES:
                self._open(host).call({**delivery, "op": "receive_code", "packed": None}, self.job.bundle.content)
            else:
                self._send_pieces(host, {**delivery, "packed": self._packed})
                self._open(host).call({**delivery, "op": "receive_code", "packed": self._packed})

    @functools.cached_property
    def _packed(self) -> str:
        return hashlib.sha256(self.job.bundle.content).hexdigest()

    def _send_pieces(self, host: str, delivery: dict[str, Any]) -> None:
        """Send a large bundle, from where an earlier try ended, however long it takes, as long as pieces arrive."""
        content, has, size, losses = self.job.bundle.content, 0, 0, 0  # first it is asked what it has
        while has < len(content):
            self._check_interrupt()
            began = time.monotonic()
            piece = content[has : has + size]
            try:
                reply, _payload = self._open(host).call({**delivery, "op": "receive_code_piece", "offset": has}, piece)
            except Unreachable:
                losses += 1
                if losses == PREPARE_TRIES:
                    raise
                time.sleep(RETRY_SECONDS)
                continue
            if piece and reply["has"] <= has:
                raise NodeError(host, f"keeps no more than {format_bytes(reply['has'])} of the code that it is sent")
            renew_deadline()
            is_quick = time.monotonic() - began < QUICK_SECONDS
            size = max(PIECE_BYTES, min(2 * size, LONGEST_PIECE_BYTES) if is_quick else size // 2)
            has, losses = reply["has"], 0
            self._report_progress(f"sending the code: {host} has {format_bytes(has)} of {format_bytes(len(content))}")

    def _report_progress(self, line: str) -> None:
        """Report now and then how far it is, and have the nodes that wait for slower ones wait on."""
        with self._progress_lock:
            now = time.monotonic()
            is_due = now > self._last_report + PROGRESS_SECONDS
            has_to_extend = now > self._last_extension + EXTEND_SECONDS
            self._last_report = now if is_due else self._last_report
            self._last_extension = now if has_to_extend else self._last_extension
        if is_due:
            self._say(line)
        if has_to_extend:
            waiting = [host for host in self.gang.settings if host in self._asked]
            self.gang.ask(
                "receive_code_piece",
                EXTEND_SECONDS,
                waiting,
                bundle=self.job.bundle.sha256,
                packed=self._packed,
                offset=None,
            )

    def _require_alike(self) -> None:
        """Every node must run as many ranks: the global rank is node rank x devices + local rank."""
        gpus = {host: reply["gpus"] for host, reply in self._prepared.items()}
        if self.job.launcher == "torchrun" and self.job.devices is None and len(set(gpus.values())) > 1:
            counted = ", ".join(f"{host} has {count}" for host, count in gpus.items())
            raise JobError(
                f"devices is auto, but the nodes have different numbers of GPUs ({counted}), and every node runs as "
                "many ranks; set -e devices=N, or leave nodes out with --limit"
            )

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Start the prepared job on all nodes at the same time: the head's supervisor passes the message on.

        Args:
            say: is called with a sentence about nodes that the head cannot reach; they are started over SSH.

        Raises:
            JobError: a node could not start it; those that had are stopped again.
        """
        topology = self.gang.topology
        message = with_checksum(
            json.dumps(
                [[node.host, node.address, self._prepared[node.host]["gang_port"]] for node in topology.nodes]
            ).encode()
        )
        errors = self._start_head(message)
        if not errors and topology.world_size > 1:
            hosts, errors = self._find_unreached()
            if hosts:
                errors = self.gang.ask("start", PREPARE_SECONDS, hosts, message)[1]
            spares = [node.host for node in topology.nodes if node.is_spare and node.host in hosts]
            hosts = [host for host in hosts if host not in spares]
            if spares and not errors:
                say(
                    f"{self._head}, the head, could not connect to {join_names(spares)}, which cannot replace a lost "
                    "node so; run ansible-playbook setup.yml, which opens the ports between the nodes"
                )
            if hosts and not errors:
                say(
                    f"{self._head}, the head, could not connect to {join_names(hosts)}, so the job was started there "
                    "over SSH; as long as they cannot connect, no node notices if the other is lost; run "
                    "ansible-playbook setup.yml, which opens the ports between the nodes"
                )
        if not errors:
            return
        _ended, left = self.gang.end(self.job.grace_seconds, f"{next(iter(errors))} could not start")
        if not left:
            raise join_errors(errors.values(), "The job was stopped on every other node.")
        stop = f"ansible-playbook stop.yml -e job={self.gang.job_id}"
        more = [error for host, error in left.items() if str(error) != str(errors.get(host))]
        raise join_errors(
            [*errors.values(), *more],
            f"The job was stopped on every node but {join_names(list(left))}, where it may run; stop it there: {stop}",
        )

    def _start_head(self, message: bytes) -> dict[str, NodeError]:
        """Write the start message to the head; return its error if that failed."""

        def send(host: str) -> None:
            self._open(host).put(self._prepared[host]["start_file"], message)

        return fan_out({self._head: self._head}, send, PREPARE_SECONDS)[1]

    def _find_unreached(self) -> tuple[list[str], dict[str, NodeError]]:
        """Return the hosts that the head could not start, and an error if it did not say."""
        for number in range(PREPARE_TRIES):
            if number:
                time.sleep(RETRY_SECONDS)
            replies, errors = self.gang.ask(
                "find_unreached", PREPARE_SECONDS, [self._head], wait_seconds=FIND_UNREACHED_SECONDS
            )
            if not any(isinstance(error, (Unreachable, Unable)) for error in errors.values()):
                break
        ranks = {rank for reply, _payload in replies.values() for rank in reply["unreached"]}
        return [node.host for node in self.gang.topology.nodes if node.rank in ranks], errors

    def _plan(self, host: str) -> dict[str, Any]:
        """Return what a node is to run, a ``Plan`` of the agent; the node puts in what is in braces."""
        job = self.job
        place = {
            "rank": "{rank}",
            "world_size": self._world_size,
            "master_addr": "{master_addr}",
            "master_port": self._shared_plan["master_port"],
            "interface": "{interface}",
        }
        about = environment_variables.JobFacts(
            self.gang.job_id, "{job_dir}", job.bundle.described_commit, job.gang, self._framework, "{attempt}"
        )
        return {
            **self._shared_plan,
            "rank": self._ranks[host],
            "launcher_arguments": self._torchrun(place) if job.launcher == "torchrun" else [],
            "variables": environment_variables.variables(place, {}, about),
            "given": dict(sorted({**self.gang.settings[host].env, **job.env}.items())),
        }

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        """The rank of each host; spares have the last ones."""
        return {host: rank for rank, host in enumerate(self.gang.settings)}

    @property
    def _world_size(self) -> int:
        """How many nodes take part in an attempt."""
        return len(self._ranks) - self.job.spares

    @functools.cached_property
    def _shared_plan(self) -> dict[str, Any]:
        """The fields of a ``Plan`` that are the same on all nodes."""
        job = self.job
        script = job.script if not job.script.startswith("-") else f"./{job.script}"
        return {
            "world_size": self._world_size,
            "spares": job.spares,
            "gang_key": self._gang_key,
            "node_timeout_seconds": job.node_timeout_seconds,
            "stall_timeout_seconds": job.stall_timeout_seconds,
            "rendezvous_timeout_seconds": job.rendezvous_timeout_seconds if job.gang else 0,
            "grace_seconds": job.grace_seconds,
            "launcher": job.launcher,
            "gang": job.gang,
            "devices": job.devices,
            "checkpoint": job.checkpoint,
            "checkpoint_variables": self._checkpoint_variables,
            "retries": job.retries,
            "return_seconds": job.return_seconds,
            "retries_any": job.retry_on == ANY,
            "companion": self._companion,
            "master_port": self.gang.settings[self._head].master_port,
            "arguments": ["-m", job.module, *job.args] if job.module else [script.replace("$", "$$"), *job.args],
            "spec": {
                "id": job.identity.id,
                "user": job.identity.user,
                "start": job.identity.start,
                "script": job.script,
                "module": job.module,
                "args": list(job.args),
                "uses": job.uses,
                "bundle": job.bundle.sha256,
            },
        }

    @property
    def _companion(self) -> Mapping[str, str]:
        """The files by which a Trainer finds checkpoints that it is not told of, or that only other nodes have."""
        job = self.job
        is_alone = self._world_size == 1 or not job.gang
        if not job.companion or job.uses not in (TRAINER, CLI) or (is_alone and not job.checkpoint and not job.retries):
            return {}
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.companion_files import (
            companion_files,
        )

        return companion_files()

    def _torchrun(self, place: Mapping[str, Any]) -> list[str]:
        """Return what starts torchrun on a node, and its options."""
        together = (place["world_size"], place["rank"], place["master_addr"])
        nodes, rank, master = together if self.job.gang else (1, 0, "127.0.0.1")
        return [
            *("-m", "torch.distributed.run"),
            *(f"--nnodes={nodes}", f"--node-rank={rank}", "--nproc-per-node={devices}"),
            *("--rdzv-backend=static", f"--rdzv-id={self.job.identity.id}", "--max-restarts=0"),
            "--log-dir=../torchrun",  # beside the working directory; else each job leaves a folder in /tmp
            f"--master-addr={master}",
            f"--master-port={place['master_port']}",
        ]

    @property
    def launch_method(self) -> str:
        """How the script is started, and why so, for the user."""
        job = self.job
        texts = {"torchrun": "with torchrun", "lightning": "by Lightning's own launcher", "python": "once per node"}
        alone = "" if job.gang else ", each for itself"
        return f"{texts[job.launcher]}{f', because {job.reason}' if job.reason else ''}{alone}"

    @functools.cached_property
    def _framework(self) -> dict[str, str | int]:
        """Return the variables by which the framework that the script uses takes part in the job by default."""
        job, nodes = self.job, self._world_size
        if job.uses == CLI and (job.gang or job.checkpoint):
            # It gives its Trainer every argument, PL_TRAINER_NUM_NODES or not, but its parser too has its defaults from
            # the environment, if a variable asks for it. An argument and a configuration file win, as with the others.
            defaults: dict[str, str | int] = {"JSONARGPARSE_DEFAULT_ENV": "true"}
            if job.gang:
                defaults |= {f"{prefix}TRAINER__NUM_NODES": nodes for prefix in ("PL_", *CLI_PREFIXES)}
            return defaults
        if job.retries and job.uses == TRAINER and not job.fit_goes_on:
            return {"JOB_SCRIPT_MENTIONS_CKPT_PATH": 1}
        if job.uses in (FABRIC, FABRIC_LAUNCHED) and job.launcher == "torchrun":
            # As `fabric run` does; of a script that it starts, Fabric refuses to start processes itself.
            used = {"LT_CLI_USED": 1} if job.uses == FABRIC else {}
            return {"LT_DEVICES": "{devices}", **used}
        return {}

    @property
    def _checkpoint_variables(self) -> list[str]:
        """The variables in which a script, or the framework that it uses, finds the checkpoint, where there is one."""
        names = ["CKPT_PATH"]
        if self.job.fit_goes_on:
            names.append("JOB_FIT_CKPT_PATH")
        if self.job.uses == CLI:
            names += [f"{prefix}CKPT_PATH" for prefix in CLI_PREFIXES]
        return names

    def discard(self) -> str:
        """Undo ``prepare`` on every node where the job has not started.

        Returns:
            A line for each node that may still be held, with why and the remedy; "" if there is none.
        """
        deadline = time.monotonic() + DISCARD_SECONDS
        while self._asking and time.monotonic() < deadline:  # a hold that came after would stay
            time.sleep(RELEASE_POLL_SECONDS)
        left = self.gang.discard([host for host in self.gang.settings if host in self._asked])
        self._asked = set(left)
        return "\n".join(
            f"{host} could not be released, and may be held for this job for up to {START_SECONDS // 60} minutes "
            f"({error}); release it: ansible-playbook stop.yml -e job={self.gang.job_id}"
            for host, error in left.items()
        )

    @contextlib.contextmanager
    def undo_on_failure(self, say: Callable[[str], None]) -> Iterator[None]:
        """Discard the job if what runs inside fails; the error names the nodes that stay held, or else ``say`` does."""
        try:
            yield
        except BaseException as error:
            self._given_up = True
            held = self.discard()
            if held and isinstance(error, JobError):
                raise JobError(f"{error}\n{held}") from None
            if held:
                say(held)
            raise
