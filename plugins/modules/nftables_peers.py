# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a module the documentation comes first)
"""Let the nodes of a cluster through an nftables firewall that somebody else owns."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nftables_peers
short_description: Let peers through an nftables firewall that somebody else owns
version_added: 0.1.0
description:
  - Every base chain on the input hook is evaluated, so an accept in a table of one's own does not override the drop of
    another. The accept therefore goes into the tables that are there. Each gets one chain, C(thunderhead), and each of
    its base chains of type filter on the input hook gets C(jump thunderhead) as its first rule.
  - Tables of the families inet, ip and ip6 are extended. Those of iptables-nft are not; the module fails if one of
    them drops by default.
  - No other rule and no policy is touched. Where no chain filters incoming packets, nothing is done.
  - The rules are restored by C(/etc/thunderhead/nftables.sh), which a drop-in of C(nftables.service) runs after the
    administrator's rules have been loaded or reloaded. If it fails, the administrator's rules still stand.
extends_documentation_fragment:
  - thunderhead.cluster.peers
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Says what would change, and changes nothing.
  diff_mode:
    support: full
    details: Shows the rules and the files before and after.
  platform:
    support: full
    platforms: linux
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let two nodes in
  thunderhead.cluster.nftables_peers:
    peers: [192.0.2.11, 2001:db8::11]
    ports: ["29500", "32768-60999"]

- name: Take every rule of the cluster away
  thunderhead.cluster.nftables_peers:
    state: absent
"""

RETURN = r"""
chains:
  description: The live base chains that let the peers in, each as family, table and name.
  returned: success
  type: list
  elements: str
  sample: [inet filter input]
msg:
  description: What was found and decided, in one sentence.
  returned: success
  type: str
  sample: "peers let in through inet filter input: 2"
"""

