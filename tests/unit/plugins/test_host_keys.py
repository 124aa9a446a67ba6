# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH host keys are checked: nothing in this project turns that off, or tells a user to."""

import re
import subprocess
from pathlib import Path

from ansible import constants as C
from ansible.config.manager import ConfigManager

ROOT = Path(__file__).parents[3]
TURNED_OFF = re.compile(
    r"StrictHostKeyChecking\W+(no|off|accept-new)\b|host_key_checking\W+(false|no|off|0)\b"
    r"|UserKnownHostsFile\W+(none|/dev/null)\b",
    re.IGNORECASE,
)


def test_the_pattern_finds_what_turns_it_off() -> None:
    word = ["no", "accept-new", "/dev/null", "False", '"false"']  # apart from the names: this file turns nothing off
    for text in (
        *(f"-o StrictHostKeyChecking={word[0]}", f"StrictHostKeyChecking {word[1]}", f"UserKnownHostsFile={word[2]}"),
        *(f"host_key_checking = {word[3]}", f"ANSIBLE_HOST_KEY_CHECKING: {word[4]}"),
        f"ansible_host_key_checking: {word[0]}",
    ):
        assert TURNED_OFF.search(text), text
    assert not TURNED_OFF.search("StrictHostKeyChecking yes, ANSIBLE_HOST_KEY_CHECKING: true")


def test_nothing_turns_it_off() -> None:
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = {*subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")}
    texts = {name: (ROOT / name).read_text(errors="replace") for name in names if (ROOT / name).is_file()}
    assert {"ansible.cfg", "README.md", "tests/docker/rig.py", "Makefile"} <= texts.keys()
    assert not [name for name, text in texts.items() if TURNED_OFF.search(text)]


def test_ansible_checks_them_with_the_projects_configuration() -> None:
    assert ConfigManager(str(ROOT / "ansible.cfg")).get_config_value("HOST_KEY_CHECKING") is True
    assert C.config.get_configuration_definitions()["HOST_KEY_CHECKING"]["default"] is True
