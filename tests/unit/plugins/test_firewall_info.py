# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""firewall_info: which firewall is chosen, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.action import firewall_info as action
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import find_firewall, iptables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

DROPS = "-P INPUT DROP\n"
LOADED = "-N ufw-user-input\n"
IDLE = "-P INPUT ACCEPT\n"
CHAIN = {"family": "inet", "name": "input", "type": "filter", "hook": "input"}
ZONES = "public (active)\n  rich rules: \n"
OURS = "ufw allow from 198.18.0.9 to any port 29500 proto tcp comment 'thunderhead'\n"
RICH = 'rule priority="-29500" family="ipv4" source address="198.18.0.1" port port="29500" protocol="tcp" accept'


class Machine:
    """What the agent meets: commands and what they print; one that is not here fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, zones: Path) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[str] = []
        self.running: set[str] = set()
        self.zones = zones
        self.installed: set[str] = set()
        self.ufw_rules = zones / "user.rules"
        monkeypatch.setattr(find_firewall.os, "geteuid", lambda: 0)
        monkeypatch.setattr(find_firewall, "RESTORING", {})
        for owner in (find_firewall, iptables):
            monkeypatch.setattr(owner, "ask", self.ask)
            monkeypatch.setattr(owner, "find", lambda name: name if name in self.installed else None)
        monkeypatch.setattr(find_firewall, "runs_firewalld", lambda: "firewalld" in self.running)
        monkeypatch.setattr(find_firewall.firewalld, "ZONES", self.zones)
        monkeypatch.setattr(find_firewall.ufw, "RULES", [str(self.ufw_rules)])

    def ask(self, *command: str) -> str | None:
        self.asked.append(" ".join(command))
        return self.answers.get(self.asked[-1])

    def has(self, *firewalls: str) -> Machine:
        """Install these; those with a ! are active."""
        for firewall in firewalls:
            name, active = firewall.rstrip("!"), firewall.endswith("!")
            self.running = self.running | {name} if active else self.running - {name}
            if name == "firewalld":
                self.installed |= {"firewall-cmd", "firewall-offline-cmd"}
                if active:
                    self.answers |= {
                        "firewall-cmd --state": "running\n",
                        "firewall-cmd --list-all-zones": ZONES,
                        "firewall-cmd --permanent --list-all-zones": ZONES,
                        "firewall-cmd --get-default-zone": "public\n",
                    }
            elif name == "ufw":
                self.installed |= {"ufw"}
                self.answers["ufw status"] = "Status: active\n" if active else "Status: inactive\n"
                if active:
                    self.installed |= {"iptables"}
                    self.answers["iptables --wait -S"] = LOADED + self.answers.get("iptables --wait -S", IDLE)
            elif name == "iptables":
                self.installed |= {"iptables"}
                self.answers["iptables --wait -S"] = (LOADED if "ufw" in self.running else "") + (
                    DROPS if active else IDLE
                )
            else:
                self.installed |= {"nft"}
                self.answers["nft -j list chains"] = json.dumps({"nftables": [{"chain": CHAIN}] if active else []})
        return self

    def remember_in_ufw(self) -> None:
        """Have ufw's file name the rule OURS as ufw 0.36 does."""
        self.zones.mkdir(exist_ok=True)
        comment = b"thunderhead".hex()
        self.ufw_rules.write_text(f"### tuple ### allow tcp 29500 0.0.0.0/0 any 198.18.0.9 in comment={comment}\n")

    def run(self, provider: str = "auto", sources: tuple[str, ...] = ("198.18.0.1",)) -> dict[str, Any]:
        return find_firewall.inspect_firewall(provider, sources, [(29500, 29500)])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path / "zones")


@pytest.mark.parametrize(
    ("firewalls", "provider", "why"),
    [
        ([], "none", "none, because nothing filters incoming packets"),
        (
            ["firewalld", "ufw", "iptables", "nftables"],
            "none",
            "none, because nothing filters incoming packets (firewalld does not run, ufw is inactive, iptables drops "
            "nothing by default, nftables filters nothing)",
        ),
        (["firewalld!", "ufw!", "iptables!", "nftables!"], "firewalld", "firewalld, because it runs"),
        (["firewalld", "ufw!", "iptables!"], "ufw", "ufw, because it is active (firewalld does not run)"),
        (["ufw", "iptables!", "nftables!"], "iptables", "iptables, because it drops by default (ufw is inactive)"),
        (["iptables", "nftables!"], "nftables", "nftables, because it filters (iptables drops nothing by default)"),
    ],
)
def test_what_is_active_is_chosen(machine, firewalls, provider, why):
    found = machine.has(*firewalls).run()
    assert (found["provider"], found["msg"]) == (provider, why)


