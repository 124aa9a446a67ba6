# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a module the documentation comes first)
"""Let the nodes of a cluster through rules of iptables that somebody else owns."""

from __future__ import annotations

DOCUMENTATION = r"""
module: iptables_peers
short_description: Let peers through rules of iptables that somebody else owns
version_added: 0.1.0
description:
  - The peers are accepted in a chain of their own, C(THUNDERHEAD), to which the first rule of C(INPUT) jumps.
  - That happens in every set of rules that drops by default, those of iptables-nft and of iptables-legacy, IPv4 and
    IPv6. Where none does, nothing is done.
  - No other rule and no policy is touched, and nobody's live rules are saved.
  - The chain is restored by C(/etc/thunderhead/iptables.sh). C(thunderhead-iptables.service) runs it at boot, and
    whenever C(netfilter-persistent.service), C(iptables.service), C(ip6tables.service) or C(nftables.service) is
    restarted or reloaded; a plugin of C(netfilter-persistent) runs it where that command is used by hand.
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
  thunderhead.cluster.iptables_peers:
    peers: [192.0.2.11, 2001:db8::11]
    ports: ["29500", "32768-60999"]

- name: Take every rule of the cluster away
  thunderhead.cluster.iptables_peers:
    state: absent
"""

RETURN = r"""
programs:
  description: The programs through whose rules the peers are let in.
  returned: success
  type: list
  elements: str
  sample: [iptables-nft, ip6tables-nft]
msg:
  description: What was found and decided, in one sentence.
  returned: success
  type: str
  sample: "peers let in through iptables-nft: 2"
"""

