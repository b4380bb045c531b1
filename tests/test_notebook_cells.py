"The plugin that makes tests of cells, tested on notebooks made for the purpose."
import json, os, re, subprocess, sys, time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ["pytester"]


def notebook(path, *cells):
    "Write a notebook; strings that begin with # and a space are headings, others code."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type="markdown", id=f"c{i}", metadata={}, source=[c]) if c.startswith("# ") else
        dict(cell_type="code", id=f"c{i}", metadata={}, source=c.splitlines(True), outputs=[], execution_count=None)
        for i, c in enumerate(cells)])))


def started(folder, *args):
    "pytest with the plugin in a folder of its own."
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "tests.notebook_cells", "-p", "no:cacheprovider",
                           "-v", "-ra", *args], cwd=folder, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True,
                          capture_output=True, timeout=120)


def outcomes(printed):
    "{test: PASSED, FAILED, SKIPPED} of what pytest printed line by line; xdist says the worker and the outcome first."
    plain = {a: b for a, b in re.findall(r"^(\S+\.ipynb::.+?) (PASSED|FAILED|SKIPPED)\b", printed, re.M)}
    return plain | {a: b for b, a in re.findall(r"^\[gw\d\].*?(PASSED|FAILED) (\S+\.ipynb::.+?)\s*$", printed, re.M)}


