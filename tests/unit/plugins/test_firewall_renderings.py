# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""One list of peers and ports in the words of every firewall; listings are as the programs of Debian 12 print them."""

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import firewalld, iptables, nftables, ufw
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import (
    multiports,
    networks,
    required_spans,
    spans,
)

PORTS = spans(["32768-60999", "29500"])


# --- peers and ports ---


@pytest.mark.parametrize(
    ("peers", "covers"),
    [
        (["198.18.0.10", "198.18.0.11", "198.18.0.10"], ["198.18.0.10/31"]),
        (["198.18.0.11", "198.18.0.12"], ["198.18.0.11", "198.18.0.12"]),
        ([f"198.18.0.{n}" for n in range(256)], ["198.18.0.0/24"]),
        (["fd00::11", "198.18.0.1", "fd00::10"], ["198.18.0.1", "fd00::10/127"]),
        ([], []),
    ],
)
def test_networks_hold_the_peers_and_nobody_else(peers: list[str], covers: list[str]) -> None:
    assert networks(peers) == covers


def test_hundreds_of_neighbours_are_few_networks() -> None:
    assert len(networks([f"198.18.{n // 250}.{n % 250 + 1}" for n in range(500)])) < 30


def test_peers_need_ports() -> None:
    assert required_spans([], []) == []
    with pytest.raises(ValueError, match="ports is empty although there are peers"):
        required_spans(["198.18.0.1"], [])


def test_a_rule_names_fifteen_ports_at_most() -> None:
    assert multiports(PORTS) == ["29500,32768:60999"]
    assert multiports(spans([str(port) for port in range(1, 35, 2)])) == [
        "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29",
        "31,33",
    ]
    assert [group.count(":") for group in multiports(spans([f"{n}-{n + 1}" for n in range(10, 40, 3)]))] == [7, 3]


# --- firewalld ---

LISTING = """\
block
  target: %%REJECT%%
  rich rules: 

public (active)
  target: DROP
  interfaces: eth0
  sources: 
  services: dhcpv6-client ssh
  ports: 9100/tcp
  rich rules: 
	rule family="ipv4" source address="198.18.20.0/24" port port="29500" protocol="tcp" drop
	rule priority="-29500" family="ipv4" source address="198.18.20.10/31" port port="29500" protocol="tcp" accept
	rule priority="-29500" family="ipv4" source address="198.18.20.99" port port="29500" protocol="tcp" accept
"""
OPEN = firewalld.rules(["198.18.20.10/31"], spans(["29500"]))


def test_rules_are_written_as_firewalld_lists_them() -> None:
    four = 'rule priority="-29500" family="ipv4" source address="198.18.20.12" port port="{}" protocol="tcp" accept'
    six = 'rule priority="-29500" family="ipv6" source address="fd00::10/127" port port="{}" protocol="tcp" accept'
    assert firewalld.rules(["198.18.20.12", "fd00::10/127"], PORTS) == [
        rule.format(port) for rule in (four, six) for port in ("29500", "32768-60999")
    ]


@pytest.mark.parametrize("heading", ["public (active)", "public (default, active)"])  # firewalld 1 and 2
def test_zones(heading: str) -> None:
    zones = firewalld.parse_zones(LISTING.replace("public (active)", heading))
    assert {name: (zone.is_active, len(zone.rules)) for name, zone in zones.items()} == {
        "block": (False, 0),
        "public": (True, 2),
    }
    assert OPEN[0] in zones["public"].rules


def test_only_differences_are_named() -> None:
    zones = firewalld.parse_zones(LISTING)
    stale = {"zone": "public", "rule": OPEN[0].replace("10/31", "99")}
    assert firewalld.compare(zones, zones, "public", OPEN) == {"missing": [], "stale": [stale]}
    assert firewalld.compare(zones, zones, "block", OPEN) == {
        "missing": [{"zone": "block", "rule": OPEN[0]}],
        "stale": [stale],
    }


def test_a_rule_counts_only_if_it_is_in_force_and_stays() -> None:
    zones, none = firewalld.parse_zones(LISTING), firewalld.parse_zones("block\n\npublic (active)\n")
    missing = [{"zone": "public", "rule": OPEN[0]}]
    for now, later in ((zones, none), (none, zones)):
        found = firewalld.compare(now, later, "public", OPEN)
        assert found["missing"] == missing and [entry["rule"] for entry in found["stale"]] != []


