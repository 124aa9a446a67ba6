# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""nftables_peers against rulesets as `nft -j list ruleset` printed them on real machines (nftables_rulesets.json)."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import iptables, run_program
from ansible_collections.thunderhead.cluster.plugins.modules import nftables_peers as module

RULESETS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("nftables_rulesets.json").read_text(encoding="utf-8")
)
PEERS = ["198.18.77.10", "198.18.77.11", "fd00:77::11"]
PORTS = ["29500", "32768-60999"]
NO_FILES: dict[str, str | None] = {module.SCRIPT: None, module.DROP_IN: None}

BY_IPTABLES = ("ip", "ip6")


def plan(ruleset, peers=PEERS, ports=PORTS, files=NO_FILES, by_iptables=()):
    entries = RULESETS[ruleset] if isinstance(ruleset, str) else ruleset
    return module.make_plan(entries, module.accept_rules(peers, ports), files, by_iptables)


OPENING = plan("administrator")


def changed(ruleset: str, edit) -> list[dict[str, Any]]:
    """Return a copy of a ruleset after edit(list of its entries)."""
    entries = copy.deepcopy(RULESETS[ruleset])
    edit(entries)
    return entries


def rule(chain: str, handle: int, *expr: Any, table: str = "filter", family: str = "inet") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": chain, "handle": handle, "expr": list(expr)}}


# --- peers and ports ---


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        (["29500"], "{ 29500 }"),
        (["32768-60999", "29500"], "{ 29500, 32768-60999 }"),
        (["39000-50000", "30000-40000", "50001", "80", "80"], "{ 80, 30000-50001 }"),
        (["443-443", "1-65535"], "{ 1-65535 }"),
    ],
)
def test_ports_are_merged(ports, text):
    assert f"tcp dport {text} accept" in module.accept_rules(PEERS, ports)["ip"]


def test_each_family_has_its_peers_once_and_in_order():
    rules = module.accept_rules(["198.18.0.10", "198.18.0.9", "fd00:0::1", "fd00::1", "198.18.0.9"], ["1"])
    assert rules == {
        "ip": 'ip saddr {\n    198.18.0.9,\n    198.18.0.10\n} tcp dport { 1 } accept comment "thunderhead"',
        "ip6": 'ip6 saddr {\n    fd00::1\n} tcp dport { 1 } accept comment "thunderhead"',
    }


def test_no_peers_no_rules():
    assert module.accept_rules([], []) == {}


@pytest.mark.parametrize("peer", ["gpu-1", "198.18.0.0/15", "198.18.0.256", "fe80::1%eth0", "", " 198.18.0.1", "1"])
def test_a_peer_that_is_no_address(peer):
    with pytest.raises(ValueError) as caught:
        module.accept_rules([peer], PORTS)
    assert str(caught.value) == (
        f"{peer!r} in peers is not an IPv4 or IPv6 address; name every peer by its address, without a prefix length or "
        "a zone (the role firewall takes them from firewall_peers)."
    )


@pytest.mark.parametrize(
    "port", ["0", "65536", "20-10", "10-", "ssh", "", "-1", "1:2", "80/tcp", "٢", "1-65536", "80\n"]
)
def test_a_port_that_is_none(port):
    with pytest.raises(ValueError) as caught:
        module.accept_rules(PEERS, ["29500", port])
    assert str(caught.value) == (
        f"{port!r} in ports is neither a port nor an ascending range within 1-65535; write 29500 or 32768-60999 "
        "(the role firewall takes them from firewall_ports)."
    )


def test_peers_without_ports():
    with pytest.raises(ValueError, match="ports is empty although there are peers; name the ports to open"):
        module.accept_rules(PEERS, [])


# --- the plan ---


def test_opening_only_adds():
    made = plan("administrator")
    assert made.before == ""
    assert made.chains == ["inet filter input", "ip extra guard"]
    four, six = module.accept_rules(PEERS, PORTS).values()
    assert made.commands == (
        "add chain inet filter thunderhead\n"
        "flush chain inet filter thunderhead\n"
        f"add rule inet filter thunderhead {four}\n"
        f"add rule inet filter thunderhead {six}\n"
        'insert rule inet filter input jump thunderhead comment "thunderhead"\n'
        "add chain ip extra thunderhead\n"
        "flush chain ip extra thunderhead\n"
        f"add rule ip extra thunderhead {four}\n"
        'insert rule ip extra guard jump thunderhead comment "thunderhead"\n'
    )
    assert made.after.splitlines()[0] == "chain inet filter thunderhead"
    assert made.files[module.DROP_IN] == module.DROP_IN_TEXT


