import os
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import make_bundle
from local_nodes import LocalNode, code


def test_artifacts_are_what_the_job_wrote(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import os, helper\n"
        "os.makedirs('out/deep'); os.mkdir('empty'); os.mkfifo('pipe')\n"
        "for name in ('out/deep/b', 'a', 'unchanged'): open(name, 'a').write(name)\n"
        "os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'out/folder')\n"
        "open(b'latin-\\xe9', 'w').close()\n"
    )
    project = tmp_path / "code"
    code(project, script)
    for name in ("helper.py", "data.csv", "unchanged"):
        (project / name).write_text("")
    node.start(make_bundle(project, "train.py", 1))
    assert node.wait()[0]["exit_code"] == 0
    files = [
        (os.fsdecode(name), size)
        for name, size in [(b"a", 1), (b"latin-\xe9", 0), (b"out/deep/b", 10), (b"unchanged", 9)]
    ]
    assert node.ask("artifacts")["files"] == files


def test_links_are_not_read(node: LocalNode, tmp_path: Path) -> None:
    node.run("import os; os.symlink('/etc/passwd', 'link')", tmp_path / "code")
    reply, data = node.channel().call(node.request("read", parts=[["link", 0, 99], ["train.py", 0, 6]]))
    assert (reply["lengths"], data) == ([0, 6], b"import")
