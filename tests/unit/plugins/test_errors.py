import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import in_one


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["node1 is down"], "node1 is down. Nothing was started."),
        (["node1 is down", "node2 is full"], "node1 is down\nnode2 is full\nNothing was started."),
    ],
)
def test_in_one(sentences: list[str], expected: str) -> None:
    assert str(in_one((Exception(sentence) for sentence in sentences), "Nothing was started.")) == expected
