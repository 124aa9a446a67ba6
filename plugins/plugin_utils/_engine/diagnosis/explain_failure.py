# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the cause of a job's failure among its victims."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import how_it_ended
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import ATTEMPT_BEGINS
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import NOISE
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog

TRACEBACK_LINES = 40
"""The most of a traceback that is shown; of a longer one the end."""
TAIL_LINES = 10
"""How much of a log without a traceback is shown."""
REASON_CHARACTERS = 500
MOST_CAUSES = 5
"""How many causes get a sentence of their own."""
ABORT_LINES = 100
"""How far from its end a log is searched for the error of NCCL's watchdog: a C++ stack follows it."""

_TRACEBACK = "Traceback (most recent call last):"
# What torch's excepthook puts in front of every line of a traceback, once there is a process group.
_RANK = re.compile(r"\[rank\d+\]: ")
# What stands before every line of a traceback: an exception group's margin.
_MARGIN = re.compile(r"[ |+]*")
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# What gloo, NCCL, torch's store and torchrun say when another process went away, from their sources (torch 2.13: the
# strings in libtorch_cpu.so; NCCL 2.2x: src/misc/socket.cc). Compiled at the end of a job: it takes 20 ms of a start.
_VICTIM = (
    r"connection closed by (remote )?peer|connection reset by peer|broken pipe|connection was likely closed"
    r"|ncclRemoteError|remote process exited or there was a network error|NCCL communicator was aborted"
    r"|some NCCL operations have failed or timed out|NCCL watchdog thread terminated|watchdog caught collective"
    r"|process group watchdog thread terminated|ProcessGroupNCCL'?s? watchdog"
    r"|(recv|send)(Bytes|Value|Vector|String)? failed|failed to (recv|send), (got|sent) 0 bytes"
    r"|connectFullMesh failed|socket timeout|timed out waiting \d+ms for (recv|send)"
    r"|timed out after \d+ seconds waiting for clients|client socket has (timed out|failed to connect)"
    r"|RendezvousConnectionError|RendezvousTimeoutError|RendezvousClosedError"
    r"|SignalException: Process \d+ got signal: 15|\bSIGTERMException\b"
)
# Of these the text may be the same, but no other rank caused them: a script's own connection to elsewhere.
_OWN = re.compile(r"EADDRINUSE|\[Errno \d+\]|ConnectionResetError|BrokenPipeError")
_TORCHRUN = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
_OBSERVED = re.compile(r"\[rank: (\d+)\] Child process with PID \d+ terminated with code (-?\d+)\. Forcefully")
_ROOT_CAUSE = re.compile(r"\s*(rank|exitcode)\s*: (-?\d+)")
_PEER = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")
_ABORT_AT_EXIT = "terminate called without an active exception"
_CPLUSPLUS = re.compile(rf"\s*what\(\): +(.*)|(Fatal Python error: .*|{_ABORT_AT_EXIT})")
_HINTS = (
    (
        # pytorch/pytorch, issue 190489: gloo's threads take Python's lock while the interpreter ends.
        re.compile(_ABORT_AT_EXIT),
        "a C++ thread still ran when the process ended: probably one of torch.distributed's, while Python exited; call "
        "torch.distributed.destroy_process_group() at the end of the script; without Lightning, delete the model and "
        "its trainer before it (del, then gc.collect()): they hold the process group",
    ),
    (
        re.compile(r"rank < size\. "),
        'num_nodes or devices in its Trainer disagrees with the job; use num_nodes=int(os.environ["NUM_NODES"])',
    ),
    (
        re.compile("EOFError: EOF when reading a line"),
        "a job's standard input is empty, so nobody can answer it; have the script take the answer from its arguments",
    ),
    (
        re.compile(r"BlockingIOError: \[Errno 11\]|can't start new thread|fork: Resource temporarily unavailable"),
        "the job's account may start no more processes on this node: see ulimit -u there, and "
        "nproc in /etc/security/limits.d",
    ),
    (
        re.compile(
            r"No such file or directory: '(\S*/)?(git|\.git\b.*)'|\bgit: (command )?not found|not a git repository"
            r"|InvalidGitRepositoryError|Bad git executable|Command .*\bgit\b.* returned non-zero exit status"
        ),
        "the job's code has no .git, and a node may have no git; read the environment variable JOB_GIT_COMMIT instead",
    ),
    (
        re.compile(r"attempted relative import with no known parent package"),
        "start it as a module, as in -e module=pkg.train instead of -e script=pkg/train.py",
    ),
    (
        re.compile(r"server socket has failed to (listen|bind).*(EADDRINUSE|address already in use)", re.IGNORECASE),
        "another process on this node has taken that port since the job began; if it is MASTER_PORT, set "
        "cluster_master_port in the inventory to a port that nothing else uses",
    ),
)