HANG = """import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
open('{pid}', 'w').write(str(child.pid))
while True:
    try: time.sleep(300)
    except BaseException: pass
assert 1"""
SEVERAL = dict(
    named=("# Sums", "x = 2", "assert x == 2", "# Words about gradual", "y = x + 1\nassert y == 3", "assert y",
           "print(y)"),
    fails=("# One", "assert 1", "# Two", "value = 41\nassert value == 42, 'not the answer'", "# Three", "assert 1"),
    broken=("# One", "1/0", "assert 1"),
    hangs=("# Hang", HANG, "# After", "assert 1"),
    patient=("# Long", "#| timeout: 60\nimport time; time.sleep(9)\nassert 1"),
    dies=("# Crash", "import os; os._exit(7)\nassert 1"),
    flagged=("# Plain", "assert 1", "# Night", "#| slow\nassert 0", "# Morning", "assert 1"),
    asleep=("# One", "#| eval: false\nassert 0", "assert 1"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    "(outcomes by notebook and test, what was printed, folder, seconds) of many small notebooks run at once."
    tmp = tmp_path_factory.mktemp("several")
    for name, cells in SEVERAL.items():
        notebook(tmp/f"{name}.ipynb", *(c.replace("{pid}", str(tmp/"pid")) for c in cells))
    began, done = time.monotonic(), started(tmp, "--cell-timeout", "8")
    found = {name: {} for name in SEVERAL}
    for test, outcome in outcomes(done.stdout).items():
        name, test = test.split(".ipynb::")
        found[name][test] = outcome
    return found, done.stdout, tmp, time.monotonic() - began


def test_asserting_cells_are_named_tests(several):
    assert several[0]["named"] == {"Sums": "PASSED", "Words about gradual [1]": "PASSED",
                                   "Words about gradual [2]": "PASSED", "runs to the end": "PASSED"}


def test_failing_cell_fails_with_its_source_and_later_ones_are_skipped(several):
    found, printed, *_ = several
    assert found["fails"] == {"One": "PASSED", "Two": "FAILED", "Three": "SKIPPED"}
    assert re.search(r"fails\.ipynb, cell 3 under 'Two':\n\n.*\n +2 assert value == 42, 'not the answer'\n", printed)


def test_error_in_a_cell_without_assertion_counts(several):
    assert several[0]["broken"] == {"One": "FAILED"} and "ZeroDivisionError" in several[1]


def test_hanging_cell_is_stopped_with_its_children(several):
    found, printed, tmp, seconds = several
    assert found["hangs"] == {"Hang": "FAILED", "After": "SKIPPED"}
    assert "took longer than 8 seconds" in printed and seconds < 100
    if os.name == "posix" and Path("/proc").exists():
        state = Path(f"/proc/{(tmp/'pid').read_text()}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z", "the hung cell's child is still running"


def test_a_cell_can_ask_for_its_own_limit(several): assert several[0]["patient"] == {"Long": "PASSED"}


def test_dying_process_is_a_failure(several):
    assert several[0]["dies"] == {"Crash": "FAILED"} and "the process ended (exit code 7)" in several[1]


def test_cells_not_meant_to_run(several): assert several[0]["asleep"] == {"One": "PASSED"}


def test_flagged_cells_are_reported_skipped_unless_asked_for(several, tmp_path):
    assert several[0]["flagged"] == {"Plain": "PASSED", "Night": "SKIPPED", "Morning": "PASSED"}
    assert "flagged slow" in several[1]
    notebook(tmp_path/"a.ipynb", *SEVERAL["flagged"])
    found = outcomes(started(tmp_path, "--flags", "slow").stdout)
    assert found == {"a.ipynb::Plain": "PASSED", "a.ipynb::Night": "FAILED", "a.ipynb::Morning": "SKIPPED"}


def test_chosen_tests_run_what_is_before_them_and_are_found_by_names_in_their_source(tmp_path):
    notebook(tmp_path/"a.ipynb", "# One", "x = 2", "assert x == 2", "# Two", "x += 1", "assert x == 3")
    notebook(tmp_path/"b.ipynb", "# One", "def discriminative(): return 1", "assert discriminative()", "assert 1")
    done = started(tmp_path, "-k", "Two or discriminative")
    assert outcomes(done.stdout) == {"a.ipynb::Two": "PASSED", "b.ipynb::One [1]": "PASSED"}
    assert "2 deselected" in done.stdout


def test_unknown_flag_is_refused(tmp_path):
    assert started(tmp_path, "--flags", "slwo").returncode == pytest.ExitCode.USAGE_ERROR


def test_unreadable_notebook_is_an_error(tmp_path):
    (tmp_path/"bad.ipynb").write_text('{"cells": [')
    done = started(tmp_path)
    assert "bad.ipynb is not a readable notebook" in done.stdout and "1 error" in done.stdout


def test_works_under_xdist_by_notebook(tmp_path):
    for name in "abc":
        notebook(tmp_path/f"{name}.ipynb", "# One", "import os\nn = [os.getpid()]", "assert len(n) == 1",
                 "n.append(1)\nassert len(n) == 2")
    done = started(tmp_path, "-n", "2", "--dist", "loadfile")
    assert list(outcomes(done.stdout).values()) == ["PASSED"]*6, done.stdout


def test_slowest_files_come_first_whatever_the_number_of_their_tests(pytester, monkeypatch):
    "With the options of this project; xdist's own order would be: most tests first."
    import tomllib
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"].split()
    (pytester.path/"table.json").write_text(json.dumps({"test_slow.py": 50, "test_quick.py": 1, "test_middle.py": 9}))
    for name, n in dict(quick=3, slow=1, middle=2).items():
        body = "\n".join(f"def test_{i}(): open('order', 'a').write('{name} ')" for i in range(n))
        (pytester.path/f"test_{name}.py").write_text(body)
    (pytester.path/"conftest.py").write_text("import tests.slowest_first as s\nfrom pathlib import Path\n"
                                             "s.TABLE = Path(__file__).with_name('table.json')\n")
    args = ("-p", "tests.notebook_cells", "-p", "tests.slowest_first", "-p", "no:cacheprovider", "-n", "1", *options)
    pytester.runpytest_subprocess(*args, timeout=90).assert_outcomes(passed=6)
    assert (pytester.path/"order").read_text().split() == ["slow", "middle", "middle", "quick", "quick", "quick"]


def test_this_projects_notebooks_give_many_tests():
    from tests.notebook_cells import read_cells
    tests = [c for f in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts
             for c in read_cells(f) if c.asserts]
    assert len(tests) >= 60
