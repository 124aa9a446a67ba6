# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    NEVER,
    OURS,
    JobFacts,
    as_environment,
    variables,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

NODE = {"rank": 1, "world_size": 3, "master_addr": "198.18.0.1", "master_port": 29500, "interface": "eth0"}
FIXED = {
    "MASTER_ADDR": "198.18.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "3",
    "NODE_RANK": "1",
    "NUM_NODES": "3",
    "PL_TRAINER_NUM_NODES": "3",
    "LT_NUM_NODES": "3",
    "GLOO_SOCKET_IFNAME": "eth0",
    "NCCL_SOCKET_IFNAME": "=eth0",
}
JOB = JobFacts("20261122-173000-train-9f3a", "/opt/thunder head/jobs/20261122-173000-train-9f3a", "1a2b-dirty")
AWKWARD = {
    "empty": "",
    "single quotes": "it's 'quoted'",
    "double quotes": '{"key": "value"}',
    "dollar": "$HOME ${HOME} $(id) `id`",
    "spaces": "  two  words  ",
    "tabs": "\ta\t",
    "newlines": "first\n\nthird\n",
    "line ends of another system": "first\r\nsecond\r",
    "backslashes": "\\n \\\\ \\' C:\\temp\\",
    "unicode": "Zürich 日本 🚀 \u2028 \ufeff",
    "comment": "# not a comment",
    "equals": "a=b=c",
    "shell": "; rm -rf / & | < > ( ) [ ] { } * ? ~ !",
    "template": "{{ 1 + 1 }} {% raw %} {# #}",
    "control characters": "\x01\x1b[31m\x7f",
    "long": "x" * 100_000,
}