# Of torch.load's message with weights_only, the type stands in its fifth line.
_REFUSED = (
    "UnpicklingError: torch.load with weights_only refuses an object of type {type} in the checkpoint, such as a "
    'hyperparameter; if you trust it, add -e \'{{"env": {{"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}}}}\', or call '
    "torch.serialization.add_safe_globals([{name}]) before it is loaded"
)
_REFUSED_TYPE = re.compile(r"Weights only load failed.*GLOBAL (\S+) was not an allowed global", re.DOTALL)


@dataclass(frozen=True)
class Explanation:
    """Why a job did not end well.

    Attributes:
        sentence: for the user; several causes are a line each.
        tail: what the first of them printed last, its traceback if there is one.
        state: ``failed``, or ``stopped`` for a stop on request.
    """

    sentence: str
    tail: list[str]
    state: str


@dataclass(frozen=True)
class LogEnd:
    """The end of a log, with the reason that it gives.

    Attributes:
        reason: one line.
        victim: it says only that another process ended.
        tail: the traceback with the reason, or else the last lines.
        child: ``(rank, exit code or minus the signal)`` of the process that ended first on the node, as its launcher
            saw it, or None.
        observed: the launcher was Lightning, which then kills itself too.
    """

    reason: str
    victim: bool
    tail: list[str]
    child: tuple[int, int] | None
    observed: bool


def explain(
    topology: Topology,
    endings: Mapping[str, RankEnding],
    logs: Mapping[str, RankLog],
    more: Callable[[str], str] = lambda reason: "",
) -> Explanation | None:
    """Return why the job did not end well, the first cause first, or None if every rank of the last attempt did.

    Ranks that were stopped because of another are not mentioned. Of those that ended badly by themselves, the ones that
    only lost another, or that ended like one before them, are counted.

    Args:
        topology: the job's nodes, as they took part in its last attempt.
        endings: how each host's rank ended.
        logs: each host's log.
        more: returns a clause with what is known besides of a reason, or "".
    """
    bad = sorted(
        (node for node in topology.taking_part if endings[node.host].state != "succeeded"),
        key=lambda node: endings[node.host].arrived,
    )
    if not bad:
        return None
    requests = [ending for node in bad if (ending := endings[node.host]).state == "stopped" and not ending.because]
    first_stop = min(map(_stop_time, requests), default=float("inf"))
    own = [node for node in bad if endings[node.host].state != "stopped"]
    before = [node for node in own if endings[node.host].arrived < first_stop and not endings[node.host].unknown]
    if before:
        return _of_failures(topology, endings, logs, before, own, more)
    left = [f"\n{node.name} {note}" for node in own if (note := endings[node.host].note)]
    if requests:
        seconds = next((ending.stopping for ending in requests if ending.stopping is not None), None)
        return Explanation("on request" + _after(seconds) + "".join(left), [], "stopped")
    # A node that was cut off blames those that it did not hear any more; most know better.
    reasons = Counter(ending.because for node in bad if (ending := endings[node.host]).because)
    because = reasons.most_common(1)[0][0] if reasons else ""
    return Explanation((because or "it was stopped") + "".join(left), [], "failed")


