# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""iptables_peers against listings as `iptables -S` prints them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import iptables, run_program
from ansible_collections.thunderhead.cluster.plugins.modules import iptables_peers as module

PEERS = ["198.18.22.10", "198.18.22.11", "fd00::10"]
PORTS = ["29500", "32768-60999"]
CLOSED = """\
-P INPUT DROP
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
"""
RULE = "-A THUNDERHEAD -s 198.18.22.10/31 -p tcp -m multiport --dports 29500,32768:60999 -j ACCEPT\n"
OPENED = CLOSED.replace("DROP\n", "DROP\n-N THUNDERHEAD\n-A INPUT -j THUNDERHEAD\n") + RULE
IDLE = "-P INPUT ACCEPT\n"
NO_FILES: dict[str, str | None] = {module.SCRIPT: None, module.UNIT: None, module.PLUGIN: None}


def plan(listings: dict[str, str], peers=PEERS, files=NO_FILES, has_plugins=False) -> module.Plan:
    live = {program: iptables.parse_chains(listing) for program, listing in listings.items()}
    sources, spans = module.networks(peers), module.required_spans(peers, PORTS)
    programs = [*live, *module.known_programs(files[module.SCRIPT])]
    wanted = {program: module.rules(program, sources, spans) for program in programs}
    return module.make_plan(live, wanted, files, has_plugins)


# --- the plan ---


def test_opening_fills_the_chain_and_jumps_to_it_in_one_transaction():
    made = plan({"iptables-nft": CLOSED, "ip6tables-nft": IDLE})
    assert made.programs == ["iptables-nft"]
    assert made.script.endswith(
        f"\ncommit iptables-nft <<'OPEN'\n{RULE}-I INPUT 1 -j THUNDERHEAD\nOPEN\nexit $status\n"
    )
    assert made.before == ""
    assert made.after == f"iptables-nft -N THUNDERHEAD\niptables-nft {RULE}iptables-nft -I INPUT 1 -j THUNDERHEAD\n"
    assert made.files == {module.SCRIPT: made.script, module.UNIT: module.UNIT_TEXT, module.PLUGIN: None}
    assert plan({"iptables-nft": CLOSED}, has_plugins=True).files[module.PLUGIN] == module.PLUGIN_TEXT


def test_what_is_open_stays_as_it_is():
    files = plan({"iptables-nft": CLOSED}).files
    made = plan({"iptables-nft": OPENED}, list(reversed(PEERS)), files)
    assert made.script == "" and made.before == made.after and made.files == files


@pytest.mark.parametrize(
    "listing",
    [
        OPENED.replace("-A INPUT -j THUNDERHEAD\n", ""),
        OPENED + "-A INPUT -j THUNDERHEAD\n",
        OPENED.replace("-A INPUT -j THUNDERHEAD\n", "") + "-A INPUT -j THUNDERHEAD\n",
        OPENED.replace("/31", "/30"),
        OPENED + "-A THUNDERHEAD -j ACCEPT\n",
        OPENED.replace(RULE, ""),
    ],
)
def test_what_somebody_changed_is_repaired(listing):
    made = plan({"iptables-nft": listing})
    assert made.script and made.before != made.after == plan({"iptables-nft": CLOSED}).after


def test_each_family_and_each_half_of_iptables_has_its_own_rules():
    made = plan({"iptables-nft": IDLE, "iptables-legacy": CLOSED, "ip6tables-legacy": CLOSED})
    assert made.programs == ["iptables-legacy", "ip6tables-legacy"]
    assert "-s fd00::10/128 " in made.script and made.script.count("commit ") == 2


def test_what_cannot_be_listed_now_is_restored_all_the_same():
    files = plan({"iptables-nft": OPENED, "iptables-legacy": OPENED}).files
    made = plan({"iptables-nft": OPENED}, files=files)
    assert (made.script, made.files, made.programs) == ("", files, ["iptables-nft"])
    made = plan({"iptables-nft": OPENED}, ["198.18.22.10"], files)
    assert "iptables-legacy" not in made.script
    assert made.files[module.SCRIPT].count("commit iptables-legacy <<") == 1
    assert made.files[module.SCRIPT].count("-s 198.18.22.10/32 ") == 2


def test_no_peers_of_a_family_no_rules():
    assert plan({"ip6tables-nft": CLOSED}, ["198.18.22.10"]).programs == []


def test_rules_stay_while_the_administrators_are_out_of_force():
    files = plan({"iptables-nft": CLOSED}).files
    made = plan({"iptables-nft": IDLE}, files=files)
    assert made.programs == ["iptables-nft"] and made.files == files


def test_absent_takes_everything_away():
    files = plan({"iptables-nft": CLOSED}, has_plugins=True).files
    made = plan({"iptables-nft": OPENED, "ip6tables-nft": CLOSED}, [], files, True)
    assert made.script.endswith("\necho '-X THUNDERHEAD' | commit iptables-nft\nexit $status\n")
    assert (made.after, made.files, made.programs) == ("", NO_FILES, [])


def test_absent_where_nothing_is():
    assert plan({"iptables-nft": CLOSED}, []) == ("", "", "", NO_FILES, [])


