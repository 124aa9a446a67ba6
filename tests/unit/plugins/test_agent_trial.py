"""The environment tried, with a torch of our own making; nvidia-smi played by a shell script."""

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent import trial
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight.smi import parse
from local_nodes import ME, Connection, LocalNode, alive, closed, until

TORCH = """\
import types
print("torch says hello")
__version__ = "2.13.0+cu128"
version = types.SimpleNamespace(cuda="12.8")
nccl = types.SimpleNamespace(version=lambda: (2, 27, 3))
cuda = types.SimpleNamespace(device_count=lambda: 2, is_available=lambda: True, nccl=nccl)
distributed = types.SimpleNamespace(is_nccl_available=lambda: True)
"""
# As a driver before 535 answers: one unknown field at a time.
OLD_SMI = """\
#!/bin/sh
fields=${1#--query-gpu=}
for field in $(echo "$fields" | tr , ' '); do
    case $field in
    clocks_event_reasons.*|remapped_rows.pending)
        echo "Field \\"$field\\" is not a valid field to query."
        echo
        exit 2 ;;
    esac
done
echo "0, Tesla V100-SXM2-16GB, 470.82.01, 16160, 0, 0, No, Not Active, Active, Not Active"
"""


def tried(node: LocalNode, folder: Path | None = None, **more: Any) -> dict[str, Any]:
    variables = [f"PYTHONPATH={folder}"] if folder else []
    asked = {"variables": variables, "imports": [], "seconds": 30.0, **more}
    found: dict[str, Any] = node.ask("facts", **asked)["environment"]
    return found


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "package").mkdir(parents=True)
    (folder / "torch.py").write_text(TORCH)
    (folder / "package" / "__init__.py").write_text("name = 1\n")
    (folder / "package" / "part.py").write_text("")
    (folder / "broken.py").write_text("raise OSError('first line\\nlibgomp.so.1: cannot open shared object file')\n")
    (folder / "leaves.py").write_text("raise SystemExit('go away')\n")
    return folder


def test_torch_and_what_a_script_imports(node: LocalNode, library: Path) -> None:
    wanted = ("package name", "package part", "package none", "broken ", "leaves ", "nope x")
    found = tried(node, library, imports=[name.split(" ") for name in wanted])
    assert found.pop("python").startswith("3.")
    assert found == {
        **{"torch": "2.13.0+cu128", "cuda": "12.8", "nccl": "2.27.3", "devices": 2, "usable": True},
        "failed": {
            "package.none": "ModuleNotFoundError: No module named 'package.none'",
            "broken": "OSError: libgomp.so.1: cannot open shared object file",
            "leaves": "SystemExit: go away",
            "nope.x": "ModuleNotFoundError: No module named 'nope'",
        },
    }
    assert not list(library.rglob("*.pyc"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os\nos._exit(0)\n", "ended Python with exit code 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "was killed by SIGSEGV"),
        ("import time\ntime.sleep(60)\n", "did not finish within the 2 s that all imports have together"),
        ("import os\nos.closerange(3, 99)\n", "ended Python with exit code 1"),
    ],
)
def test_a_module_that_python_does_not_survive(node: LocalNode, library: Path, text: str, why: str) -> None:
    (library / "odd.py").write_text(text)
    wanted = [[name, ""] for name in ("torch", "leaves", "odd", "package")]
    found = tried(node, library, imports=wanted, seconds=2.0)
    assert (found["torch"], found["nccl"], found["usable"]) == ("2.13.0+cu128", "2.27.3", True)
    assert found["failed"] == {"leaves": "SystemExit: go away", "odd": why}
    assert "importing" not in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "import os\nos._exit(0)\n",
            f"has an environment that does not work for {ME}: exited with code 0; remove envs",
        ),
        ("import os\nos.abort()\n", f"has an environment that does not work for {ME}: was killed by SIGABRT; remove"),
        ("import time\ntime.sleep(60)\n", "did not finish importing torch and what the script imports within 1 s; "),
    ],
)
def test_a_torch_that_python_does_not_survive(node: LocalNode, library: Path, text: str, problem: str) -> None:
    (library / "torch.py").write_text(text)
    assert tried(node, library, imports=[["package", ""]], seconds=1.0)["problem"].startswith(problem)


def test_no_torch(node: LocalNode) -> None:
    found = tried(node)
    assert found["torch"] is None
    assert found["failed"] == {"torch": "ModuleNotFoundError: No module named 'torch'"}


def test_the_surroundings_are_a_jobs(node: LocalNode, library: Path) -> None:
    (library / "asks.py").write_text(
        "import os\nraise RuntimeError((os.environ['A'], os.environ['USER'], 'LOCAL_RANK' in os.environ))\n"
    )
    node.connection = Connection({**os.environ, "LOCAL_RANK": "0"})
    value = 'it\'s = \n"quoted"'
    found = tried(node, variables=[f"PYTHONPATH={library}", f"A={value}"], imports=[["asks", ""]])
    assert found["failed"]["asks"] == f"RuntimeError: {(value, ME, False)!r}"


def replaced_python(node: LocalNode, text: str, mode: int = 0o755) -> None:
    python = node.directory / "env" / "bin" / "python"
    python.unlink()
    python.write_text(text)
    python.chmod(mode)