def test_firewalld_that_does_not_run_has_only_stale_rules() -> None:
    found = firewalld.compare({}, firewalld.parse_zones(LISTING), "", [])
    assert (len(found["missing"]), len(found["stale"])) == (0, 2)


# --- ufw ---

ADDED = """\
Added user rules (see 'ufw status' for running firewall):
ufw allow from 198.18.21.10/31 to any port 29500,32768:60999 proto tcp comment 'thunderhead'
ufw allow from 198.18.21.99 to any port 29500,32768:60999 proto tcp comment 'thunderhead'
ufw allow 22/tcp
ufw allow from 198.18.21.5 to any port 29500,32768:60999 proto tcp
ufw deny from 198.18.21.0/24 to any port 29500 proto tcp
ufw allow from fd00::10/127 to any port 29500,32768:60999 proto tcp comment 'thunderhead'
"""


def rule(network: str) -> dict[str, str]:
    return {"network": network, "ports": "29500,32768:60999"}


NUMBERED = """\
Status: active

     To                         Action      From
     --                         ------      ----
[ 1] 29500,32768:60999/tcp      ALLOW IN    198.18.21.10/31            # thunderhead
[ 2] 22/tcp                     ALLOW IN    Anywhere                   # as fd00::1 does
[ 3] 29500/tcp                  DENY IN     fd00::/64
[ 4] 22/tcp (v6)                ALLOW IN    Anywhere (v6)
"""


def test_ufw_is_told_only_what_differs() -> None:
    wanted = ["198.18.21.10/31", "198.18.21.12", "fd00::10/127", "fd00::99"]
    assert ufw.compare(ADDED, NUMBERED, wanted, PORTS) == {
        "missing": [{**rule("fd00::99"), "position": 3}, {**rule("198.18.21.12"), "position": 1}],
        "stale": [rule("198.18.21.99")],
    }


@pytest.mark.parametrize(
    ("rules", "four", "six"),
    [
        ("", None, None),
        ("[ 1] 22/tcp                     ALLOW IN    Anywhere\n", 1, None),
        ("[ 1] 2001:db8::10 22/tcp        ALLOW IN    Anywhere\n", None, 1),
        (NUMBERED, 1, 3),
    ],
)
def test_where_the_rules_of_a_family_begin(rules: str, four: int | None, six: int | None) -> None:
    assert ufw.first_positions(rules) == {False: four, True: six}


def test_the_administrators_own_rule_is_neither_missing_nor_stale() -> None:
    assert ufw.compare(ADDED, "", ["198.18.21.5"], PORTS)["missing"] == []
    assert rule("198.18.21.5") not in ufw.compare(ADDED, "", [], [])["stale"]


# --- iptables ---

DROPPING = """\
-P INPUT DROP
-P FORWARD DROP
-P OUTPUT ACCEPT
-N THUNDERHEAD
-A INPUT -j THUNDERHEAD
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A THUNDERHEAD -s 198.18.22.10/31 -p tcp -m multiport --dports 29500,32768:60999 -j ACCEPT
"""


def chains(*rules: str, policy: str = "ACCEPT") -> iptables.Chains:
    return iptables.parse_chains("\n".join([f"-P INPUT {policy}", "-N own", *rules]))


def test_chains() -> None:
    found = iptables.parse_chains(DROPPING)
    assert found["INPUT"][0] == "-j THUNDERHEAD" and found["INPUT"][-1] == "-j DROP"
    assert found["THUNDERHEAD"] == iptables.rules("iptables-nft", ["198.18.22.10/31", "fd00::1"], PORTS)


def test_each_family_has_its_own_rules() -> None:
    (four,) = iptables.rules("iptables-legacy", ["198.18.22.12", "fd00::1"], PORTS)
    (six,) = iptables.rules("ip6tables-nft", ["198.18.22.12", "fd00::1"], PORTS)
    assert (four.split()[1], six.split()[1]) == ("198.18.22.12/32", "fd00::1/128")


