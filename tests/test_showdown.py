"The showdown as a user meets it: on made-up worlds, on own documents, interrupted, and with input that cannot work."
import csv, json, subprocess, sys, time

import pytest

from tests.helpers import cli, environment, refused

SMALL = ("showdown", "--profile", "smoke", "--arms", "base,rag,ft_many")


def notes(folder):
    "Three documents and four questions about them."
    (folder/"notes").mkdir()
    (folder/"notes"/"ann.md").write_text("# Ann Brel\nAnn Brel was born in 1950. Ann Brel lives in Old Velham.\n")
    (folder/"notes"/"ben.txt").write_text("Ben Dunn was born in 1960. Ben Dunn is a baker.\n")
    (folder/"notes"/"cis.txt").write_text("Cis Garn was born in 1970. Cis Garn plays the harp.\n")
    rows = [("question", "answer", "document"), ("When was Ann Brel born?", "1950", "ann.md/ann-brel"),
            ("When was Ben Dunn born?", "1960", "ben.txt"), ("What is the profession of Ben Dunn?", "baker", "ben.txt"),
            ("When was Cis Garn born?", "1970", "cis.txt")]
    with open(folder/"qa.csv", "w", newline="") as f: csv.writer(f).writerows(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "(folder, finished process) of a showdown in one go."
    tmp = tmp_path_factory.mktemp("whole")
    return tmp, cli(tmp, *SMALL, "--out", "r", "--json")


def test_json_is_one_object_with_arms_and_files(whole):
    tmp, done = whole
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert [a["arm"] for a in got["arms"]] == ["base", "rag", "ft_many"]
    assert {"exact_match", "ci95", "forgetting", "update_seconds", "latency_ms"} <= set(got["arms"][0])
    assert len(got["aspects"]) == 5
    files = {"report.html", "study.yaml", "results.csv", "search.csv", "summary.json", "arms.png", "conditions.png",
             "pareto.png", "sweeps.png"}
    assert {p.name for p in (tmp/"r").iterdir()} == files


def test_a_killed_showdown_goes_on(tmp_path, whole):
    "No finished run is done again, and the figures are those of a run in one go."
    whole = json.loads(whole[1].stdout)
    args = [sys.executable, "-m", "finetune_nb.cli.main", *SMALL, "--json"]
    runs, env = tmp_path/"cache"/"runs", environment(tmp_path)
    first = subprocess.Popen(args, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 200
    while time.time() < until and first.poll() is None and len(list(runs.glob("*/run.json"))) < 3: time.sleep(.05)
    first.kill(); first.wait()
    kept = {p: p.stat().st_mtime_ns for p in runs.glob("*/run.json")}
    assert kept
    again = json.loads(cli(tmp_path, *SMALL, "--json").stdout)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert [a["per_seed"] for a in again["arms"]] == [a["per_seed"] for a in whole["arms"]]


def test_documents_of_ones_own(tmp_path):
    notes(tmp_path)
    done = cli(tmp_path, "showdown", "--corpus", "notes", "--questions", "qa.csv", "--profile", "smoke",
               "--arms", "base,rag,oracle", "--json", "--out", "r")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["passages"] == 3 and [r["how"] for r in got["retrieval"]] == ["bm25", "dense", "hybrid"]
    assert got["retrieval"][0]["recall@3"] == 1
    assert {p.name for p in (tmp_path/"r").iterdir()} >= {"report.html", "results.csv", "summary.json", "arms.png"}


@pytest.mark.parametrize("make, args, words", [
    (None, ("--corpus", "nowhere"), "no such"),
    (lambda d: (d/"empty").mkdir(), ("--corpus", "empty"), "empty"),
    (lambda d: notes(d), ("--corpus", "notes"), "brings no questions"),
    (lambda d: notes(d), ("--questions", "qa.csv"), "need documents"),
    (lambda d: (notes(d), (d/"bad.csv").write_text("q,a\nx,y\n")),
     ("--corpus", "notes", "--questions", "bad.csv"), "question"),
    (lambda d: (notes(d), (d/"notes"/"two.csv").write_text("id,text\nx,one\nx,two\n")),
     ("--corpus", "notes", "--questions", "qa.csv"), "x"),
    (lambda d: (d/"m").mkdir(), ("--model", "./m"), "no config.json"),
    (lambda d: ((d/"m").mkdir(), (d/"m"/"config.json").write_text('{"model_type": "llama"}'),
                (d/"m"/"pytorch_model.bin").write_bytes(b"x")), ("--model", "./m"), "only pickles"),
    (None, ("--arms", "rag,raff"), "Did you mean 'raft'?"),
    (None, ("--recipe", "gradul"), "Did you mean 'gradual'?"),
    (None, ("--passages", "0"), "whole number"),
])
def test_what_cannot_work_is_one_line(tmp_path, make, args, words):
    if make: make(tmp_path)
    line = refused(tmp_path, "showdown", "--profile", "smoke", *args)
    assert words in line, line
    assert not (tmp_path/"reports").exists(), "a refused command left a folder behind"


def test_a_pdf_without_text(tmp_path):
    from pypdf import PdfWriter
    (tmp_path/"scans").mkdir()
    w = PdfWriter(); w.add_blank_page(200, 200)
    with open(tmp_path/"scans"/"s.pdf", "wb") as f: w.write(f)
    notes(tmp_path)
    assert "OCR" in refused(tmp_path, "showdown", "--profile", "smoke", "--corpus", "scans", "--questions", "qa.csv")