def test_the_script_is_one_for_sh():
    script = plan({"iptables-nft": CLOSED, "ip6tables-nft": OPENED}).script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_script_replaces_jumps_wherever_they_stand(tmp_path):
    """The script itself, with programs that only write down what they are told."""
    for name, text in {
        "own": "#!/bin/sh\nprintf '%s\\n' '-P INPUT DROP' '-A INPUT -i lo -j THUNDERHEAD' '-A INPUT -j THUNDERHEAD'\n",
        "own-restore": '#!/bin/sh\n{ echo "$@"; cat; } >restored\n',
        "broken": "#!/bin/sh\n",
        "broken-restore": "#!/bin/sh\ncat >/dev/null; exit 3\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = module.script_text({"broken": ["-j ACCEPT"], "own": ["-j ACCEPT"]}, [])
    path = f"{tmp_path}:/usr/bin:/bin"
    assert subprocess.run(["sh"], input=script, text=True, cwd=tmp_path, env={"PATH": path}).returncode == 1
    assert (tmp_path / "restored").read_text() == (
        "--noflush --wait\n*filter\n:THUNDERHEAD - [0:0]\n-D INPUT -i lo -j THUNDERHEAD\n-D INPUT -j THUNDERHEAD\n"
        "-A THUNDERHEAD -j ACCEPT\n-I INPUT 1 -j THUNDERHEAD\nCOMMIT\n"
    )


# --- main ---


class Machine:
    """What the module meets: programs that answer, and a record of those that change something."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.files = {name: folder / name / "file" for name in ("SCRIPT", "UNIT", "PLUGIN")}
        self.listing = CLOSED
        self.programs = {"iptables-nft", "systemctl"}
        self.unit = ("", "inactive")
        self.status = 0
        self.calls: list[list[str]] = []
        self.script: str | None = None
        self.capsys = capsys
        self.files["PLUGIN"].parent.mkdir()
        for name, path in self.files.items():
            monkeypatch.setattr(module, name, str(path))
        monkeypatch.setattr(AnsibleModule, "run_command", self.run_command)
        monkeypatch.setattr(iptables, "ask", self.ask)
        monkeypatch.setattr(iptables, "find", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(run_program, "ask", self.ask)
        monkeypatch.setattr(
            AnsibleModule, "get_bin_path", lambda _, name, **__: name if name in self.programs else None
        )

    def ask(self, *command: str) -> str | None:
        if command[0] not in self.programs:
            return None
        if command[:2] == ("systemctl", "show"):
            return "UnitFileState={}\nActiveState={}\n".format(*self.unit)
        assert command == ("iptables-nft", "--wait", "-S")
        return self.listing

    def run_command(self, argv: list[str], data: str | None = None, check_rc: bool = False) -> tuple[int, str, str]:
        assert check_rc or argv == ["/bin/sh"], f"unknown command {argv}"
        self.script = data or self.script
        self.calls.append(argv)
        return self.status, "", "line 3\nfailed\n"

    def run(self, **args: Any) -> dict[str, Any]:
        self.calls, self.script = [], None
        with patch_module_args({"peers": PEERS, "ports": PORTS, **args}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def settle(self) -> None:
        """Make what was asked for true."""
        self.listing, self.unit = OPENED, ("enabled", "active")


@pytest.fixture
def machine(tmp_path, monkeypatch, capsys):
    return Machine(tmp_path, monkeypatch, capsys)


def test_main_opens_and_keeps_it_so(machine):
    result = machine.run()
    assert result["changed"] and result["msg"] == "peers let in through iptables-nft: 3"
    assert machine.calls == [["/bin/sh"], ["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "file"]]
    assert machine.script == machine.files["SCRIPT"].read_text()
    assert machine.files["PLUGIN"].stat().st_mode & 0o777 == 0o755
    assert [part["after_header"] for part in result["diff"]] == ["live rules", *map(str, machine.files.values())]

    machine.settle()
    assert not machine.run()["changed"] and machine.calls == []


def test_main_in_check_mode_changes_nothing(machine):
    checked = machine.run(_ansible_check_mode=True)
    assert machine.calls == [] and not machine.files["SCRIPT"].exists()
    done = machine.run()
    assert (checked["changed"], checked["diff"]) == (True, done["diff"])


def test_main_takes_everything_away(machine):
    machine.run()
    machine.settle()
    result = machine.run(state="absent")
    assert result["changed"] and result["msg"] == "no rules of the cluster are left"
    assert machine.calls == [["/bin/sh"], ["systemctl", "disable", "--now", "file"], ["systemctl", "daemon-reload"]]
    assert not any(path.exists() for path in machine.files.values())
    machine.listing = CLOSED
    assert not machine.run(state="absent")["changed"]


def test_main_turns_on_a_unit_that_somebody_turned_off(machine):
    machine.run()
    machine.settle()
    machine.unit = ("disabled", "active")
    assert machine.run()["changed"] and machine.calls == [["systemctl", "enable", "--now", "file"]]


def test_main_without_systemd(machine):
    machine.programs = {"iptables-nft"}
    assert machine.run()["changed"] and machine.calls == [["/bin/sh"]]


def test_main_where_nothing_drops(machine):
    machine.listing = IDLE
    result = machine.run()
    assert not result["changed"] and result["msg"] == "iptables does not drop packets from the peers"


def test_main_without_iptables(machine):
    machine.programs = {"systemctl"}
    assert machine.run()["msg"] == (
        "No rules of iptables can be read; install iptables and run this as root (become: true), or set "
        "firewall_provider to none or auto."
    )
    assert not machine.run(state="absent")["changed"]


def test_main_when_iptables_refuses(machine):
    machine.status = 1
    assert machine.run()["msg"].startswith("iptables refused the cluster's rules (line 3 failed); run this again")


def test_main_refuses_bad_input(machine):
    assert machine.run(peers=["gpu-1"])["msg"].startswith("'gpu-1' in peers is not an IPv4 or IPv6 address; ")