def _stop_time(ending: RankEnding) -> float:
    """Return when a rank got the request to stop, on the controller's clock."""
    if ending.seconds is None or ending.stopping is None:
        return ending.arrived
    return ending.arrived - ending.seconds + ending.stopping


def _of_failures(
    topology: Topology,
    endings: Mapping[str, RankEnding],
    logs: Mapping[str, RankLog],
    failed: Sequence[Node],
    own: Sequence[Node],
    more: Callable[[str], str],
) -> Explanation:
    """Explain ranks that ended badly by themselves, in the order in which they did."""
    log_ends = {node.host: read_log_end(logs[node.host].tail()) for node in failed}
    causes = [node for node in failed if not _is_victim(endings[node.host], log_ends[node.host])]
    killed = next((endings[node.host].arrived for node in causes if endings[node.host].state != "lost"), float("inf"))
    causes = [node for node in causes if endings[node.host].state != "lost" or endings[node.host].arrived < killed]
    sentences: dict[tuple[str, str], str] = {}
    named = []
    for node in causes or failed[:1]:
        ending, log_end = endings[node.host], log_ends[node.host]
        verb, why = _ending(ending, log_end), "" if ending.note else f": {log_end.reason}{more(log_end.reason)}"
        if (verb, why) not in sentences and len(sentences) < MOST_CAUSES:
            sentences[verb, why] = f"{node.name} {verb}{_after(ending.seconds)}{why}; see {logs[node.host].path}"
            named.append(node.host)
    text = "\n".join(sentences.values())
    if not causes:
        text += _lost_peer(topology, endings, logs, failed[0], log_ends[failed[0].host].reason)
    others = [node.name for node in own if node.host not in named and not endings[node.host].unknown]
    if others:
        text += f". Failed after it: {join_names(others)}"
    text += "".join(f"\n{node.name} {endings[node.host].note}" for node in own if endings[node.host].unknown)
    first = (causes or failed)[0].host
    return Explanation(text, log_ends[first].tail, "failed")


def _is_victim(ending: RankEnding, log_end: LogEnd) -> bool:
    if ending.oom or ending.state == "lost" or ending.note:
        return False
    number = ending.signal or max((ending.exit_code or 0) - 128, 0)
    if log_end.observed or log_end.child:
        return log_end.victim
    if number == signal.SIGTERM:
        return True
    return log_end.victim and (not ending.signal or number == signal.SIGABRT)


def _ending(ending: RankEnding, log_end: LogEnd) -> str:
    if ending.note:
        return ending.note
    if log_end.observed and ending.signal == signal.SIGKILL:
        verb = "was ended by Lightning"
        kill = log_end.child is not None and log_end.child[1] == -signal.SIGKILL
    else:
        verb = ending.how
        kill = ending.signal == signal.SIGKILL
    if not ending.oom:
        return verb
    killed = f"(the kernel's OOM killer ended {pluralize(ending.oom, 'process')} on this node meanwhile)"
    return f"{verb} because its node ran out of memory {killed}" if kill else f"{verb} {killed}"


def _lost_peer(
    topology: Topology, endings: Mapping[str, RankEnding], logs: Mapping[str, RankLog], victim: Node, reason: str
) -> str:
    """Return whom the first victim lost, where all are victims: a process may have ended there without an error."""
    peers = {node.address: node for node in topology.nodes}
    found = _PEER.search(reason)
    peer = peers.get(found[1]) if found else None
    if peer is None or peer is victim:
        return ""
    ending = endings[peer.host]
    if ending.state == "succeeded":
        state = f"which had ended with code 0{_after(ending.seconds)}"
    else:
        state = "where a process ended and printed no error"
    return f"\nIt lost {peer.name}, {state}; see {logs[peer.host].path}"


def _after(seconds: float | None) -> str:
    return f" after {seconds:.0f} s" if seconds is not None else ""


# ------------------------------------------------------------------------------------------------------------- log ends