def test_one_that_is_out_of_force_for_the_moment(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(find_firewall, "RESTORING", {"iptables": str(tmp_path / "none"), "nftables": str(tmp_path)})
    found = machine.has("nftables").run()
    assert (found["provider"], found["concerned"]) == ("nftables", ["nftables"])
    assert found["msg"] == "nftables, because it was active before (nftables filters nothing)"
    assert machine.has("ufw!").run()["concerned"] == ["ufw", "nftables"], "the chosen one opens first"


def test_only_the_chosen_one_lacks_rules_and_the_others_have_too_many(machine):
    machine.has("firewalld!", "ufw").answers["ufw show added"] = OURS
    machine.remember_in_ufw()
    found = machine.run()
    assert found["firewalld"] == {"missing": [{"zone": "public", "rule": RICH}], "stale": []}
    assert found["ufw"] == {"missing": [], "stale": [{"network": "198.18.0.9", "ports": "29500"}]}
    assert found["concerned"] == ["firewalld", "ufw"]

    machine.answers["firewall-cmd --list-all-zones"] = f"{ZONES}\t{RICH}\n"
    for provider in ("ufw", "none"):
        machine.has("ufw!")
        found = machine.run(provider=provider)
        assert found["firewalld"] == {"missing": [], "stale": [{"zone": "public", "rule": RICH}]}
        assert len(found["ufw"]["missing"]) == (provider == "ufw") and len(found["ufw"]["stale"]) == 1
        assert found["concerned"] == (["ufw", "firewalld"] if provider == "ufw" else ["firewalld", "ufw"])


def test_rules_in_a_firewall_that_rests(machine):
    machine.has("firewalld", "ufw").answers["firewall-offline-cmd --list-all-zones"] = f"{ZONES}\t{RICH}\n"
    machine.zones.mkdir()
    (machine.zones / "public.xml").write_text('<zone><rule family="ipv4" priority="-29500"><accept/></rule></zone>')
    nothing = {"missing": [], "stale": []}
    found = machine.run()
    assert (found["provider"], found["firewalld"], found["ufw"], found["concerned"]) == ("none", nothing, nothing, [])
    assert found["msg"].endswith("(firewalld does not run, ufw is inactive); the cluster's rules in firewalld stay")

    stale = {"missing": [], "stale": [{"zone": "public", "rule": RICH}]}
    assert machine.run(provider="none")["firewalld"] == stale
    assert machine.has("ufw!").run()["firewalld"] == stale


@pytest.mark.parametrize("files", [[], ["public.xml"]])
def test_a_firewalld_that_rests_is_not_asked_in_vain(machine, files):
    machine.has("firewalld", "ufw").zones.mkdir()
    for name in files:
        (machine.zones / name).write_text('<zone><rule family="ipv4" priority="-1"><accept/></rule></zone>')
    machine.run()
    assert not [command for command in machine.asked if command.startswith("firewall")]


def test_a_ufw_that_is_inactive_is_not_asked_in_vain(machine):
    machine.has("ufw", "iptables").run()
    assert not [command for command in machine.asked if command.startswith("ufw")]


@pytest.mark.parametrize(("said", "speaks"), [("", True), ("IPV6=yes\n", True), ("# IPV6=yes\nIPV6=no\n", False)])
def test_ufw_without_ipv6(machine, monkeypatch, tmp_path, said, speaks):
    monkeypatch.setattr(find_firewall.ufw, "DEFAULTS", str(tmp_path / "ufw"))
    (tmp_path / "ufw").write_text(said)
    found = machine.has("ufw!").run(sources=("198.18.0.1", "fd00::1"))
    assert [rule["network"] for rule in found["ufw"]["missing"]] == ["fd00::1"] * speaks + ["198.18.0.1"]
    assert ("IPv6 addresses are left out, because" in found["msg"]) is not speaks


@pytest.mark.parametrize(
    ("firewalls", "provider", "words"),
    [
        (["firewalld"], "firewalld", "firewalld does not run"),
        (["ufw"], "ufw", "ufw is inactive"),
        ([], "ufw", "ufw is not installed"),
    ],
)
def test_one_that_was_named_and_is_not_active(machine, firewalls, provider, words):
    with pytest.raises(Refusal) as caught:
        machine.has(*firewalls).run(provider=provider)
    assert str(caught.value) == (
        f"has firewall_provider {provider}, but {words} there; start it, or set firewall_provider to auto in the "
        "inventory"
    )


def test_an_ordinary_user(machine, monkeypatch):
    monkeypatch.setattr(find_firewall.os, "geteuid", lambda: 1000)
    assert machine.run(provider="none")["provider"] == "none"
    with pytest.raises(Refusal, match="only root may look at a firewall and change it; set ansible_become"):
        machine.run()


@pytest.mark.parametrize(
    ("peers", "ports", "message"),
    [
        (["gpu-1"], ["29500"], "'gpu-1' in peers is not an IPv4"),
        (["198.18.0.1"], [], "ports is empty although"),
    ],
)
def test_bad_input_is_told_before_any_node_is_asked(peers: list[str], ports: list[str], message: str) -> None:
    with pytest.raises(JobError, match=message):
        action.opening(tuple(peers), tuple(ports))


def test_what_is_the_same_on_many_nodes_is_said_once() -> None:
    nodes = {f"gpu-{number}": {"msg": "ufw, because it is active"} for number in range(1, 8)}
    others = {f"cpu-{number}": {"msg": "none, because nothing filters"} for number in range(1, 7)}
    assert action.chosen({**nodes, **others, "liar": {"msg": "ufw\ngpu-1: \u202enone"}}) == (
        "gpu-1, gpu-2, gpu-3, gpu-4, gpu-5 and 2 more: ufw, because it is active\n"
        "cpu-1, cpu-2, cpu-3, cpu-4, cpu-5, cpu-6: none, because nothing filters\n"
        "liar: ufw\\ngpu-1: \\u202enone"
    )