def test_an_environment_that_its_user_may_not_use(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\n", stat.S_IRUSR)
    path = node.directory / "env/bin/python"
    assert tried(node) == {
        "problem": f"has an environment that {ME} may not use: {path} or a folder above it is closed to that account; "
        "chmod it, or remove envs in the cluster_dir there, and run: ansible-playbook setup.yml"
    }


def test_an_environment_that_is_closed_to_ansible(node: LocalNode) -> None:
    request = node.request("facts", variables=[], imports=[], seconds=10)
    with closed(node.directory / "env"):
        problem = trial.try_environment(request)["problem"]
    assert re.match(r"has an environment that \S+ may not use: ", problem)


def test_an_environment_whose_python_is_gone(node: LocalNode) -> None:
    python = node.directory / "env" / "bin" / "python"
    python.unlink()
    python.symlink_to(node.directory / "gone")
    assert tried(node)["problem"].startswith("has an environment that does not work: No such file or directory")


def test_an_environment_that_does_not_start(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\necho one >&2\necho 'Fatal Python error: no encodings' >&2\nexit 1\n")
    assert tried(node)["problem"] == (
        f"has an environment that does not work for {ME}: Fatal Python error: no encodings; remove envs in the "
        "cluster_dir there, and run: ansible-playbook setup.yml"
    )


def test_an_environment_that_says_much_in_one_line(node: LocalNode, library: Path) -> None:
    (library / "wordy.py").write_text("raise RuntimeError('x' * 10000)\n")
    assert tried(node, library, imports=[["wordy", ""]])["failed"]["wordy"] == f"RuntimeError: {'x' * 286}"
    replaced_python(node, f"#!/bin/sh\necho {'x' * 10000} >&2\nexit 1\n")
    assert f"for {ME}: {'x' * 300}; remove" in tried(node)["problem"]


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ("exit 3", f"has an environment that does not work for {ME}: exited with code 3; "),
        ("exec sleep 60", "did not finish importing torch and what the script imports within 1 s; "),
    ],
)
def test_what_an_environment_leaves_behind_is_ended(node: LocalNode, end: str, problem: str) -> None:
    pid = node.directory / "pid"
    replaced_python(node, f"#!/bin/sh\nsleep 60 &\necho $! > {pid}\n{end}\n")
    began = time.monotonic()
    assert tried(node, seconds=1.0)["problem"].startswith(problem)
    assert time.monotonic() - began < 10
    until(lambda: not alive(int(pid.read_text())))


def test_an_environment_that_babbles(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\necho what?\n")
    assert tried(node)["problem"].startswith("has an environment that does not work: ")
    replaced_python(node, "#!/bin/sh\necho 7\n")
    assert tried(node)["problem"].startswith("has an environment that does not work: it printed 7 as it started; ")


@pytest.mark.parametrize(
    "line",
    [
        *(
            '{"devices": -1}',
            '{"host": 1}',
            '{"failed": {"a": 1}}',
            '{"torch": 7}',
            '{"usable": "yes"}',
            '{"cuda": NaN}',
        ),
        *("[" * 5000 + "]" * 5000, '{"importing": ["a"]}', '{"failed": []}', "[]", "?"),
    ],
    ids=lambda line: line[:20],
)
def test_a_module_that_tells_something_else(node: LocalNode, library: Path, line: str) -> None:
    (library / "torch.py").write_text(f"import __main__\nprint({line!r}, file=__main__.out, flush=True)\n{TORCH}")
    assert tried(node, library)["problem"].startswith("has an environment that does not work: ")


def test_an_environment_that_takes_too_long(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\nexec sleep 60\n")
    assert tried(node, seconds=0.5)["problem"].startswith(
        "did not finish importing torch and what the script imports within 0 s"
    )


# ----------------------------------------------------------------------------------------------------------------- GPUs


def with_smi(node: LocalNode, folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    node.connection = Connection({**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})
    found: dict[str, Any] = node.ask("facts", variables=[], imports=None, seconds=30.0)["gpus"]
    return found


def test_fields_that_an_old_driver_does_not_know(node: LocalNode, tmp_path: Path) -> None:
    found = with_smi(node, tmp_path / "bin", OLD_SMI)
    assert found["problem"] == ""
    assert "remapped_rows.pending" not in found["fields"]
    (gpu,) = parse(found)
    assert (gpu.model, gpu.driver, gpu.total_mb) == ("Tesla V100-SXM2-16GB", "470.82.01", 16160)
    assert (gpu.ecc_errors, gpu.pages_pending, gpu.slowdowns) == (0, False, ("sw_thermal_slowdown",))


def test_a_driver_that_does_not_answer_well(node: LocalNode, tmp_path: Path) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    found = with_smi(node, tmp_path / "bin", f'#!/bin/sh\necho "{said}"\nexit 9\n')
    assert (found["csv"], found["problem"]) == ("", f"nvidia-smi says: {said}")


def test_no_gpu(node: LocalNode) -> None:
    found = node.ask("facts", variables=[], imports=None, seconds=30.0)["gpus"]
    assert (found["count"], found["csv"], found["problem"]) == (0, "", "")
