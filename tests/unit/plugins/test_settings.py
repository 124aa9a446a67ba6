# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.thunderhead.cluster.plugins.action import job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import SPEC, NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "inventory" / "sample" / "hosts.yml"


def read(host: str = "gpu-1", **variables: Any) -> NodeSettings:
    return NodeSettings.from_variables(host, variables, lambda value: value)


def test_defaults() -> None:
    assert read() == NodeSettings(
        host="gpu-1", address=None, directory="/opt/thunderhead", master_port=29500, user="thunderhead", env={}
    )
    assert read(**dict.fromkeys(SPEC)) == read(), "null in the inventory is the same as nothing"


@pytest.mark.parametrize(
    ("variables", "field", "expected"),
    [
        ({"cluster_address": "198.18.0.7"}, "address", "198.18.0.7"),
        ({"ansible_host": "198.18.0.8"}, "address", "198.18.0.8"),
        ({"ansible_host": "198.18.0.8", "cluster_address": "198.18.0.7"}, "address", "198.18.0.7"),
        ({"ansible_host": "gpu-1.example.org"}, "address", None),
        ({"ansible_host": "gpu-1.example.org", "cluster_address": "2001:2::7"}, "address", "2001:2::7"),
        ({"cluster_address": "2001:DB8:0::7"}, "address", "2001:db8::7"),
        ({"ansible_host": "2001:DB8::7"}, "address", "2001:db8::7"),
        ({"cluster_dir": "/srv/cluster/"}, "directory", "/srv/cluster"),
        ({"cluster_dir": "/"}, "directory", "/"),
        ({"cluster_dir": "//srv//./cluster"}, "directory", "/srv/cluster"),
        ({"cluster_master_port": 1}, "master_port", 1),
        ({"cluster_master_port": "65535"}, "master_port", 65535),
        ({"job_user": ""}, "user", ""),
        ({"job_user": "train"}, "user", "train"),
        ({"job_env": {"NCCL_DEBUG": "WARN", "N": 3}}, "env", {"NCCL_DEBUG": "WARN", "N": "3"}),
        ({"job_env": '{"NCCL_DEBUG": "WARN"}'}, "env", {"NCCL_DEBUG": "WARN"}),
    ],
)
def test_values(variables: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(read(**variables), field) == expected


def test_a_host_named_by_its_address_needs_no_other() -> None:
    assert read("198.18.0.9").address == "198.18.0.9"


def test_values_are_templated_in_the_context_of_the_host() -> None:
    from ansible.template import trust_as_template

    variables = {
        "base": "/srv",
        "cluster_dir": trust_as_template("{{ base }}/x"),
        "unused": trust_as_template("{{ z }}"),
    }
    templar = Templar(loader=DataLoader(), variables=variables)
    assert NodeSettings.from_variables("gpu-1", variables, templar.template).directory == "/srv/x"


@pytest.mark.parametrize("name", ["cluster_dir", "cluster_address", "job_env", "ansible_host"])
def test_a_template_that_cannot_be_resolved(name: str) -> None:
    from ansible.template import trust_as_template

    variables = {name: trust_as_template("{{ base }}/x")}
    templar = Templar(loader=DataLoader(), variables=variables)
    with pytest.raises(JobError) as caught:
        NodeSettings.from_variables("gpu-1", variables, templar.template)
    assert str(caught.value) == f"gpu-1: {name} cannot be resolved: 'base' is undefined; correct it in the inventory"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        *[
            (
                {"cluster_master_port": port},
                f"gpu-1: cluster_master_port is {port}; set a TCP port from 1 to 65535 in the inventory",
            )
            for port in (0, -1, 65536, 2950000)
        ],
        (
            {"cluster_dir": "relative/path"},
            "gpu-1: cluster_dir is relative/path; set an absolute path in the inventory, without .. in it",
        ),
        ({"cluster_dir": ""}, "gpu-1: cluster_dir is empty; set an absolute path in the inventory, without .. in it"),
        (
            {"cluster_dir": "~/cluster"},
            "gpu-1: cluster_dir is ~/cluster; set an absolute path in the inventory, without .. in it",
        ),
        (
            {"cluster_dir": "/srv/../etc"},
            "gpu-1: cluster_dir is /srv/../etc; set an absolute path in the inventory, without .. in it",
        ),
        *[
            (
                {"cluster_address": address},
                f"gpu-1: cluster_address is {address}; set an IPv4 or IPv6 address in the inventory",
            )
            for address in ("gpu-1.example.org", "198.18.0.1/24", "198.18.0.256", "198.18.0.01")
        ],
        (
            {"job_env": ["A=1"]},
            'gpu-1: job_env is no mapping of names to values; give it as -e \'{"job_env": {"NAME": "value"}}\'',
        ),
        *[
            (
                {"job_user": user},
                f"gpu-1: job_user is {user}, which is no name of an account; set one in the inventory",
            )
            for user in ("65534", "-x", "a:b")
        ],
        (
            {"job_env": {"LOCAL_RANK": "0"}},
            "gpu-1: job_env sets LOCAL_RANK, which makes Lightning start no ranks and hang; remove it",
        ),
    ],
)
def test_values_that_cannot_be_used(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        read(**variables)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("variables", "pattern"),
    [
        (
            {"cluster_master_port": "http"},
            r"gpu-1: argument 'cluster_master_port' is of type \S+ and .*; set it in the inventory",
        ),
        (
            {"cluster_master_port": [29500]},
            r"gpu-1: argument 'cluster_master_port' is of type \S+ and .*; set it in the inventory",
        ),
    ],
)
def test_types_that_do_not_fit(variables: dict[str, Any], pattern: str) -> None:
    with pytest.raises(JobError) as caught:
        read(**variables)
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)