def test_what_is_open_stays_as_it_is():
    made = plan("opened", list(reversed(PEERS)), list(reversed(PORTS)), plan("administrator").files)
    assert made.commands == ""
    assert made.before == made.after == plan("administrator").after
    assert made.files == plan("administrator").files


def test_a_peer_that_left_loses_its_rule():
    made = plan("opened", ["198.18.77.10", "fd00:77::11"])
    assert "insert" not in made.commands and "delete" not in made.commands
    assert made.commands.count("flush chain") == 2
    assert "198.18.77.11" in made.before
    assert "198.18.77.11" not in made.commands + made.after + (made.files[module.SCRIPT] or "")


def test_a_table_without_peers_of_its_family_is_left_as_it_was():
    made = plan("opened", ["fd00:77::11"])
    assert made.commands.endswith(
        "delete rule ip extra guard handle 7\nflush chain ip extra thunderhead\ndelete chain ip extra thunderhead\n"
    )
    assert made.chains == ["inet filter input"]


def test_absent_takes_everything_away():
    made = module.make_plan(RULESETS["opened"], {}, plan("administrator").files, by_iptables=())
    assert made.commands == (
        "delete rule inet filter input handle 18\n"
        "flush chain inet filter thunderhead\n"
        "delete chain inet filter thunderhead\n"
        "delete rule ip extra guard handle 7\n"
        "flush chain ip extra thunderhead\n"
        "delete chain ip extra thunderhead\n"
    )
    assert (made.after, made.files, made.chains) == ("", NO_FILES, [])


@pytest.mark.parametrize("ruleset", ["administrator", "iptables", "translated"])
def test_absent_where_nothing_is(ruleset):
    assert module.make_plan(RULESETS[ruleset], {}, NO_FILES, by_iptables=BY_IPTABLES) == ("", "", "", NO_FILES, [])


def test_a_second_and_a_displaced_jump_become_one_at_the_top():
    jump = {"jump": {"target": "thunderhead"}}
    above = rule("guard", 90, {"drop": None}, table="extra", family="ip")

    def edit(entries):
        entries.append(rule("input", 91, jump))
        entries.insert([e.get("rule", {}).get("handle") for e in entries].index(7), above)
        entries.insert(next(i for i, e in enumerate(entries) if e.get("rule", {}).get("table") == "extra"), above)

    made = plan(changed("opened", edit))
    assert made.commands == (
        "delete rule inet filter input handle 18\n"
        "delete rule inet filter input handle 91\n"
        'insert rule inet filter input jump thunderhead comment "thunderhead"\n'
        "delete rule ip extra guard handle 7\n"
        'insert rule ip extra guard jump thunderhead comment "thunderhead"\n'
    )


