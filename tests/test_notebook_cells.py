"The plugin that makes tests of cells, tested on notebooks made for the purpose."
import json, os, time
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


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda *args: pytester.runpytest_subprocess("-p", "tests.notebook_cells", "-p", "no:cacheprovider", "-v",
                                                       "-ra", *args, timeout=90)


def test_asserting_cells_are_named_tests(pytester, run):
    notebook(pytester.path/"a.ipynb", "# Sums", "x = 2", "assert x == 2", "# Words about gradual",
             "y = x + 1\nassert y == 3", "assert y", "print(y)")
    out = run()
    out.assert_outcomes(passed=4)
    out.stdout.fnmatch_lines(["*a.ipynb::Sums PASSED*", "*a.ipynb::Words about gradual [[]1] PASSED*",
                              "*::runs to the end PASSED*"])


def test_one_cell_alone_runs_what_is_before_it(pytester, run):
    notebook(pytester.path/"a.ipynb", "# One", "x = 2", "assert x == 2", "# Two", "x += 1", "assert x == 3")
    out = run("-k", "Two")
    out.assert_outcomes(passed=1, deselected=1)


def test_k_finds_names_in_the_source(pytester, run):
    notebook(pytester.path/"a.ipynb", "# One", "def discriminative(): return 1", "assert discriminative()", "assert 1")
    run("-k", "discriminative").assert_outcomes(passed=1, deselected=1)


def test_failing_cell_fails_with_its_source_and_later_ones_are_skipped(pytester, run):
    notebook(pytester.path/"a.ipynb", "# One", "assert 1", "# Two", "value = 41\nassert value == 42, 'not the answer'",
             "# Three", "assert 1")
    out = run()
    out.assert_outcomes(passed=1, failed=1, skipped=1)
    out.stdout.fnmatch_lines(["*cell 3 under 'Two'*", "*2 assert value == 42*", "*not the answer*"])


def test_error_in_a_cell_without_assertion_counts(pytester, run):
    notebook(pytester.path/"a.ipynb", "# One", "1/0", "assert 1")
    out = run()
    out.assert_outcomes(failed=1)
    out.stdout.fnmatch_lines(["*ZeroDivisionError*"])


def test_hanging_cell_is_stopped_with_its_children(pytester, run):
    notebook(pytester.path/"a.ipynb", "# Hang", "import subprocess, sys, time\n"
             "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
             "open('pid', 'w').write(str(child.pid))\n"
             "while True:\n    try: time.sleep(300)\n    except BaseException: pass\nassert 1", "# After", "assert 1")
    notebook(pytester.path/"b.ipynb", "# Fine", "assert 1")
    began = time.monotonic()
    out = run("--cell-timeout", "8")
    out.assert_outcomes(failed=1, skipped=1, passed=1)
    out.stdout.fnmatch_lines(["*took longer than 8 seconds*"])
    assert time.monotonic() - began < 60
    if os.name == "posix" and Path("/proc").exists():
        state = Path(f"/proc/{(pytester.path/'pid').read_text()}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z", "the hung cell's child is still running"


def test_a_cell_can_ask_for_its_own_limit(pytester, run):
    notebook(pytester.path/"a.ipynb", "# Long", "#| timeout: 30\nimport time; time.sleep(3)\nassert 1")
    run("--cell-timeout", "1").assert_outcomes(passed=1)


def test_dying_process_is_a_failure(pytester, run):
    notebook(pytester.path/"a.ipynb", "# Crash", "import os; os._exit(7)\nassert 1")
    out = run()
    out.assert_outcomes(failed=1)
    out.stdout.fnmatch_lines(["*the process ended (exit code 7)*"])


def test_flagged_cells_are_reported_skipped_unless_asked_for(pytester, run):
    notebook(pytester.path/"a.ipynb", "# Plain", "assert 1", "# Night", "#| slow\nassert 0", "# Morning", "assert 1")
    out = run()
    out.assert_outcomes(passed=2, skipped=1)
    out.stdout.fnmatch_lines(["*flagged slow*"])
    run("--flags", "slow").assert_outcomes(passed=1, failed=1, skipped=1)


def test_unknown_flag_is_refused(pytester, run):
    assert run("--flags", "slwo").ret == pytest.ExitCode.USAGE_ERROR


def test_cells_not_meant_to_run(pytester, run):
    notebook(pytester.path/"a.ipynb", "# One", "#| eval: false\nassert 0", "assert 1")
    run().assert_outcomes(passed=1)


def test_unreadable_notebook_is_an_error(pytester, run):
    (pytester.path/"bad.ipynb").write_text('{"cells": [')
    out = run()
    out.assert_outcomes(errors=1)
    out.stdout.fnmatch_lines(["*is not a readable notebook*"])


def test_works_under_xdist_by_notebook(pytester, run):
    for name in "abc":
        notebook(pytester.path/f"{name}.ipynb", "# One", "import os\nn = [os.getpid()]", "assert len(n) == 1",
                 "n.append(1)\nassert len(n) == 2")
    run("-n", "2", "--dist", "loadfile").assert_outcomes(passed=6)


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
