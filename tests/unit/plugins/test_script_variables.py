# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User, job_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.start_script import expand_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import OURS
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.script_variables import (
    ACCOUNT,
    require_known,
    variables_of,
)


def refused(*args: str, checkpoint: str = "", **env: str) -> str:
    with pytest.raises(JobError) as caught:
        require_known(args, env, {"node0": {"ON_ALL": "", "ON_ONE": ""}, "node1": {"ON_ALL": ""}}, checkpoint)
    return str(caught.value)


def test_names_that_a_job_has() -> None:
    args = ["--n=$NUM_NODES", "${NODE_RANK}x$A", "$ON_ALL", "$HOME/data", "$CKPT_PATH", *(f"${name}" for name in OURS)]
    require_known(args, {"A": "1"}, {"node0": {"ON_ALL": ""}}, "last.ckpt")


@pytest.mark.parametrize(
    "word",
    ["$$NOBODYS", "$$$$", "a$", "^x$|^y$", "$5", "$(id)", "${", "${}", "${now:%Y}", "${model.lr}", "${oc.env:X}"],
)
def test_dollars_that_name_no_variable_stay(word: str) -> None:
    require_known([word], {}, {"node0": {}}, "")
    assert expand_variables(word.encode(), {b"A": b"b"}) == word.replace("$$", "$").encode()


def test_a_name_that_no_variable_has() -> None:
    assert refused("--data", "$DATA_DIR/x", A="1") == (
        "script_args names $DATA_DIR, but the job has no variable of that name; set it with env or job_env, write "
        "$$DATA_DIR for a dollar as it is, or name one of A, GLOO_SOCKET_IFNAME, HOME, JOB_ATTEMPT, JOB_DIR, "
        "JOB_GIT_COMMIT, JOB_ID, LT_NUM_NODES, MASTER_ADDR, MASTER_PORT, NCCL_SOCKET_IFNAME, NODE_RANK, NUM_NODES, "
        "ON_ALL, PL_TRAINER_NUM_NODES, USER, WORLD_SIZE"
    )
    for word in ("$RANK", "$LOCAL_RANK", "${NODE_RANKS}", "$$$DATA_DIR"):
        assert "the job has no variable of that name; set it" in refused(word)


def test_a_name_that_has_no_value_on_some_node() -> None:
    assert "names $ON_ONE, but the job has no variable of that name on node1; set it" in refused("$ON_ONE")
    require_known(["$ON_ONE"], {"ON_ONE": ""}, {"node0": {}, "node1": {}}, "")


def test_a_checkpoint_that_there_is_not() -> None:
    assert refused("--ckpt_path=$CKPT_PATH") == (
        "script_args names $CKPT_PATH, but this job goes on from no checkpoint; leave it out, or name the job to go on "
        "from with -e resume=ID"
    )


def test_what_only_a_shell_can_do() -> None:
    assert refused("${ON_ALL:-/data}") == (
        "script_args has ${ON_ALL:…, but of what a shell knows only $NAME and ${NAME} are replaced; write ${ON_ALL}, "
        "or $${ON_ALL:… if the script is to see it as it is"
    )


def test_the_account_s_variables() -> None:
    me = User("")
    assert {name.decode() for name in job_environment(me, "/python", {})} == set(ACCOUNT)
    assert variables_of({}, "") >= set(ACCOUNT) | OURS


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (b"$A", b"b"),
        (b"${A}${A}", b"bb"),
        (b"$A_$AB$A", b"$A_$ABb"),
        (b"$$A", b"$A"),
        (b"$$$A", b"$b"),
        (b"$E.", b"$A."),
        (b"\xff$A\xff", b"\xffb\xff"),
        (b"${A", b"${A"),
    ],
)
def test_a_word_with_variables(word: bytes, value: bytes) -> None:
    assert expand_variables(word, {b"A": b"b", b"E": b"$A"}) == value