@pytest.mark.parametrize(
    "stranger",
    [
        rule("thunderhead", 99, {"accept": None}),
        rule("thunderhead", 99),
        rule("thunderhead", 99, {"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "lo"}}),
    ],
)
def test_a_rule_somebody_added_to_our_chain_is_shown_and_replaced(stranger):
    made = plan(changed("opened", lambda entries: entries.append(stranger)))
    assert json.dumps(stranger["rule"]["expr"]) in made.before.splitlines()
    assert made.commands.startswith("add chain inet filter thunderhead\nflush chain inet filter thunderhead\n")
    assert "extra" not in made.commands


@pytest.mark.parametrize(
    "edit",
    [
        lambda ours: ours.pop("comment"),
        lambda ours: ours["expr"][0]["match"].update(op="!="),
        lambda ours: ours["expr"][0]["match"]["left"]["payload"].update(field="daddr"),
        lambda ours: ours["expr"][1]["match"]["left"]["payload"].update(protocol="udp"),
        lambda ours: ours["expr"][0]["match"].update(right={"prefix": {"addr": "198.18.0.0", "len": 15}}),
        lambda ours: ours["expr"].insert(2, {"counter": {"packets": 0, "bytes": 0}}),
        lambda ours: ours["expr"].__setitem__(2, {"drop": None}),
    ],
)
def test_a_rule_of_ours_that_somebody_changed_is_repaired(edit):
    def of_first_rule(entries):
        edit(next(e["rule"] for e in entries if e.get("rule", {}).get("chain") == "thunderhead"))

    assert "flush chain inet filter thunderhead\n" in plan(changed("opened", of_first_rule)).commands


def test_hundreds_of_peers_are_one_rule():
    made = plan("administrator", [f"198.18.{i // 250}.{i % 250}" for i in range(1000)])
    assert made.commands.count("add rule") == 2


def test_tables_of_iptables_are_left_alone():
    made = plan("beside_iptables", by_iptables=BY_IPTABLES)
    assert made.chains == ["inet mine in"]
    assert "ip filter" not in made.commands + (made.files[module.SCRIPT] or "")


@pytest.mark.parametrize(
    ("ruleset", "by_iptables"), [("iptables", BY_IPTABLES), ("iptables", ()), ("translated", BY_IPTABLES)]
)
def test_a_table_of_iptables_that_drops_by_default(ruleset, by_iptables):
    with pytest.raises(ValueError) as caught:
        plan(ruleset, by_iptables=by_iptables)
    assert str(caught.value) == (
        "The chain ip filter INPUT drops by default and is managed by iptables; set firewall_provider to auto or "
        "iptables for this host in the inventory."
    )


def test_without_iptables_its_names_are_the_administrators():
    assert plan("translated", by_iptables=()).chains == ["ip filter INPUT"]


def test_ipv6_only_does_not_mind_what_iptables_drops():
    assert plan("iptables", ["fd00::1"], by_iptables=BY_IPTABLES) == ("", "", "", NO_FILES, [])


@pytest.mark.parametrize("family", ["arp", "bridge", "netdev"])
def test_other_families_are_left_alone(family):
    chain = {"family": family, "table": "t", "name": "input", "type": "filter", "hook": "input", "policy": "drop"}
    assert plan([{"chain": chain}]).chains == []


def test_the_script_remembers_chains_while_the_firewall_is_stopped():
    files = plan("administrator").files
    stopped = plan([], files=files)
    assert (stopped.commands, stopped.chains, stopped.files) == ("", [], files)


def test_the_script_forgets_a_chain_that_iptables_took_over():
    files = plan("translated", by_iptables=()).files
    taken = changed("translated", lambda entries: entries[2]["chain"].update(policy="accept"))
    assert plan(taken, files=files, by_iptables=BY_IPTABLES).files == NO_FILES


# --- the script ---


@pytest.mark.parametrize(
    ("listing", "loaded"),
    [
        ("policy drop;", ["add", "insert"]),
        ('jump thunderhead comment "thunderhead"', ["add"]),
        (None, []),
    ],
)
def test_the_script_adds_no_second_jump(tmp_path, listing, loaded):
    script = module.script_text([("inet", "filter", "input")], module.accept_rules(["198.18.0.1"], PORTS))
    nft = tmp_path / "nft"
    answer = "exit 1" if listing is None else f"echo '{listing}'"
    nft.write_text(f'#!/bin/sh\nif [ "$1" = list ]; then {answer}; else cat >> {tmp_path}/loaded; fi\n')
    nft.chmod(0o755)
    (tmp_path / "loaded").touch()
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["/bin/sh", "-c", script], env={"PATH": path}, check=True)
    lines = (tmp_path / "loaded").read_text().splitlines()
    assert [word for word in ("add", "insert") if any(line.startswith(f"{word} rule") for line in lines)] == loaded


# --- main ---

APPLY = [["nft", "-f", "-"], ["systemctl", "daemon-reload"]]


class Machine:
    """What the module meets: programs that answer, and a record of those that change something."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.script, self.drop_in = folder / "etc/nftables.sh", folder / "nftables.service.d/thunderhead.conf"
        self.ruleset = RULESETS["administrator"]
        self.programs = {"nft": "nft", "systemctl": "systemctl"}
        self.unit = "enabled"
        self.loaded = ""  # the drop-ins that systemd has read
        self.nft_status = 0
        self.calls: list[list[str]] = []
        self.stdin: str | None = None
        self.capsys = capsys
        monkeypatch.setattr(module, "SCRIPT", str(self.script))
        monkeypatch.setattr(module, "DROP_IN", str(self.drop_in))
        monkeypatch.setattr(module.os, "geteuid", lambda: 0)
        monkeypatch.setattr(AnsibleModule, "run_command", self.run_command)
        monkeypatch.setattr(iptables, "rule_sets", dict)
        monkeypatch.setattr(run_program, "ask", self.ask)
        monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _, name, **__: self.programs.get(name))

    def ask(self, *command: str) -> str | None:
        if "systemctl" not in self.programs:
            return None
        assert command == ("systemctl", "show", "--property=UnitFileState,DropInPaths", "nftables.service")
        return f"UnitFileState={self.unit}\nDropInPaths={self.loaded}\n"

    def run_command(self, argv: list[str], data: str | None = None, check_rc: bool = False) -> tuple[int, str, str]:
        if argv == ["nft", "-j", "list", "ruleset"]:
            return self.nft_status, json.dumps({"nftables": self.ruleset}), "Operation not\n permitted"
        assert argv in APPLY, f"unknown command {argv}"
        assert check_rc or argv == APPLY[0]
        self.stdin = data or self.stdin
        self.calls.append(argv)
        return self.nft_status, "", ""

    def run(self, **args: Any) -> dict[str, Any]:
        self.calls, self.stdin = [], None
        with patch_module_args({"peers": PEERS, "ports": PORTS, **args}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def settle(self) -> None:
        """Make what was asked for true."""
        self.ruleset = RULESETS["opened"]
        self.loaded = str(self.drop_in)


@pytest.fixture
def machine(tmp_path, monkeypatch, capsys):
    # The engine's tests, in the same process, make this a controller, which shows a module's warnings itself.
    monkeypatch.setattr("ansible.module_utils._internal.is_controller", False)
    return Machine(tmp_path, monkeypatch, capsys)


def test_main_applies_the_plan_in_one_transaction(machine):
    result = machine.run()
    assert result["changed"] and machine.calls == APPLY
    assert machine.stdin == OPENING.commands
    assert result["msg"] == "peers let in through inet filter input, ip extra guard: 3"
    assert result["chains"] == ["inet filter input", "ip extra guard"]
    assert [part["after_header"] for part in result["diff"]] == [
        "live rules",
        str(machine.script),
        str(machine.drop_in),
    ]
    assert "warnings" not in result
    assert {machine.script.stat().st_mode & 0o777, machine.drop_in.stat().st_mode & 0o777} == {0o644}

    machine.settle()
    result = machine.run()
    assert not result["changed"] and machine.calls == []


def test_main_in_check_mode_changes_nothing(machine):
    checked = machine.run(_ansible_check_mode=True)
    assert machine.calls == [] and not machine.script.exists() and not machine.drop_in.exists()
    done = machine.run()
    assert (checked["changed"], checked["diff"]) == (True, done["diff"])


def test_main_takes_everything_away(machine):
    machine.run()
    machine.settle()
    result = machine.run(state="absent")
    assert result["changed"] and machine.calls == APPLY
    assert result["msg"] == "no rules of the cluster are left"
    assert not machine.script.parent.exists() and not machine.drop_in.parent.exists()
    machine.ruleset, machine.loaded = RULESETS["administrator"], ""
    assert not machine.run(state="absent")["changed"] and machine.calls == []


def test_main_leaves_a_folder_that_others_use(machine):
    machine.run()
    machine.settle()
    (machine.drop_in.parent / "override.conf").touch()
    machine.run(state="absent")
    assert list(machine.drop_in.parent.iterdir()) == [machine.drop_in.parent / "override.conf"]


def test_main_reloads_a_drop_in_that_systemd_has_not_read(machine):
    machine.run()
    machine.settle()
    machine.loaded = ""
    assert machine.run()["changed"] and machine.calls == APPLY[1:]


def test_main_warns_of_a_service_that_is_not_enabled(machine):
    machine.unit = "disabled"
    (warning,) = machine.run()["warnings"]
    assert "nftables.service is not enabled" in str(warning)


def test_main_without_systemd(machine):
    machine.programs = {"nft": "nft"}
    assert machine.run()["changed"] and machine.calls == APPLY[:1]


def test_main_where_nothing_filters(machine):
    machine.ruleset = []
    result = machine.run()
    assert not result["changed"]
    assert result["msg"] == "no nftables chain filters packets from the peers"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"peers": ["gpu-1"]}, "'gpu-1' in peers is not an IPv4 or IPv6 address; "),
        ({"ports": ["0"]}, "'0' in ports is neither a port nor an ascending range"),
        ({"ports": None}, "ports is empty although there are peers; name the ports to open"),
    ],
)
def test_main_refuses_bad_input_before_it_looks(machine, args, message):
    machine.run_command = None
    result = machine.run(**args)
    assert result["failed"] and result["msg"].startswith(message)


def test_main_without_nft(machine):
    machine.programs = {}
    assert machine.run()["msg"] == ("nft is not installed; install nftables, or set firewall_provider to none or auto.")
    assert not machine.run(state="absent")["changed"]


def test_main_that_may_not_look(machine):
    machine.nft_status = 1
    assert machine.run()["msg"] == (
        "The live nftables ruleset cannot be read (Operation not permitted); run this as root (become: true)."
    )


def test_main_as_an_ordinary_user_where_nothing_was_opened(machine, monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    machine.nft_status = 1
    assert machine.run(state="absent")["msg"] == "no rules of the cluster are installed"


def test_main_when_nft_refuses(machine, monkeypatch):
    answer = machine.run_command
    monkeypatch.setattr(
        AnsibleModule,
        "run_command",
        lambda _, argv, **more: (1, "", "busy\n") if "-f" in argv else answer(argv, **more),
    )
    result = machine.run()
    assert result["failed"] and result["msg"].startswith(
        "nft refused the cluster's rules, so none was changed (busy); "
    )


def test_what_is_returned_is_documented():
    assert set(yaml.safe_load(module.RETURN)) == {"chains", "msg"}
