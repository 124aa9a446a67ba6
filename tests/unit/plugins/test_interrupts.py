# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""With a real parent in the place of ansible-playbook and a real child in that of its worker."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from local_nodes import until

ROOT = Path(__file__).parents[3]
MODULE = "ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts"
FAMILY = """
import os, signal, sys, time
sys.path.insert(0, {path!r})
from {module} import Interrupted, Interrupts
import {module} as interrupts_module
interrupts_module.SECOND_SECONDS = 1.5
def on_interrupt(*_):
    os.write(2, b"parent interrupted\\n")
    os._exit(99)
before = signal.signal(signal.SIGINT, on_interrupt)  # first: the child may be fast
child = os.fork()
if child == 0:
    signal.signal(signal.SIGINT, before)
    os.setsid()
    def wait(condition):
        while not condition(): time.sleep(0.01)
    def note(text):
        with open({notes!r}, "a") as file: file.write(text + "\\n")
    try:
        interrupts = Interrupts()
        note("pid %d" % os.getpid())
{body}
        note("end")
    except BaseException as error:
        note("raised %r" % error)
    os._exit(0)
while True: time.sleep(0.05)
"""


class Family:
    def __init__(self, folder: Path, body: str) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        text = FAMILY.format(
            path=str(ROOT / "collections"),
            module=MODULE,
            notes=str(self.notes),
            body=textwrap.indent(textwrap.dedent(body), " " * 8),
        )
        self.stderr = folder / "stderr"
        with self.stderr.open("wb") as stderr:
            self.parent = subprocess.Popen([sys.executable, "-c", text], stderr=stderr)
        until(lambda: "pid" in self.text)
        self.child = int(self.text.split()[1])

    @property
    def text(self) -> str:
        return self.notes.read_text()

    def signal(self, number: int) -> None:
        os.kill(self.child, number)

    def end(self) -> list[str]:
        """Return what the child noted after its id."""
        until(lambda: self.text.endswith(("end\n", ")\n")))
        if self.parent.poll() is None:
            self.parent.kill()
        self.parent.wait()
        return self.text.splitlines()[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_end_the_worker(tmp_path: Path, number: int) -> None:
    family = Family(tmp_path, "note(repr(interrupts.came)); wait(lambda: interrupts.came); note(interrupts.came)")
    until(lambda: "''" in family.text)
    family.signal(number)
    assert family.end() == ["''", "signal", "end"]


def test_a_parent_that_is_gone(tmp_path: Path) -> None:
    family = Family(tmp_path, "wait(lambda: interrupts.came); note(interrupts.came); note(str(interrupts.again()))")
    family.parent.kill()
    assert family.end() == ["gone", "False", "end"], "nobody asks for a stop"


def test_a_second_ctrl_c_ends_the_parent(tmp_path: Path) -> None:
    family = Family(tmp_path, "wait(lambda: interrupts.came); note('first'); note(str(interrupts.again()))")
    family.signal(signal.SIGINT)
    until(lambda: "first" in family.text)
    family.parent.kill()
    family.parent.wait()
    assert family.end() == ["first", "True", "end"]


@pytest.mark.parametrize(("number", "waits"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_there_was_no_second_one(tmp_path: Path, number: int, waits: bool) -> None:
    family = Family(
        tmp_path,
        """
        wait(lambda: interrupts.came)
        began = time.monotonic()
        note(str(interrupts.again()))
        note(str(time.monotonic() - began > 1))
        """,
    )
    family.signal(number)
    assert family.end() == ["False", str(waits), "end"]


def test_terminate_after_ctrl_c_changes_nothing(tmp_path: Path) -> None:
    """As ansible-playbook does at the first Ctrl-C."""
    family = Family(tmp_path, "wait(lambda: interrupts.came); note('first'); note(str(interrupts.again()))")
    family.signal(signal.SIGINT)
    until(lambda: "first" in family.text)
    family.signal(signal.SIGTERM)
    assert family.end() == ["first", "False", "end"]


def test_what_a_signal_breaks_off(tmp_path: Path) -> None:
    family = Family(
        tmp_path,
        """
        try:
            with interrupts.raising():
                note("inside")
                time.sleep(60)
        except Interrupted:
            note("broken off")
        """,
    )
    until(lambda: "inside" in family.text)
    family.signal(signal.SIGINT)
    assert family.end() == ["inside", "broken off", "end"]


def test_a_signal_that_came_before(tmp_path: Path) -> None:
    family = Family(
        tmp_path,
        """
        wait(lambda: interrupts.came)
        with interrupts.raising():
            note("inside")
        """,
    )
    family.signal(signal.SIGTERM)
    assert family.end() == ["raised Interrupted()"]


def test_who_says_what(tmp_path: Path) -> None:
    family = Family(
        tmp_path,
        """
        say = interrupts.printer(lambda text: note("display " + text))
        say("before")
        wait(lambda: interrupts.came)
        say("after ü")
        """,
    )
    until(lambda: "display before" in family.text)
    family.signal(signal.SIGINT)
    assert family.end() == ["display before", "end"]
    assert family.stderr.read_text() == "after ü\n"


def test_saying_with_a_parent_that_is_gone(tmp_path: Path) -> None:
    family = Family(tmp_path, "wait(lambda: interrupts.came); interrupts.say('last words')")
    family.parent.kill()
    assert family.end() == ["end"]
    assert family.stderr.read_text() == "last words\n"


def test_the_playbook_is_interrupted(tmp_path: Path) -> None:
    family = Family(tmp_path, "interrupts.interrupt_playbook()")
    assert family.parent.wait(10) == 99
    assert family.end() == ["end"]
    assert "parent interrupted" in family.stderr.read_text()


def test_a_playbook_that_does_not_end_is_not_waited_for_without_end(tmp_path: Path) -> None:
    family = Family(
        tmp_path,
        """
        interrupts_module.LEAVE_SECONDS = 0.3
        os.kill(os.getppid(), signal.SIGSTOP)
        interrupts.interrupt_playbook()
        """,
    )
    assert family.end() == ["end"]
