# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a plugin the documentation comes first)
"""Show what a command does, its error once, and a line for each task of a setup."""

from __future__ import annotations

DOCUMENTATION = """
name: console
author: The Thunderhead developers (!UNKNOWN)
type: stdout
short_description: Shows what Thunderhead's commands print, and nothing around it
description:
  - No banners, no recap. What an action shows while it runs comes as it is. An error comes once, on standard error
    where O(display_failed_stderr) says so.
  - Any other task gets one line, with how many nodes did it and how many of them it changed. On a terminal, a bar moves
    while they finish. The same fault of many nodes comes once, with their names.
  - Every line is written as soon as it is complete, into a file or a pipe, too. A reader that has gone ends nothing.
  - With C(-v) and more, it shows what the callback P(ansible.builtin.default#callback) shows.
  - Without a terminal, or with E(NO_COLOR), there are no escape sequences.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - to be set as C(stdout_callback) in C(ansible.cfg)
  - "the Python package C(rich) for the bar and for tables on a terminal; without it, they are text"
"""

import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.color import ANSIBLE_COLOR
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_stream import write_lines_at_once
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.progress import Progress
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines

COMMANDS = {
    f"thunderhead.cluster.{name}" for name in ("job", "job_logs", "job_info", "job_stop", "job_cleanup", "preflight")
}
"""Actions that act once for all nodes, and show themselves what they do: no line says that they did it."""
WORDS = {f"ansible.builtin.{name}" for name in ("assert", "debug", "fail", "validate_argument_spec")}
"""Those that have something to say, or nothing: no line, either."""
MOST_OUTPUT = 4000
"""Characters of what a failed program printed that are shown: the last ones."""
MOST_NAMED = 10
"""Of more nodes than this that failed, the end names only the first."""
ROLE = re.compile(r"^(?:\w+\.\w+\.)?(\w+) : ")
"""What Ansible puts before the name of a role's task."""
UNFORESEEN = "Task failed: "
"""What Ansible puts before an error that no action foresaw."""