def source(text: str, folder: Path) -> dict[str, str]:
    """What a real shell makes of a node.env."""
    path = folder / "node.env"
    path.write_bytes(text.encode())
    dump = (
        "import json, os, sys; json.dump({os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}, sys.stdout)"
    )
    result = subprocess.run(
        ["/bin/sh", "-euc", 'set -a; . "$1"; exec "$2" -I -S -X utf8 -c "$3"', "sh", path, sys.executable, dump],
        env={"LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    assert not result.stderr
    return {name: value for name, value in json.loads(result.stdout).items() if name not in ("LC_ALL", "PWD", "_")}


# ---------------------------------------------------------------------------------------------------- what a user gives


@pytest.mark.parametrize("name", ["A", "_", "_a1", "lower", "WANDB_API_KEY", "RANKS", "MY_LOCAL_RANK", "SLURM"])
def test_names(name: str) -> None:
    assert as_environment({name: "x"}, "env") == {name: "x"}


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\n", "é", "a.b", "A$", 1])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(JobError) as caught:
        as_environment({name: "x"}, "env")
    assert str(caught.value) == (
        f"env has the name {str(name)!r}, which is no environment variable; use letters, digits and underscores, and "
        "no digit first"
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_names_that_follow_from_the_inventory(name: str) -> None:
    with pytest.raises(JobError) as caught:
        as_environment({name: "x"}, "gpu-1: job_env")
    assert str(caught.value) == (
        f"gpu-1: job_env sets {name}, which follows from the inventory; set cluster_address, cluster_master_port or "
        "the order of hosts there instead"
    )


@pytest.mark.parametrize(
    "name",
    ["LOCAL_RANK", "RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_X", "SLURM_NTASKS", "SLURM_JOB_ID"],
)
def test_names_that_make_lightning_hang(name: str) -> None:
    with pytest.raises(JobError) as caught:
        as_environment({name: "0"}, "env")
    assert str(caught.value) == f"env sets {name}, which makes Lightning start no ranks and hang; remove it"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("text", "text"), ("", ""), (0, "0"), (3, "3"), (0.5, "0.5"), (True, "true"), (False, "false"), ("007", "007")],
)
def test_values(value: Any, expected: str) -> None:
    assert as_environment({"A": value}, "env") == {"A": expected}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "env gives A a value that is neither text nor a number; give it a string"),
        ([1], "env gives A a value that is neither text nor a number; give it a string"),
        ({"a": 1}, "env gives A a value that is neither text nor a number; give it a string"),
        ("a\0b", "env gives A a value with a null byte, which no environment can hold"),
        ("a\ud800b", "env gives A a value with half a character, which UTF-8 cannot hold; correct it"),
    ],
)
def test_values_that_are_none(value: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        as_environment({"A": value}, "env")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" \n", {}),
        ("{}", {}),
        ('{"A": "1", "B": "two words"}', {"A": "1", "B": "two words"}),
        ('{\n\t"A": "tab \\t and \\u00e9 and \\ud83d\\ude80 and \\/"\n}', {"A": "tab \t and é and 🚀 and /"}),
        ("A: 1\nB: two words\n", {"A": "1", "B": "two words"}),
        ("A: '007'\nB: |\n  first\n  second\n", {"A": "007", "B": "first\nsecond\n"}),
        ("{A: $HOME, B: it's}", {"A": "$HOME", "B": "it's"}),
    ],
)
def test_a_mapping_as_text(text: str, expected: dict[str, str]) -> None:
    assert as_environment(text, "env") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("A=1", 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        ("A", 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        ("[A, B]", 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        (["A"], 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        (5, 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        (None, 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        ("{A: 1", 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        ("A: b: c", 'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\''),
        (
            "!!python/object:os.system {}",
            'env is no mapping of names to values; give it as -e \'{"env": {"NAME": "value"}}\'',
        ),
    ],
)
def test_no_mapping(value: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        as_environment(value, "env")
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("value", AWKWARD.values(), ids=AWKWARD.keys())
def test_values_arrive_byte_for_byte(tmp_path: Path, value: str) -> None:
    found = variables(NODE, as_environment({"VALUE": value, "ZLAST": "end"}, "env"))
    expected = {**FIXED, "VALUE": value, "ZLAST": "end"}
    assert found == source(environment_text(found), tmp_path) == expected


def test_all_awkward_values_at_once(tmp_path: Path) -> None:
    given = {f"V{number}": value for number, value in enumerate(AWKWARD.values())}
    found = variables(NODE, given)
    assert found == source(environment_text(found), tmp_path) == {**FIXED, **given}


def test_a_job_has_its_name_and_folder_besides(tmp_path: Path) -> None:
    expected = {**FIXED, "JOB_ID": JOB.id, "JOB_DIR": JOB.dir, "JOB_GIT_COMMIT": "1a2b-dirty", "A": "1"}
    expected["JOB_ATTEMPT"] = "1"
    found = variables(NODE, {"A": "1"}, JOB)
    assert found == source(environment_text(found), tmp_path) == expected


def test_what_fabric_run_sets() -> None:
    given = JOB._replace(framework={"LT_DEVICES": 2, "LT_CLI_USED": 1})
    more = variables(NODE, {}, given)
    assert more.items() - variables(NODE, {}, JOB).items() == {("LT_DEVICES", "2"), ("LT_CLI_USED", "1")}


def test_lightning_is_told_the_number_of_nodes_of_a_gang_only() -> None:
    """Nodes that work for themselves still know which of them they are."""
    together, alone = variables(NODE, {}, JOB), variables(NODE, {}, JOB._replace(gang=False))
    assert together.items() - alone.items() == {("PL_TRAINER_NUM_NODES", "3"), ("LT_NUM_NODES", "3")}
    assert alone.items() < together.items()


def test_the_user_wins_over_the_number_of_nodes_that_lightning_is_told() -> None:
    given = as_environment({"PL_TRAINER_NUM_NODES": "1"}, "env")
    assert variables(NODE, given, JOB)["PL_TRAINER_NUM_NODES"] == "1"


def test_without_a_job_and_variables_only_what_is_ours() -> None:
    found = variables(NODE, {})
    assert environment_text(found) == "".join(f"{name}={value}\n" for name, value in FIXED.items())
    assert not [name for name in found if NEVER.match(name)]


def test_the_user_wins_over_the_interface() -> None:
    parsed = variables(NODE, {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth1"})
    assert parsed == {**FIXED, "NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth1"}


def test_the_text_does_not_depend_on_the_order_given() -> None:
    one, other = variables(NODE, {"B": "2", "a": "1", "A": "3"}), variables(NODE, {"A": "3", "B": "2", "a": "1"})
    assert environment_text(one) == environment_text(other)


def test_a_missing_fact_is_an_error_and_not_an_empty_value() -> None:
    with pytest.raises(KeyError, match="interface"):
        variables({name: value for name, value in NODE.items() if name != "interface"}, {})


def test_the_names_that_are_refused_are_those_that_are_written() -> None:
    written = set(variables(NODE, {}, JOB))
    defaults = {"PL_TRAINER_NUM_NODES", "LT_NUM_NODES", "JOB_GIT_COMMIT"}
    assert written - OURS == {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", *defaults}
    assert written >= OURS