@pytest.mark.parametrize(
    ("found", "drops"),
    [
        (chains(), False),
        (chains(policy="DROP"), True),
        (chains("-A INPUT -j REJECT --reject-with icmp-port-unreachable"), True),
        (chains('-A INPUT -i eth0 -m comment --comment "all the rest" -j DROP'), True),
        (chains("-A INPUT -j own", "-A own -p tcp -j DROP"), True),
        (chains("-A INPUT -g own", "-A own -j RETURN", "-A own -j DROP"), False),
        (chains("-A INPUT -j own", "-A own -j INPUT", "-A own -j own"), False),
        (chains("-A INPUT -j ACCEPT", policy="DROP"), False),
        (chains("-A INPUT -i lo -j ACCEPT", policy="DROP"), True),
        (chains("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A INPUT -j DROP"), True),
        (chains("-A INPUT -m conntrack --ctstate INVALID,NEW -j DROP"), True),
        (chains("-A INPUT -m state --state NEW -j REJECT --reject-with icmp-port-unreachable"), True),
        (chains("-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"), True),
        (chains("-A INPUT ! -i lo -j DROP"), True),
        (chains("-A INPUT -m conntrack --ctstate NEW -j ACCEPT", policy="DROP"), False),
        (chains("-A INPUT -s 192.0.2.1/32 -j REJECT --reject-with icmp-port-unreachable"), False),
        (chains("-A INPUT -m conntrack --ctstate INVALID -j DROP"), False),
        (chains("-A INPUT -p tcp -m multiport --dports 22 -j own", "-A own -j DROP"), False),
    ],
)
def test_what_becomes_of_a_packet_that_no_rule_names(found: iptables.Chains, drops: bool) -> None:
    assert iptables.drops(found) is drops


def test_legacy_programs_are_asked_only_where_there_are_legacy_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {f"{name}{variant}" for name in ("iptables", "ip6tables") for variant in ("", "-nft", "-legacy")}

    def programs(tables: list[str], installed: set[str] = both) -> list[str]:
        monkeypatch.setattr(iptables, "legacy_tables", lambda _path: tables)
        monkeypatch.setattr(iptables, "find", lambda name: name if name in installed else None)
        return iptables.programs()

    assert programs([]) == ["iptables-nft", "ip6tables-nft"]
    assert programs(["nat"]) == ["iptables-nft", "ip6tables-nft"]
    assert programs(["filter"]) == ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"]
    assert programs([], {"iptables"}) == ["iptables"]
    assert programs([], set()) == []


def test_no_legacy_tables_without_the_kernels_list(tmp_path) -> None:
    (tmp_path / "names").write_text("filter\nnat\n")
    assert iptables.legacy_tables(str(tmp_path / "names")) == ["filter", "nat"]
    assert iptables.legacy_tables(str(tmp_path / "none")) == []


# --- nftables ---


@pytest.mark.parametrize(
    ("chain", "by_iptables", "filters"),
    [
        (
            '"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input"',
            {"ip", "ip6"},
            True,
        ),
        (
            '"family": "inet", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input"',
            {"ip", "ip6"},
            True,
        ),
        ('"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input"', {"ip", "ip6"}, False),
        ('"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input"', {"ip6"}, True),
        ('"family": "ip", "table": "own", "name": "INPUT", "type": "filter", "hook": "input"', {"ip", "ip6"}, True),
        ('"family": "inet", "table": "filter", "name": "forward", "type": "filter", "hook": "forward"', set(), False),
        ('"family": "ip", "table": "nat", "name": "pre", "type": "nat", "hook": "input"', set(), False),
        ('"family": "bridge", "table": "filter", "name": "input", "type": "filter", "hook": "input"', set(), False),
        ('"family": "inet", "table": "filter", "name": "mine"', set(), False),
    ],
)
def test_whether_nftables_filters(chain: str, by_iptables: set[str], filters: bool) -> None:
    listing = f'{{"nftables": [{{"metainfo": {{}}}}, {{"chain": {{{chain}}}}}]}}'
    assert nftables.filters(listing, by_iptables) is filters


def test_the_families_that_iptables_nft_shows() -> None:
    assert iptables.nft_families(["iptables-nft", "ip6tables-nft", "iptables-legacy"]) == {"ip", "ip6"}
    assert iptables.nft_families(["iptables-legacy", "ip6tables"]) == {"ip6"}