@dataclass
class Tally:
    """How the nodes fared with one task.

    Attributes:
        name: the task's, as its line says it.
        has_line: whether it has one.
        alone: whether one node does it for all.
        dry: whether nothing is changed, only what would be is counted.
        running: nodes that have begun and not ended.
        counts: how many came to each end: ok, changed, failed, ignored, unreachable, skipped.
        messages: which nodes had the same message, by its label and text; that of the first was shown.
    """

    name: str
    has_line: bool
    alone: bool
    dry: bool
    running: dict[str, None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    messages: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def end(self, host: str, how: str) -> None:
        """Count a node that has ended."""
        self.running.pop(host, None)
        self.counts[how] = self.counts.get(how, 0) + 1

    @property
    def done(self) -> int:
        """How many nodes had something to do, and have ended."""
        return sum(self.counts.values()) - self.counts.get("skipped", 0)

    def __str__(self) -> str:
        """Return "8 nodes, 3 changed, 1 failed", or of a task that one node does for all, how it ended."""
        changed = "would change" if self.dry else "changed"
        words = {"changed": changed, "failed": "failed", "ignored": "failed, ignored", "unreachable": "unreachable"}
        if self.alone:
            return next((words[how] for how in words if how in self.counts), "ok")
        parts = [f"{self.counts[how]} {words[how]}" for how in words if how in self.counts]
        return ", ".join([pluralize(self.done, "node"), *parts])


def unless_verbose(method: Callable[..., None]) -> Callable[..., None]:
    """Have the default callback do it instead with -v."""

    @functools.wraps(method)
    def chosen(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self._display.verbosity:
            getattr(Default, method.__name__)(self, *args, **kwargs)
        else:
            method(self, *args, **kwargs)

    return chosen


class CallbackModule(Default):
    """Standard output of ansible-playbook, as DOCUMENTATION says."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "thunderhead.cluster.console"

    def __init__(self) -> None:
        """Begin; from now on, each line is written when it is complete."""
        super().__init__()
        write_lines_at_once()
        self._began = time.monotonic()
        self._tallies: dict[str, Tally] = {}  # of the tasks that may still go on, by id
        self._places: dict[str, int] = {}  # of the hosts in the inventory, as soon as they are needed
        self._in_step = True  # whether a task begins only when all nodes have ended the one before
        self._has_lines = False  # whether a task has got its line
        self._has_failed = False  # whether a node has failed at what was its own to do
        self._progress = Progress(self._display) if ANSIBLE_COLOR and sys.stdout.isatty() else None

    # -------------------------------------------------------------------------------------------- how far the play is

    @unless_verbose
    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Say nothing."""

    @unless_verbose
    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Remember the play."""
        self._end_tasks()
        self._play, self._places = play, {}
        self._in_step = play.strategy.rpartition(".")[2] not in ("free", "host_pinned")

    @unless_verbose
    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Count for another task."""
        self._begin(task)

    @unless_verbose
    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Count for a handler."""
        self._begin(task)

    @unless_verbose
    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Say nothing."""

    @unless_verbose
    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Say that a play does nothing, unless it was meant to."""
        if self._play.hosts != ["!all"]:
            self._show(f"{self._play.get_name()}: no host matches", C.COLOR_SKIP)

    @unless_verbose
    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Say nothing: the errors did."""

    @unless_verbose
    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Say how all nodes fared, if they were counted."""
        self._end_tasks()
        if not self._has_lines:
            return
        hosts = self._in_order(stats.processed)
        ends = {host: stats.summarize(host) for host in hosts}
        bad = {how: [host for host in hosts if ends[host][how]] for how in ("failures", "unreachable")}
        seconds = f"in {time.monotonic() - self._began:.0f} s"
        if any(bad.values()):
            if not self._has_failed:  # but one node for all: its error is about all
                return
            words = {"failures": "failed", "unreachable": "unreachable"}
            parts = [f"{len(bad[how])} {words[how]}: {join_names(bad[how], MOST_NAMED)}" for how in words if bad[how]]
            self._show(f"of {pluralize(len(hosts), 'node')} {seconds}, {'; '.join(parts)}", C.COLOR_ERROR)
            return
        changed = sum(1 for host in hosts if ends[host]["changed"])
        verb = "would change" if context.CLIARGS.get("check") else "changed"
        self._show(f"{pluralize(len(hosts), 'node')} done {seconds}, {changed or 'nothing'} {verb}", C.COLOR_OK)

    # ---------------------------------------------------------------------------------------------------- the results

    @unless_verbose
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Show that a node has begun."""
        if tally := self._tallies.get(task._uuid):
            tally.running[host.get_name()] = None
            self._draw(tally)

    @unless_verbose
    def v2_runner_on_ok(self, result: Any) -> None:
        """Count a node, and show what the task wants to be shown."""
        changed = result.result.get("changed", False)
        tally = self._ended(result, "changed" if changed else "ok")
        if self._run_is_verbose(result) and not result.task.loop:
            self._clean_results(result.result, result.task.action)
            message = result.result.get("msg")
            self._say(tally, result, message if isinstance(message, str) else self._dump_results(result.result).strip())

    @unless_verbose
    def v2_runner_on_skipped(self, result: Any) -> None:
        """Count a node that had nothing to do."""
        self._ended(result, "skipped")

    @unless_verbose
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:  # Ansible passes it by this name
        """Show why a node has failed, if no other had the same message."""
        tally = self._ended(result, "ignored" if ignore_errors else "failed")
        if ignore_errors:  # the task's author expects it: the count of ignored nodes says so, an [ERROR] would mislead
            return
        self._has_failed = self._has_failed or not tally.alone
        for fault in faults(result.result):
            self._say(tally, result, fault, "[ERROR]: ")

    @unless_verbose
    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Show why a node could not be reached, if no other had the same message."""
        tally = self._ended(result, "ignored" if result.task.ignore_unreachable else "unreachable")
        if not result.task.ignore_unreachable:
            self._has_failed = True
            for fault in faults(result.result):
                self._say(tally, result, fault, "[ERROR]: ")

    @unless_verbose
    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Show what an item of a loop wants to be shown."""
        if self._run_is_verbose(result) and not isinstance(result.task, TaskInclude):
            self._clean_results(result.result, result.task.action)
            message = result.result.get("msg")
            text = message if isinstance(message, str) else self._dump_results(result.result).strip()
            self._say(self._tally(result.task), result, text)

    @unless_verbose
    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Leave it to the end of the loop, which has all items."""

    @unless_verbose
    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Say nothing."""

    @unless_verbose
    def v2_runner_retry(self, result: Any) -> None:
        """Say nothing: the last try counts."""

    @unless_verbose
    def v2_on_file_diff(self, result: Any) -> None:
        """Show what is changed, or would be, if no other node had the same."""
        about = result.result
        for one in about["results"] if result.task.loop and "results" in about else [about]:
            if one.get("diff") and one.get("changed"):
                diffs = one["diff"] if isinstance(one["diff"], list) else [one["diff"]]
                clean = [{name: printable(value) for name, value in diff.items()} for diff in diffs]
                if text := self._get_diff(clean).rstrip("\n"):
                    self._say(self._tally(result.task), result, text, as_is=True)

    # ------------------------------------------------------------------------------------------------------- counting

    def _begin(self, task: Any) -> None:
        if self._in_step and task._uuid not in self._tallies:
            self._end_tasks()
        self._draw(self._tally(task))

    def _tally(self, task: Any) -> Tally:
        if task._uuid not in self._tallies:
            action = task.resolved_action or task.action
            self._tallies[task._uuid] = Tally(
                name=escape_lines(ROLE.sub(r"\1: ", task.get_name().strip())),
                has_line=action not in COMMANDS | WORDS,
                alone=bool(task.run_once) or action in COMMANDS,
                dry=bool(task.check_mode),
            )
        return self._tallies[task._uuid]

    def _ended(self, result: Any, how: str) -> Tally:
        """Count a node's result, and show its warnings."""
        tally = self._tally(result.task)
        if not (how in ("ok", "changed") and isinstance(result.task, TaskInclude)):
            tally.end(result.host.get_name(), how)
        self._handle_warnings(result.result)
        self._draw(tally)
        return tally

    def _end_tasks(self) -> None:
        """Give each task its line, and name the nodes that had the same to say."""
        if self._progress:
            self._progress.clear()
        for tally in self._tallies.values():
            alike = {  # several items of a loop may be alike on the same nodes
                (label, hosts[0], *self._in_order(hosts[1:])): None
                for (label, _text), hosts in tally.messages.items()
                if len(hosts) > 1
            }
            for label, first, *others in alike:
                sentence = f"{label}{join_names(others, MOST_NAMED)}: the same as {first}"
                self._show(sentence, C.COLOR_ERROR if label else None, bool(label))
            if tally.done and tally.has_line:
                self._has_lines = True
                # So that the counts stand below each other, where names are not too long.
                width = max(20, self._display.columns - 25)
                bad = "failed" in tally.counts or "unreachable" in tally.counts
                color = C.COLOR_ERROR if bad else C.COLOR_CHANGED if "changed" in tally.counts else None
                self._show(f"{tally.name:{width}}  {tally}", color)
        self._tallies.clear()

    def _known(self) -> dict[str, int]:
        """Return the hosts and their places in the inventory, which is the order of the ranks, too."""
        if not self._places and self._play:
            known = self._play.get_variable_manager().get_vars(play=self._play)
            self._places = {host: place for place, host in enumerate(known["groups"]["all"])}
        return self._places

    def _in_order(self, hosts: Iterable[str]) -> list[str]:
        places = self._known()
        return sorted(hosts, key=lambda host: places.get(host, len(places)))

    def _condensed(self, text: str) -> str:
        """Return a text in which lines about one node each that say the same are one."""
        places = self._known()
        alike: dict[str, list[str]] = {}
        first: dict[str, str] = {}
        for line in text.splitlines():
            host = line.partition(" ")[0].removesuffix(":")
            key = without(host, line) if host in places else line
            first.setdefault(key, line)
            alike.setdefault(key, []).extend([host] if host in places else [])
        lines = []
        for key, line in first.items():
            hosts = list(dict.fromkeys(alike[key]))
            lines.append(line)
            if len(hosts) > 1:
                lines.append(f"{join_names(hosts[1:], MOST_NAMED)}: the same as {hosts[0]}")
        return "\n".join(lines)

    # -------------------------------------------------------------------------------------------------------- showing

    def _say(self, tally: Tally, result: Any, text: str, label: str = "", *, as_is: bool = False) -> None:
        """Show what a node has to say, unless another had the same: then the task's end names it."""
        host = result.host.get_name()
        text = text if as_is else escape_lines(text)
        if label and "\n" in text:
            text = self._condensed(text)
        own = without(host, text)
        hosts = tally.messages.setdefault((label, own), [])
        hosts.append(host)
        if len(hosts) > 1:
            return
        if as_is:
            text = f"{tally.name}, on {host}:\n{text}"
        elif not tally.alone and "\0" not in own.partition("\n")[0]:
            text = f"{host}: {text}"
        self._show(f"{label}{text}", C.COLOR_ERROR if label else None, bool(label))

    def _show(self, text: str, color: str | None = None, is_error: bool = False) -> None:
        self._display.display(text, color=color, stderr=is_error and self.get_option("display_failed_stderr"))

    def _draw(self, tally: Tally) -> None:
        if self._progress and tally.has_line:
            ended = sum(tally.counts.values())
            begun = ended + len(tally.running)
            self._progress.draw(tally.name, ended, begun, [*itertools.islice(tally.running, 3)])


def without(host: str, text: str) -> str:
    """Return what a node says without its name: the same for all that have the same to say."""
    return re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "\0", text)


def faults(result: Mapping[str, Any]) -> list[str]:
    """Return why a task has failed; of a loop, why each of its items has."""
    items = [item for item in result.get("results", ()) if isinstance(item, Mapping) and item.get("failed")]
    if not items:
        return [fault(result)]
    label = next((str(item["_ansible_item_label"]) for item in items if "_ansible_item_label" in item), "")
    return (
        list(dict.fromkeys(fault(item) for item in items))
        if not label
        else [f"{item.get('_ansible_item_label', item.get('item'))}: {fault(item)}" for item in items]
    )


def fault(result: Mapping[str, Any]) -> str:
    """Return why a task or an item has failed, in its own words, and what the program printed that it ran."""
    text = str(
        result.get("not_shown") or result.get("msg") or result.get("censored") or "it failed, and does not say why"
    )
    if text.startswith(UNFORESEEN):
        text = text.removeprefix(UNFORESEEN)
        if not result.get("unreachable"):
            text += " (-vvv shows where)"
    outputs = (result.get(name) for name in ("module_stderr", "stderr", "module_stdout", "stdout"))
    printed = next((output.strip() for output in outputs if isinstance(output, str) and output.strip()), "")
    if printed and printed not in text:
        text += "".join(f"\n  | {line}" for line in printed[-MOST_OUTPUT:].splitlines())
    return text


def printable(value: Any) -> Any:
    """Return a part of a diff such that it does not act upon the terminal."""
    return escape_lines(value) if isinstance(value, str) else value