@dataclass(frozen=True)
class _Block:
    """One traceback in a log.

    Attributes:
        rank: torch's prefix, or "".
        first: index of its first line in the log.
        last: of the line with the exception.
        lines: without the prefix.
        message: the exception's, and what follows of it.
        chained: another exception was being handled.
    """

    rank: str
    first: int
    last: int
    lines: list[str]
    message: list[str]
    chained: bool

    @property
    def is_victims(self) -> bool:
        return is_victims("\n".join(self.message))


def read_log_end(lines: Sequence[str]) -> LogEnd:
    """Return the end of a node's log, and how its processes ended.

    Several processes of a node write to one log, and its launcher too. A traceback is how a process ended if torch has
    prefixed it, or if no ordinary output follows; a cause among them counts more than what it did to the others.

    Args:
        lines: the last lines of the log, printable; those of earlier attempts do not count.
    """
    begins = max((number for number, line in enumerate(lines, 1) if line.startswith(ATTEMPT_BEGINS)), default=0)
    lines = lines[begins:]
    child, observed = _seen_by_launcher(lines)
    blocks = [
        block
        for block in _blocks(lines)
        if not _is_torchruns(block) and not _is_ignored(lines, block.first, block.rank)
    ]
    final = _final(lines, blocks)
    deaths = [block for block in blocks if block.rank or block in final]
    causes = _without_victims(deaths)
    chosen = (causes or deaths or blocks)[-1:]
    if chosen:
        victim = not causes and (bool(deaths) or chosen[0].is_victims)
        text, tail = _reason(chosen[0].message), _shortened(chosen[0].lines)
    else:
        meaningful = [line.strip() for line in _before_summary(lines) if line.strip() and not NOISE.match(line)]
        aborts = [line for line in lines[-ABORT_LINES:] if (found := _CPLUSPLUS.match(line)) and any(found.groups())]
        text = _CPLUSPLUS.sub(r"\1\2", aborts[0]) if aborts else meaningful[-1] if meaningful else "it printed nothing"
        victim = is_victims(text) or (not child and any(_aborted(line) for line in lines[-ABORT_LINES:]))
        tail = _last_lines(lines)
    if child and not causes and child[1] < 0 and child[1] != -signal.SIGTERM:
        victim, tail = False, _last_lines(lines)
        text = f"its process of global rank {child[0]} {how_it_ended(child[1])}"
        if child[1] == -signal.SIGABRT and _ABORT_AT_EXIT in lines:
            text += f": {_ABORT_AT_EXIT}"
    text += "".join(f" ({hint})" for pattern, hint in _HINTS if pattern.search(text))
    text = text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}…"
    return LogEnd(text, victim, tail, child, observed)


def _reason(message: Sequence[str]) -> str:
    """Return an exception's message in one line, the first but for those with the reason further below."""
    if refused := _REFUSED_TYPE.search("\n".join(message)):
        return _REFUSED.format(type=refused[1], name=refused[1].removeprefix("__main__."))
    return message[0]


def _last_lines(lines: Sequence[str]) -> list[str]:
    return [line for line in _before_summary(lines) if line.strip()][-TAIL_LINES:]


def is_victims(text: str) -> bool:
    """Return whether a text is the error of a process that lost another."""
    return bool(re.search(_VICTIM, text, re.IGNORECASE)) and not _OWN.search(text)


def _aborted(line: str) -> bool:
    """Whether a line is NCCL's, on the way to ending the process."""
    return ("NCCL" in line or "watchdog" in line) and is_victims(line)


def _is_ignored(lines: Sequence[str], first: int, rank: str) -> bool:
    return first > 0 and lines[first - 1].removeprefix(rank).startswith("Exception ignored")


def _is_torchruns(block: _Block) -> bool:
    return block.message[0].startswith(_TORCHRUN)