import json
import os
import re
import shlex
from collections.abc import Container
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import files as restoring
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import iptables
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.nftables import SCRIPT, is_of_iptables
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import (
    ARGUMENTS,
    NAME,
    REQUIRED_IF,
    addresses,
    required_spans,
    written,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.run_program import show_unit

JUMP = f'jump {NAME} comment "{NAME}"'
DROP_IN = "/etc/systemd/system/nftables.service.d/thunderhead.conf"

# ExecStartPost, since a second ExecStart would make systemd refuse any unit that is not of type oneshot, and with it
# the administrator's rules. "-": a failure here is not a failure of nftables.service.
DROP_IN_TEXT = f"""\
# Written by Thunderhead.
[Service]
ExecStartPost=-/bin/sh {SCRIPT}
ExecReload=-/bin/sh {SCRIPT}
"""
# A configuration without "flush ruleset" leaves the jump in place when it is reloaded: it must not be added twice.
SCRIPT_TEXT = f"""\
#!/bin/sh
# Written by Thunderhead, overwritten by the next setup: lets the cluster's nodes through the administrator's firewall.
# One transaction per chain, so that one which does not exist (yet) keeps no other closed.
restore() {{ # family table chain rules
    live=$(nft list chain "$1" "$2" "$3" 2>/dev/null) || return 0
    case $live in
    *'jump {NAME}'*) jump= ;;
    *) jump="insert rule $1 $2 $3 "'{JUMP}' ;;
    esac
    printf '%s\\n' "$4" "$jump" | nft -f -
}}
"""

RESTORE_CALL = r"^restore (\S+) (\S+) (\S+) '"

Entry = dict[str, Any]  # an object of `nft -j list ruleset`
Chain = tuple[str, str, str]  # family, table, name


class Plan(NamedTuple):
    """What is to be done, and the words for it."""

    commands: str  # for one `nft -f -`; empty: what is live is as it should be
    before: str  # the cluster's live rules, as text
    after: str
    files: dict[str, str | None]  # path -> content; None: no such file
    chains: list[str]  # the live base chains that let the peers in


def accept_rules(peers: list[str], ports: list[str]) -> dict[str, str]:
    """Return the rule for each family, "ip" and "ip6", that has peers.

    Raises ValueError, in one sentence, for what is no address and no port.
    """
    known = addresses(peers)
    # nft refuses, or itself merges, ranges that overlap or touch.
    dport = ", ".join(written(span, "-") for span in required_spans(peers, ports))
    members = {
        "ip": [str(one) for one in known if one.version == 4],
        "ip6": [str(one) for one in known if one.version == 6],
    }
    return {
        # An address to a line, for the diff's sake.
        family: f"{family} saddr {{\n    "
        + ",\n    ".join(chosen)
        + f'\n}} tcp dport {{ {dport} }} accept comment "{NAME}"'
        for family, chosen in members.items()
        if chosen
    }


def rule_text(rule: Entry) -> str:
    """Return a live rule as accept_rules would write it, or as JSON where it never would."""
    try:
        family = rule["expr"][0]["match"]["left"]["payload"]["protocol"]
        sides = [expr["match"]["right"] for expr in rule["expr"][:2]]
        fields = ((family, "saddr"), ("tcp", "dport"))
        ours: list[Entry] = [
            {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}
            for (protocol, field), right in zip(fields, sides)
        ]
        if rule.get("comment") == NAME and rule["expr"] == [*ours, {"accept": None}]:
            return accept_rules(*map(elements, sides))[family]
    except (LookupError, TypeError, ValueError):
        pass
    return json.dumps(rule["expr"])


def elements(right: Any) -> list[str]:
    """Return what the right side of a match holds: a value, a range, or a set of both."""
    if not isinstance(right, dict):
        return [str(right)]
    if "set" in right:
        return [element for item in right["set"] for element in elements(item)]
    return ["{}-{}".format(*right["range"])]


def survey(
    ruleset: list[Entry], rules: dict[str, str], by_iptables: Container[str]
) -> tuple[dict[Chain, list[Entry]], list[Chain]]:
    """Return the rules of every chain, and the base chains that the rules have to go into.

    The tables of iptables-nft are left out: those with expressions of the type xt, which only it writes, and those that
    it takes for its own (by_iptables: the families whose tables it can list).
    Raises ValueError, in one sentence, for a chain of iptables-nft that would keep the peers out.
    """
    live: dict[Chain, list[Entry]] = {}
    policies: dict[Chain, str] = {}
    foreign = set()
    for kind, entry in (next(iter(item.items())) for item in ruleset):
        if kind not in ("chain", "rule") or entry["family"] not in ("inet", "ip", "ip6"):
            continue
        table = (entry["family"], entry["table"])
        chain = (*table, entry["name" if kind == "chain" else "chain"])
        live.setdefault(chain, [])
        if kind == "rule":
            live[chain].append(entry)
            if any("xt" in expr for expr in entry["expr"]):
                foreign.add(table)
        elif (entry.get("type"), entry.get("hook")) == ("filter", "input"):
            policies[chain] = entry.get("policy", "accept")
            if is_of_iptables(entry, by_iptables):
                foreign.add(table)
    needed = [chain for chain in policies if rules_for(chain, rules)]
    for chain in needed:
        if chain[:2] in foreign and policies[chain] == "drop":
            raise ValueError(
                f"The chain {' '.join(chain)} drops by default and is managed by iptables; set firewall_provider "
                "to auto or iptables for this host in the inventory."
            )
    return live, [chain for chain in needed if chain[:2] not in foreign]


def make_plan(
    ruleset: list[Entry], rules: dict[str, str], files: dict[str, str | None], by_iptables: Container[str]
) -> Plan:
    """Compare what is live and what the files say with what is wanted.

    ruleset: the list under "nftables" of `nft -j list ruleset`. rules: family -> rule; empty: take everything away.
    files: what SCRIPT and DROP_IN hold now. by_iptables and what is raised: see survey.
    """
    live, bases = survey(ruleset, rules, by_iptables)
    commands: list[str] = []
    before: list[str] = []
    after: list[str] = []
    for own in sorted({(*chain[:2], NAME) for chain in bases} | {chain for chain in live if chain[2] == NAME}):
        name = " ".join(own)
        extended = [base for base in bases if base[:2] == own[:2]]
        wanted = rules_for(own, rules) if extended else []
        present = [rule_text(rule) for rule in live.get(own, [])]
        before += [f"chain {name}", *present] if own in live else []
        after += [f"chain {name}", *wanted] if extended else []
        if extended and (own not in live or present != wanted):
            commands += fill(own, wanted)
        for chain in (chain for chain in live if chain[:2] == own[:2]):
            where = " ".join(chain)
            jumps = {
                place: f"delete rule {where} handle {rule['handle']}"
                for place, rule in enumerate(live[chain], 1)
                if {"jump": {"target": NAME}} in rule["expr"]
            }
            places = [1] if chain in extended else []
            before += [f"rule {place} of {where}: jump {NAME}" for place in jumps]
            after += [f"rule {place} of {where}: jump {NAME}" for place in places]
            if list(jumps) != places:
                commands += [*jumps.values(), *(f"insert rule {where} {JUMP}" for _place in places)]
        if not extended:
            commands += [f"flush chain {name}", f"delete chain {name}"]
    # Chains that the script knows and that are not live stay in: while nftables.service is stopped none of them is.
    restored = {(m[1], m[2], m[3]) for m in re.finditer(RESTORE_CALL, files[SCRIPT] or "", re.MULTILINE)} - live.keys()
    script = script_text(sorted(restored | set(bases)), rules)
    return Plan(
        commands=restoring.lines(commands),
        before=restoring.lines(before),
        after=restoring.lines(after),
        files={SCRIPT: script, DROP_IN: script and DROP_IN_TEXT},
        chains=[" ".join(base) for base in bases],
    )


def rules_for(chain: Chain, rules: dict[str, str]) -> list[str]:
    """Return the rules that a table of the chain's family can hold."""
    return [rule for family, rule in rules.items() if chain[0] in (family, "inet")]


def fill(own: Chain, wanted: list[str]) -> list[str]:
    """Return the commands after which the chain is there and holds these rules and no others."""
    name = " ".join(own)
    return [f"add chain {name}", f"flush chain {name}", *(f"add rule {name} {rule}" for rule in wanted)]


def script_text(chains: list[Chain], rules: dict[str, str]) -> str | None:
    """Return the script that restores the rules in these chains, or None where there is nothing to restore."""
    calls = [
        shlex.join(["restore", *chain, restoring.lines(fill((*chain[:2], NAME), rules_for(chain, rules)))])
        for chain in chains
        if rules_for(chain, rules)
    ]
    return SCRIPT_TEXT + restoring.lines(calls) if calls else None


def live_ruleset(module: AnsibleModule) -> list[Entry]:
    """Return what `nft` lists; nothing where nothing is to be removed and nft is missing."""
    nft = module.get_bin_path("nft")
    if nft is None:
        if module.params["state"] == "absent":
            return []
        module.fail_json(msg="nft is not installed; install nftables, or set firewall_provider to none or auto.")
    status, out, err = module.run_command([nft, "-j", "list", "ruleset"])
    if status:
        module.fail_json(
            msg=f"The live nftables ruleset cannot be read ({' '.join(err.split())}); run this as root (become: true)."
        )
    entries: list[Entry] = json.loads(out)["nftables"]
    return entries


def main() -> None:
    """Read, plan, apply."""
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    present = module.params["state"] == "present"
    try:
        rules = accept_rules(module.params["peers"] or [], module.params["ports"] or []) if present else {}
    except ValueError as error:
        module.fail_json(msg=str(error))
    files = restoring.read((SCRIPT, DROP_IN))
    if not present and os.geteuid() and not any(files.values()):
        module.exit_json(changed=False, chains=[], msg="no rules of the cluster are installed")
    by_iptables = iptables.nft_families(iptables.rule_sets())
    try:
        plan = make_plan(live_ruleset(module), rules, files, by_iptables)
    except ValueError as error:
        module.fail_json(msg=str(error))
    systemd = show_unit("nftables.service", "UnitFileState", "DropInPaths")
    stale = bool(systemd) and (DROP_IN in systemd["DropInPaths"]) != (plan.files[DROP_IN] is not None)
    rewritten = [path for path in files if files[path] != plan.files[path]]
    diff = [{"before_header": "live rules", "after_header": "live rules", "before": plan.before, "after": plan.after}]
    diff += restoring.differences(files, plan.files)
    if not module.check_mode:
        apply(module, plan, rewritten, bool(systemd) and (stale or DROP_IN in rewritten))
    if plan.chains and systemd.get("UnitFileState") != "enabled":
        module.warn(
            "nftables.service is not enabled, so after a reboot neither the administrator's nftables rules nor the "
            "cluster's are loaded by it; run `systemctl enable nftables` if they are meant to stay."
        )
    through = f"peers let in through {', '.join(plan.chains)}: {len(set(module.params['peers'] or []))}"
    nothing = "no nftables chain filters packets from the peers" if present else "no rules of the cluster are left"
    module.exit_json(
        changed=bool(plan.commands or rewritten or stale),
        diff=diff,
        chains=plan.chains,
        msg=through if plan.chains else nothing,
    )


def apply(module: AnsibleModule, plan: Plan, rewritten: list[str], reload: bool) -> None:
    """Carry the plan out. While a rule is live, a file says so: files are written before and removed after."""
    for path in rewritten:
        if plan.files[path] is not None:
            restoring.write(module, path, plan.files[path])
    if plan.commands:
        nft = module.get_bin_path("nft", required=True)
        status, _out, err = module.run_command([nft, "-f", "-"], data=plan.commands)
        if status:
            module.fail_json(
                msg=f"nft refused the cluster's rules, so none was changed ({' '.join(err.split())}); run this again, "
                "in case somebody else was just changing the firewall."
            )
    for path in rewritten:
        if plan.files[path] is None:
            restoring.write(module, path, None)
    if reload:
        module.run_command([module.get_bin_path("systemctl", required=True), "daemon-reload"], check_rc=True)


if __name__ == "__main__":
    main()