import os
import re
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import files as restoring
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.iptables import (
    CHAIN,
    JUMP,
    SCRIPT,
    Chains,
    drops,
    rule_sets,
    rules,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import (
    ARGUMENTS,
    REQUIRED_IF,
    networks,
    required_spans,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.run_program import show_unit

UNIT = "/etc/systemd/system/thunderhead-iptables.service"
PLUGIN = "/usr/share/netfilter-persistent/plugins.d/95-thunderhead"

# nftables.service too: iptables-nft can list, and extend, what was written with nft in words that it understands.
OWNERS = "netfilter-persistent.service iptables.service ip6tables.service nftables.service"
# PartOf: a restart of the owner's service takes place before one of ours. WantedBy: so does a start after a stop.
UNIT_TEXT = f"""\
# Written by Thunderhead.
[Unit]
Description=Let the nodes of the cluster through the rules of iptables
After={OWNERS}
PartOf={OWNERS}
ReloadPropagatedFrom={OWNERS}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {SCRIPT}
ExecReload=/bin/sh {SCRIPT}

[Install]
WantedBy=multi-user.target {OWNERS}
"""
# A failure here is not a failure of netfilter-persistent; the unit shows it.
PLUGIN_TEXT = f"""\
#!/bin/sh
# Written by Thunderhead. netfilter-persistent calls it after its own plugins, with start, save or flush.
[ "$1" != start ] || sh {SCRIPT} || :
"""
# One transaction for each set of rules: the chain is never empty while the jump to it is there.
SCRIPT_TEXT = f"""\
#!/bin/sh
# Written by Thunderhead, overwritten by the next setup: lets the cluster's nodes through the administrator's firewall.
status=0
commit() {{ # program; what is to be done with the chain comes on standard input
    jumps=$("$1" --wait -S INPUT | sed -n '/ {JUMP}$/s/^-A/-D/p')
    {{
        printf '*filter\\n:{CHAIN} - [0:0]\\n%s\\n' "$jumps"
        cat
        echo COMMIT
    }} | "$1-restore" --noflush --wait || status=1
}}
"""
OPEN_CALL = r"^commit (\S+) <<'OPEN'$"


class Plan(NamedTuple):
    """What is to be done, and the words for it."""

    script: str  # to be run now; empty: what is live is as it should be
    before: str  # the cluster's live rules, as text
    after: str
    files: restoring.Files  # path -> content; None: no such file
    programs: list[str]  # through whose rules the peers are let in


def known_programs(script: str | None) -> list[str]:
    """Return the programs for which a script opens."""
    return re.findall(OPEN_CALL, script or "", re.MULTILINE)


def make_plan(live: dict[str, Chains], wanted: dict[str, list[str]], files: restoring.Files, has_plugins: bool) -> Plan:
    """Compare what is live and what the files say with what is wanted.

    Args:
        live: the chains of each program that lists any.
        wanted: the rules for the cluster's chain, of these and of known_programs; empty: take everything away.
        files: what SCRIPT, UNIT and PLUGIN hold now.
        has_plugins: whether netfilter-persistent is installed.
    """
    # What the script opens stays open while the administrator's rules are out of force: they may come back.
    known = known_programs(files[SCRIPT])
    opened = {
        program: accepted
        for program, accepted in wanted.items()
        if accepted and (program in known or (program in live and drops(live[program])))
    }
    closed = []
    before: list[str] = []
    after: list[str] = []
    current = True
    for program, chains in live.items():
        present = chains.get(CHAIN)
        jumps = [place for place, rule in enumerate(chains["INPUT"], 1) if rule.endswith(JUMP)]
        before += shown(program, jumps, present)
        after += shown(program, [1], opened[program]) if program in opened else []
        if program in opened:
            current = current and (present, jumps) == (opened[program], [1])
        elif present is not None:
            closed.append(program)
    script = script_text(opened, [])
    now = {program: accepted for program, accepted in opened.items() if program in live}
    return Plan(
        script="" if current and not closed else script_text(now, closed),
        before=restoring.lines(before),
        after=restoring.lines(after),
        files={
            SCRIPT: script if opened else None,
            UNIT: UNIT_TEXT if opened else None,
            PLUGIN: PLUGIN_TEXT if opened and has_plugins else None,
        },
        programs=list(now),
    )


def shown(program: str, jumps: list[int], present: list[str] | None) -> list[str]:
    """Return the cluster's part of a set of rules as text."""
    chain = [] if present is None else [f"{program} -N {CHAIN}", *(f"{program} -A {CHAIN} {rule}" for rule in present)]
    return [*chain, *(f"{program} -I INPUT {place} {JUMP}" for place in jumps)]


def script_text(opened: dict[str, list[str]], closed: list[str]) -> str:
    """Return the script that fills the chain of these programs, and takes it from those."""
    calls = []
    for program, accepted in opened.items():
        rows = [*(f"-A {CHAIN} {rule}" for rule in accepted), f"-I INPUT 1 {JUMP}"]
        calls.append(f"commit {program} <<'OPEN'\n{restoring.lines(rows)}OPEN")
    calls += [f"echo '-X {CHAIN}' | commit {program}" for program in closed]
    return SCRIPT_TEXT + restoring.lines([*calls, "exit $status"])


def main() -> None:
    """Read, plan, apply."""
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    present = module.params["state"] == "present"
    peers, ports = (module.params[name] or [] if present else [] for name in ("peers", "ports"))
    try:
        sources, spans = networks(peers), required_spans(peers, ports)
    except ValueError as error:
        module.fail_json(msg=str(error))
    files = restoring.read((SCRIPT, UNIT, PLUGIN))

    live = rule_sets()
    if present and not live:
        module.fail_json(
            msg="No rules of iptables can be read; install iptables and run this as root (become: true), or set "
            "firewall_provider to none or auto."
        )
    wanted = {program: rules(program, sources, spans) for program in [*live, *known_programs(files[SCRIPT])]}
    plan = make_plan(live, wanted, files, os.path.isdir(os.path.dirname(PLUGIN)))
    unit = show_unit(os.path.basename(UNIT), "UnitFileState", "ActiveState")
    is_off = bool(unit and plan.files[UNIT]) and unit != {"UnitFileState": "enabled", "ActiveState": "active"}
    rewritten = [path for path in files if files[path] != plan.files[path]]
    diff = [{"before_header": "live rules", "after_header": "live rules", "before": plan.before, "after": plan.after}]
    if not module.check_mode:
        apply(module, plan, rewritten, bool(unit), is_off)
    through = f"peers let in through {', '.join(plan.programs)}: {len(set(peers))}"
    nothing = "iptables does not drop packets from the peers" if present else "no rules of the cluster are left"
    module.exit_json(
        changed=bool(plan.script or rewritten or is_off),
        diff=diff + restoring.differences(files, plan.files),
        programs=plan.programs,
        msg=through if plan.programs else nothing,
    )


def apply(module: AnsibleModule, plan: Plan, rewritten: list[str], systemd: bool, is_off: bool) -> None:
    """Carry the plan out. While a rule is live, a file says so: files are written before and removed after."""

    def systemctl(*arguments: str) -> None:
        if systemd:
            module.run_command([module.get_bin_path("systemctl", required=True), *arguments], check_rc=True)

    for path in rewritten:
        if plan.files[path] is not None:
            restoring.write(module, path, plan.files[path], 0o755 if path == PLUGIN else 0o644)
    if plan.script:
        status, _out, err = module.run_command(["/bin/sh"], data=plan.script)
        if status:
            module.fail_json(
                msg=f"iptables refused the cluster's rules ({' '.join(err.split())}); run this again, in case somebody "
                "else was just changing the firewall."
            )
    if UNIT in rewritten and plan.files[UNIT] is None:
        systemctl("disable", "--now", os.path.basename(UNIT))
    for path in rewritten:
        if plan.files[path] is None:
            restoring.write(module, path, None)
    if UNIT in rewritten:
        systemctl("daemon-reload")
    if is_off:
        systemctl("enable", "--now", os.path.basename(UNIT))


if __name__ == "__main__":
    main()