# -------------------------------------------------------------------------------------- inventory/sample, the reference


def sample_variables() -> dict[str, Any]:
    """What inventory/sample shows under comments: each variable and its value there."""
    blocks = re.findall(r"(?m)^    # ([a-z_]+:(?: .*)?\n(?:    #   .*\n)*)", SAMPLE.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for block in blocks:
        found |= yaml.safe_load(block.replace("    # ", ""))
    return found


def role_defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in ROOT.glob("roles/*/defaults/main.yml"):
        found |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return found


def given_by_playbooks() -> set[str]:
    """Names that setup.yml hands to roles."""
    _required, _looks, changes = yaml.safe_load((ROOT / "playbooks" / "setup.yml").read_text(encoding="utf-8"))
    return {name for task in changes["tasks"] for name in task["vars"]}


def read_by_playbooks() -> set[str]:
    """Settings that playbooks read themselves (the names of users' -e variables have no prefix)."""
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("playbooks/*.yml"))
    return set(re.findall(r"(?<![a-z.])(?:job|preflight)_[a-z_]+", text))


EXAMPLES = {"cluster_address": "10.0.0.11", "job_env": {"NCCL_DEBUG": "WARN"}}
"""Commented with an example, because it has no default."""
NOT_TO_BE_SET = {"python_env_uv_version"}
"""Tested together with the role."""
IN_WORDS = {"python_env_requirements": "requirements.txt of this repository"}


def test_the_sample_shows_the_defaults_of_the_engine() -> None:
    shown = sample_variables()
    assert {name: shown[name] for name in EXAMPLES} == EXAMPLES
    for name in EXAMPLES:
        assert not SPEC[name]["default"]
    expected = {name: spec["default"] for name, spec in SPEC.items() if name not in EXAMPLES}
    assert {name: shown[name] for name in expected} == expected


def test_the_sample_shows_the_defaults_of_the_action() -> None:
    shown = sample_variables()
    run = (ROOT / "playbooks" / "run.yml").read_text(encoding="utf-8")
    arguments = dict(re.findall(r"(?m)^ +([a-z_]+): \"{{ (job_[a-z_]+) \| default\(omit\) }}\"$", run))
    assert len(arguments) == 7
    for argument, variable in arguments.items():
        assert shown[variable] == job.ActionModule.ARGUMENTS[argument]["default"]


def test_the_sample_shows_the_defaults_of_the_roles() -> None:
    shown, defaults = sample_variables(), role_defaults()
    assert {name: shown[name] for name in IN_WORDS} == IN_WORDS
    compared = (shown.keys() & defaults.keys()) - IN_WORDS.keys()
    assert len(compared) > 5
    assert {name: shown[name] for name in compared} == {name: defaults[name] for name in compared}


def test_every_public_variable_is_in_the_sample_and_none_besides() -> None:
    public = SPEC.keys() | read_by_playbooks() | (role_defaults().keys() - given_by_playbooks())
    assert set(sample_variables()) == public - NOT_TO_BE_SET


def test_what_the_sample_shows_is_a_valid_inventory() -> None:
    text = re.sub(r"(?m)^    # ([a-z_]+:|  [A-Z_]+:)", r"    \1", SAMPLE.read_text(encoding="utf-8"))
    variables = yaml.safe_load(text)["cluster"]["vars"]
    settings = read(**{**variables, "ansible_host": "198.51.100.11"})
    assert settings.address == "10.0.0.11"
    assert settings.env == {"NCCL_DEBUG": "WARN"}
