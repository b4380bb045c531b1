"""A study that two programs run at once, that loses a worker, or that runs on a cluster: the same table, and nothing
done twice."""
import csv, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import cli, environment

STUDY = """
name: small
shared: {model: zoo_resnet_long, labels: 3, steps: 6}
grid: {recipe: [full, linear_probe]}
trials: 2
seeds: 3
"""
RUNS = 2*2 + 2*3  # trials and reported runs


def command(tmp, *more):
    (tmp/"small.yaml").write_text(STUDY)
    return ["study", "small.yaml", "--profile", "smoke", *more]


def started(tmp, out, **env):
    "The command in a process of its own."
    return subprocess.Popen([sys.executable, "-m", "finetune_nb.cli.main", *command(tmp, "--out", out)], cwd=tmp,
                            env=environment(tmp, **env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def table(out):
    "What the study found, times apart."
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader((out/"results.csv").open())]


def attempts(tmp): return sorted(len((f/"attempts").read_text().splitlines()) for f in (tmp/"cache"/"runs").iterdir())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("alone")
    got = cli(tmp, *command(tmp, "--out", "out"))
    assert got.returncode == 0, got.stderr
    assert attempts(tmp) == [1]*RUNS
    return table(tmp/"out")


def test_two_programs_share_a_study(tmp_path, expected):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda i: cli(tmp_path, *command(tmp_path, "--out", f"out{i}")), range(2)))
    assert [p.returncode for p in both] == [0, 0], both
    assert attempts(tmp_path) == [1]*RUNS, "no run twice, none lost"
    assert table(tmp_path/"out0") == table(tmp_path/"out1") == expected


def children(pid):
    "Process numbers of the workers below a process (Linux)."
    found = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try: stat, line = open(f"/proc/{p}/stat").read(), open(f"/proc/{p}/cmdline").read()
        except OSError: continue
        if int(stat.rpartition(")")[2].split()[1]) == pid and "popen_loky" in line: found.append(int(p))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the workers in /proc")
def test_a_killed_worker_costs_its_run_alone(tmp_path, expected):
    p = started(tmp_path, "out", FINETUNE_NB_WORKERS="2")
    store, killed = tmp_path/"cache"/"runs", None
    while p.poll() is None and killed is None:
        # A worker in the middle of a run: its number stands in the run's list of attempts.
        for f in store.glob("*/attempts") if store.exists() else []:
            lines = f.read_text().split("\n")
            if (f.parent/"run.json").exists() or not lines[0]: continue
            if (pid := int(lines[0].split()[0])) in children(p.pid): os.kill(pid, signal.SIGKILL); killed = pid; break
        time.sleep(.002)
    err = p.communicate(timeout=200)[1]
    assert p.returncode == 0, err
    assert killed, "no worker was found at work"
    assert attempts(tmp_path)[:-1] == [1]*(RUNS - 1) and attempts(tmp_path)[-1] <= 2
    assert table(tmp_path/"out") == expected


def test_a_cluster_gives_the_same_table(tmp_path, expected):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
                                  dashboard_address=None) as cluster:
        dask = ("--backend", "dask", "--address", cluster.scheduler_address)
        got = cli(tmp_path, *command(tmp_path, "--out", "out", *dask))
        assert got.returncode == 0, got.stderr
    assert attempts(tmp_path) == [1]*RUNS
    assert table(tmp_path/"out") == expected
