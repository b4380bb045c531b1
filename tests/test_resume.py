"A comparison that is killed, repeated, or whose files are damaged."
import json, os, shutil, signal, subprocess, sys, time

import pytest

from tests.helpers import SMALL, cli, environment, without_times


def done_runs(tmp): return {p.parent.name: p.stat().st_mtime_ns for p in (tmp/"cache"/"runs").glob("*/run.json")}


def summary(tmp, *more):
    got = cli(tmp, *SMALL, "--out", tmp/"out", "--json", *more)
    assert got.returncode == 0, got.stderr
    return without_times(json.loads(got.stdout))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "(folder, summary) of a comparison in one go."
    tmp = tmp_path_factory.mktemp("whole")
    return tmp, summary(tmp)


@pytest.fixture
def finished(whole, tmp_path):
    "The summary of a comparison whose runs lie in `tmp_path`, as if it had just been done there."
    shutil.copytree(whole[0]/"cache"/"runs", tmp_path/"cache"/"runs")
    return whole[1]


def test_twice_the_same(tmp_path, whole): assert summary(tmp_path) == whole[1]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_half_way_and_started_again(tmp_path, whole):
    (tmp_path/"cut").mkdir()
    total = len(done_runs(whole[0]))
    command = [sys.executable, "-m", "finetune_nb.cli.main", *map(str, SMALL), "--out", str(tmp_path/"cut"/"out")]
    p = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path/"cut"), stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, start_new_session=True)
    while p.poll() is None and len(done_runs(tmp_path/"cut")) < total // 2: time.sleep(.01)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    before = done_runs(tmp_path/"cut")
    assert 0 < len(before) < total, "the kill came too late to test anything"
    assert not (tmp_path/"cut"/"out"/"report.html").exists()
    assert summary(tmp_path/"cut") == whole[1]
    after = done_runs(tmp_path/"cut")
    assert {k: after[k] for k in before} == before, "a finished run was done again"
    assert len(after) == total


def test_a_half_written_result_is_not_trusted(tmp_path, finished):
    name = sorted(done_runs(tmp_path))[0]
    run = tmp_path/"cache"/"runs"/name/"run.json"
    run.rename(run.with_name(".run.json.half"))  # what an interrupted atomic write leaves behind
    assert summary(tmp_path) == finished and run.exists()


def damage(file, at=-9):
    raw = bytearray(file.read_bytes()); raw[at] ^= 1; file.write_bytes(bytes(raw))


@pytest.mark.parametrize("what", ["run.json", "score_test_40.safetensors", "kept_weights.safetensors"])
def test_a_flipped_byte_is_noticed_and_the_run_is_done_again(tmp_path, what, finished):
    file = sorted((tmp_path/"cache"/"runs").glob(f"*/{what}"))[-1]
    whole = file.read_bytes()
    damage(file, whole.index(b"accuracy") + 2 if what == "run.json" else -9)
    got = cli(tmp_path, *SMALL, "--out", tmp_path/"out", "--json")
    assert got.returncode == 0 and without_times(json.loads(got.stdout)) == finished
    assert f"run {file.parent.name}: {what} does not verify; it was done again" in got.stderr
    assert len((file.parent/"attempts").read_text().splitlines()) == 2
    if what != "run.json": assert file.read_bytes() == whole, "the same run, byte by byte"


def trainings(tmp): return sum(len(f.read_text().splitlines()) for f in (tmp/"cache"/"runs").glob("*/attempts"))


LIKE_SMALL = """
name: like compare
shared: {task: digits, labels: 1}
arms: {full: {recipe: full}, linear_probe: {recipe: linear_probe}}
"""


@pytest.mark.parametrize("order", ["compare first", "study first"])
def test_compare_and_study_share_every_training(tmp_path, order):
    "Splits, shifts and curves are measured beside the run, later if need be; the training is not repeated for them."
    (tmp_path/"like.yaml").write_text(LIKE_SMALL)
    both = [(*SMALL, "--out", "c", "--json"), ("study", "like.yaml", "--profile", "smoke", "--out", "s", "--json")]
    first, second = both if order == "compare first" else both[::-1]
    found = [json.loads(cli(tmp_path, *first).stdout)]
    before = trainings(tmp_path)
    assert before == 2*2 + 2*2, "two rates and two seeds of two recipes"
    found.append(json.loads(cli(tmp_path, *second).stdout))
    assert trainings(tmp_path) == before, "something was trained twice"
    compared, studied = found if order == "compare first" else found[::-1]
    assert {a["recipe"]: a["mean"] for a in compared["arms"]} == {a["arm"]: a["mean"] for a in studied["arms"]}
    assert [c["verdict"] for c in compared["contrasts"]] == [c["verdict"] for c in studied["contrasts"]]


def test_without_its_weights_a_run_trains_again_and_says_so(tmp_path):
    (tmp_path/"like.yaml").write_text(LIKE_SMALL)
    assert cli(tmp_path, "study", "like.yaml", "--profile", "smoke", "--out", "s").returncode == 0
    before = trainings(tmp_path)
    for f in (tmp_path/"cache"/"runs").glob("*/kept_weights.safetensors"): f.unlink()
    got = cli(tmp_path, *SMALL, "--out", "c")  # the changed test sets were never measured
    assert got.returncode == 0 and trainings(tmp_path) == before + 4
    assert got.stderr.count("needs weights that are no longer kept; it was done again") == 4


def test_worker_processes_give_what_one_process_gives(tmp_path, whole):
    (tmp_path/"two").mkdir()
    one = whole[1] | dict(settings=dict(whole[1]["settings"]))
    (tmp_path/"two"/"settings.ini").write_text("[run]\nworkers = 2\n")
    got = cli(tmp_path/"two", *SMALL, "--out", "out", "--json", FINETUNE_NB_WORKERS="2")
    assert got.returncode == 0, got.stderr
    two = without_times(json.loads(got.stdout))
    assert one["settings"].pop("workers") == 1 and two["settings"].pop("workers") == 2
    assert one == two