def _seen_by_launcher(lines: Sequence[str]) -> tuple[tuple[int, int] | None, bool]:
    """Return which process of the node ended first, and whether it was Lightning that saw it, or torchrun."""
    for line in reversed(lines):
        if found := _OBSERVED.match(line):
            return (int(found[1]), int(found[2])), True
    start = next((number for number, line in enumerate(lines) if line.startswith("Root Cause (first observed")), None)
    if start is None:
        return None, False
    fields = {found[1]: int(found[2]) for line in lines[start : start + 8] if (found := _ROOT_CAUSE.match(line))}
    return ((fields["rank"], fields["exitcode"]) if len(fields) == 2 else None), False


def _before_summary(lines: Sequence[str]) -> Sequence[str]:
    """Leave torchrun's own traceback and summary out."""
    at = next((number for number, line in enumerate(lines) if line.startswith(_TORCHRUN)), None)
    if at is None:
        return lines
    start = max((number for number in range(at) if lines[number].startswith(_TRACEBACK)), default=at)
    return lines[:start]


def _blocks(lines: Sequence[str]) -> list[_Block]:
    """Return the tracebacks in the order in which their messages came."""
    streams: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines):
        found = _RANK.match(line)
        rank = found[0] if found else ""
        streams.setdefault(rank, []).append((number, line.removeprefix(rank)))
    found_blocks = [block for rank, stream in streams.items() for block in _blocks_of(rank, stream)]
    return sorted(found_blocks, key=lambda block: block.last)


def _blocks_of(rank: str, stream: Sequence[tuple[int, str]]) -> Iterator[_Block]:
    """Find the tracebacks in what one process wrote, or in the output of all that have no rank's prefix."""
    starts = [at for at, (_number, text) in enumerate(stream) if _TRACEBACK in text and "traceback : " not in text]
    for at, end in zip(starts, [*starts[1:], len(stream)]):
        margin = _MARGIN.match(stream[at][1])[0].replace("+", "|")  # type: ignore[index]  # it matches anything
        message = next(
            (
                position
                for position in range(at + 1, end)
                if (text := stream[position][1]).startswith(margin)
                and (content := text.removeprefix(margin)).strip()
                and not content.startswith((" ", "\t"))
                and (rank or not NOISE.match(text))
            ),
            None,
        )
        if message is None:
            continue
        last = message
        while last + 1 < end and _goes_on(stream[last][0], *stream[last + 1]):
            last += 1
        before = [text.strip() for _number, text in stream[max(at - 3, 0) : at]]
        yield _Block(
            rank=rank,
            first=stream[at][0],
            last=stream[message][0],
            lines=[text for _number, text in stream[at : last + 1]],
            message=[text.removeprefix(margin).strip() for _number, text in stream[message : last + 1]],
            chained=any(text in before for text in _CHAINED),
        )


def _goes_on(before: int, number: int, text: str) -> bool:
    """Whether the next line of a process still belongs to an exception's message."""
    return number == before + 1 and bool(text.strip()) and text.strip() not in _CHAINED and not NOISE.match(text)


def _final(lines: Sequence[str], blocks: Sequence[_Block]) -> list[_Block]:
    """Return the tracebacks after which, but for other tracebacks and noise, nothing was printed."""
    final: list[_Block] = []
    end, chained = len(lines), False
    for block in reversed(blocks):
        between = _before_summary(lines[block.last + 1 : end])
        if not chained and any(line.strip() and not NOISE.match(line) and not _RANK.match(line) for line in between):
            break
        final.append(block)
        end, chained = min(end, block.first), block.chained
    return final


def _without_victims(deaths: Sequence[_Block]) -> list[_Block]:
    """Return those that are no victims, nor raised while one of these was handled."""
    kept: list[_Block] = []
    victims: set[str] = set()  # whose last traceback was one, by rank
    for block in deaths:
        if block.is_victims:
            if not block.chained or block.rank in victims:
                victims.add(block.rank)
        elif not (block.chained and block.rank in victims):
            victims.discard(block.rank)
            kept.append(block)
    return kept


def _shortened(lines: Sequence[str]) -> list[str]:
    if len(lines) <= TRACEBACK_LINES:
        return list(lines)
    return [lines[0], "  …", *lines[2 - TRACEBACK_LINES :]]
