"""A class of thirty, from handing out to the report: what each submission earned, and what hostile ones could not do.

The whole class is graded once (fixture `course`), through the public functions; each submission is then a test of its
own. `-k hostile` shows the hostile ones.
"""
import copy, json, os, re, socket, sys, threading, time
from pathlib import Path
from unittest.mock import patch

import pytest

pytest.importorskip("nbgrader")
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from finetune_nb.grading.versions import check_lab
from finetune_nb.grading.lab import grade_id, kind, mark_cell, read_notebook
from finetune_nb.core.errors import FinetuneError
from tests.helpers import ROOT

HIDDEN, PASSED, DIARY, GRADES = ("CANARY-of-a-hidden-test", "canary passed to it", "CANARY-of-another-student",
                                 "CANARY-in-the-gradebook")
LAB = "lab1_small"


# ---- the lab ---------------------------------------------------------------------------------------------------------
GIVEN = '''import numpy as np

def means_seen(make, steps):
    "The mean after each of 1, 2, ... `steps`, of a running mean that `make` begins."
    running, seen = make(), []
    for x in range(1, steps + 1): running.add(x); seen.append(running.mean)
    return seen'''

SOLVED = dict(
    clip="def clip(xs, lo, hi):\n    return [min(max(x, lo), hi) for x in xs]",
    words="def words(text):\n    found = {}\n    for w in text.lower().split(): found[w] = found.get(w, 0) + "
          "1\n    return found",
    scale="def scale(a):\n    a = np.asarray(a, dtype=float)\n    return (a - a.mean()) / a.std()",
    running="class Running:\n    def __init__(self): self.n, self.mean = 0, 0.\n    def add(self, x): self.n += 1; "
            "self.mean += (x - self.mean) / self.n",
    memo="Because the mean alone says nothing about the spread.")

TESTS = dict(clip=(
    2, 'assert clip([1, 5, 9], 2, 6) == [2, 5, 6], "below lo becomes lo, above hi becomes hi"',
    f'# {HIDDEN}-1\nassert clip([], 0, 1) == [], "an empty list stays empty"\nassert clip([-3.5], -1, 1) == [-1]'),
             words=(3, 'assert words("a b A") == {"a": 2, "b": 1}, "capital letters make no difference"',
                    f'secret = "{HIDDEN}-2"\nassert words("{PASSED} {PASSED}")["canary"] == '
                    f'2, f"a word twice counts {{words(chr(97))}}"\nassert words("") == {{}}'),
             scale=(3, 'import numpy\nassert numpy.allclose(scale([1, 2, 3]), [-1.2247449, 0, '
                       '1.2247449]), "subtract the mean, divide by the standard deviation"',
                    f'# {HIDDEN}-3\nimport numpy\ndraw = numpy.random.default_rng(5).normal(3, 7, 50)\n'
                    'out = scale(draw)\nassert abs(out.mean()) < 1e-9 and abs(out.std() - '
                    '1) < 1e-9 and numpy.allclose(out * draw.std() + draw.mean(), draw)'),
             running=(2, 'assert means_seen(Running, 3) == [1, 1.5, 2], "after 1, 2, 3 the means are 1, 1.5, 2"',
                      f'# {HIDDEN}-4\nassert means_seen(Running, 5)[-1] == 3'))


def write_lab(path):
    "The source notebook, with hidden tests that carry canaries."
    def solution(name):
        lines = SOLVED[name].split("\n")
        return new_code_cell(f"{lines[0]}\n    ### BEGIN SOLUTION\n" + "\n".join(lines[1:]) + "\n    ### END SOLUTION")
    cells = [new_markdown_cell("# Lab 1: Small\n\n> A small lab for tests\n\nTime: 5 minutes."),
             mark_cell(new_code_cell(GIVEN), "locked", grade_id="given")]
    for name, (points, shown, hidden) in TESTS.items():
        cells += [new_markdown_cell(f"## {name}"), mark_cell(solution(name), "solution", grade_id=name),
                  mark_cell(new_code_cell(f"{shown}\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"), "test",
                            grade_id=f"test_{name}", points=points)]
    cells += [new_markdown_cell("## Why scale?"), mark_cell(new_markdown_cell("To compare."), "answer", grade_id="memo",
                                                            points=2), new_markdown_cell("That was all.")]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=dict(display_name="python3", language="python",
                                                                           name="python3"))), str(path))


# ---- the class -------------------------------------------------------------------------------------------------------
class Submission:
    "Points its checks must give, what is solved, further cells (first, before every check, last), a change, sources."
    def __init__(self, points, solved="clip words scale running", before="", at_checks="", after="",
                 change=None, **pieces):
        self.points, self.solved, self.before, self.at_checks, self.after, self.change, self.pieces = (points,
                                                                                                       solved.split(),
                                                                                                       before,
                                                                                                       at_checks, after,
                                                                                                       change, pieces)

    def notebook(self, blank):
        nb = copy.deepcopy(blank)
        for c in nb.cells:
            if not kind(c): continue
            g = grade_id(c)
            if g in self.pieces: c.source = self.pieces[g]
            elif g in self.solved: c.source = SOLVED[g]
        if self.at_checks:
            nb.cells = [x for c in nb.cells
                        for x in ([new_code_cell(self.at_checks)] if kind(c) == "test" else []) + [c]]
        if self.before: nb.cells.insert(1, new_code_cell(self.before))
        if self.after: nb.cells.append(new_code_cell(self.after))
        if self.change:
            nb = json.loads(nbformat.writes(nb))
            return self.change(nb) or json.dumps(nb)
        return nbformat.writes(nb)


def at(nb, g): return next(c for c in nb["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == g)

def drop_checks(nb):
    nb["cells"] = [c for c in nb["cells"]
                   if not c["metadata"].get("nbgrader", {}).get("grade_id", "").startswith("test_")]
def drop_metadata(nb):
    for c in nb["cells"]: c["metadata"] = {}
def soften(nb):
    for name in TESTS: at(nb, f"test_{name}")["source"] = "print('passed')"
def forge(nb):
    for name in TESTS:
        at(nb, f"test_{name}")["metadata"]["nbgrader"] |= dict(points=1000, grade=True, solution=True, locked=False,
                                                               checksum="0"*32)
    nb["metadata"]["nbgrader"] = dict(score=12, max_score=12)
def become_answers(nb):
    for name in TESTS: at(nb, f"test_{name}")["cell_type"] = "raw"
def duplicate(nb): nb["cells"] += json.loads(json.dumps(nb["cells"]))
def nonsense(nb):
    for c, m in zip(nb["cells"][1:], (5, None, [], {"grade_id": 3}, {"grade_id": "../../x", "grade": True},
                                      {"schema_version": 99, "grade_id": "words"}, {"grade": True, "points": "NaN"})):
        c["metadata"]["nbgrader"] = m
    nb["cells"].append(dict(cell_type="code", source=7))
    nb["cells"].append(dict(cell_type="markdown", source="\ud800", metadata={})); nb["metadata"] = 3
def huge_outputs(nb): at(nb, "clip")["outputs"] = [dict(output_type="stream", name="stdout", text="x" * 100_000_000)]
def scripts(nb):
    nb["cells"].append(dict(cell_type="markdown", metadata={},
                            source="<script>alert(1)</script> <img src=x onerror=alert(1)> [go](javascript:alert(1))"))
    at(nb, "memo")["source"] = "<script>alert(2)</script> because"
def half_a_file(nb): return json.dumps(nb)[:700]

READ = '''import os, time
# it runs again before every check, and a busy machine must not end this cell before it has said what it found
loot, until = [], time.monotonic() + 1.5
for place in {places!r}:
    for folder, _, names in os.walk(place):
        if time.monotonic() > until: break
        for n in names[:200]:
            try: loot.append(open(os.path.join(folder, n), errors="replace").read(100_000))
            except Exception: pass
for f in ("/proc/1/environ", "/proc/1/cmdline", "/proc/self/environ", "/proc/self/mountinfo"):
    try: loot.append(open(f).read())
    except Exception: pass
loot = [t[max(0, t.find("CANARY-") - 40):][:200] for t in loot if "CANARY-" in t]
print("LOOT", loot)
def clip(xs, lo, hi): raise ValueError(str(loot))
def words(text): return {{str(loot): 1}}'''

WRITE = '''import os
for place in {places!r}:
    for name in ("pwned.txt", "submitted/ann/{lab}/{lab}.ipynb", "gradebook.db", "nbgrader_config.py",
                 "source/{lab}/{lab}.ipynb"):
        try:
            os.makedirs(os.path.dirname(os.path.join(place, name)), exist_ok=True)
            open(os.path.join(place, name), "w").write("pwned")
        except Exception as e: print(type(e).__name__)
import finetune_nb
for path in (finetune_nb.__file__, os.__file__):
    try: open(path, "a").write("\\n# pwned\\n")
    except Exception as e: print(type(e).__name__)'''

PATCH = '''import builtins, sys, numpy, math, operator
numpy.allclose = numpy.isclose = numpy.testing.assert_allclose = lambda *a, **k: True
operator.eq = math.isclose = lambda *a: True
builtins.AssertionError = type("Fine", (Warning,), {})
sys.excepthook = lambda *a: None
class Yes(float):
    def __getattr__(self, n): return self
    def __call__(self, *a, **k): return self
    def __eq__(self, o): return True
    __lt__ = __le__ = __ge__ = __gt__ = __ne__ = __eq__
    __hash__ = float.__hash__
    def __bool__(self): return True
    def __abs__(self): return 0
    def __getitem__(self, i): return self
    def __array__(self, *a, **k): return numpy.zeros(3)
def words(*a): return Yes()
def scale(*a): return Yes()
Running = Yes()
means_seen = lambda *a: Yes()'''

BUILTINS = '''import builtins
builtins.abs = lambda x: 0
builtins.len = lambda x: 2
builtins.all = builtins.any = builtins.isinstance = lambda *a: True
builtins.print = lambda *a: None
def words(text): return {}
def scale(a): return [0, 0, 0]'''

PEEK = '''import sys, gc, inspect
seen = []
def _look():
    f = sys._getframe(1)
    while f is not None:
        seen.append(repr(f.f_locals)[:5000])
        try: seen.append(inspect.getsource(f))
        except Exception: pass
        f = f.f_back
    for o in gc.get_objects():
        if isinstance(o, str) and "CANARY" in o: seen.append(o)
    try: open("notes.txt", "a").write(repr(seen))
    except Exception: pass
def clip(xs, lo, hi):
    _look()
    raise AssertionError("below lo becomes lo, above hi becomes hi " + repr([xs, seen])[:1500])
def words(text):
    _look()
    open("heard.txt", "a").write(text + "; ")
    found = {}
    for w in text.lower().split(): found[w] = found.get(w, 0) + 1
    return found
def scale(a):
    heard = open("heard.txt").read()
    name = "Loot" + "".join(ch if ch.isalnum() else "_" for ch in heard)[:80]
    raise type(name, (Exception,), {})(heard[:200] + open("notes.txt").read()[-1500:])'''

CLASS = {
    # who did what they could
    "ann": Submission(10, memo=SOLVED["memo"]), "bob": Submission(10, before="x = 1", after="print('done')"),
    "cleo": Submission(10, scale="def scale(a):\n    m = sum(a) / len(a)\n    s = (sum((x - m)**2 for x in a) / "
                                 "len(a))**.5\n    return np.array([(x - m) / s for x in a])"),
    "dan": Submission(10, after="import warnings, sys\nwarnings.warn('careful')\nprint('careful', file=sys.stderr)"),
    "ed": Submission(10, change=drop_metadata), "flo": Submission(10, change=drop_checks),
    "gil": Submission(10, before="raise NameError('an own cell that fails')"),
    "hal": Submission(8, clip="def clip(xs, lo, hi): return [max(x, lo) for x in xs]"),
    "ina": Submission(7, "clip scale running"), "jon": Submission(5, "clip words"),
    "kim": Submission(7, scale="def scale(a): return (np.asarray(a) - np.mean(a)) / np.std(a, ddof=1)"),
    "lea": Submission(5, "running scale"), "max": Submission(5, "words running", clip="def clip(xs, lo hi): return"),
    "nia": Submission(0, ""), "ole": Submission(0, "", clip="def clip(*a): return 3", words="def words(t): return 3",
                                                scale="def scale(a): return a", running="class Running: pass"),
    # who tried something else
    "hostile_hangs_at_once": Submission(10, before="while True: pass"),
    "hostile_ends_its_process_at_once": Submission(10, before="import os; os._exit(0)"),
    "hostile_hangs_in_a_cell": Submission(10, after="while True: pass"),
    "hostile_hangs_in_a_function": Submission(7, scale="def scale(a):\n    while True: pass"),
    "hostile_forks": Submission(
        10, after="import os\nfor _ in range(10**6):\n    try: os.fork()\n    except OSError: pass"),
    "hostile_fills_the_disk": Submission(10, after="f = open('big', 'wb')\nwhile True: f.write(b'x' * 10**7)"),
    "hostile_takes_memory": Submission(10, after="x = []\nwhile True: x.append(bytearray(b'x') * 10**8)"),
    "hostile_deletes_its_checks": Submission(2, "clip", change=drop_checks),
    "hostile_alters_its_checks": Submission(2, "clip", change=soften),
    "hostile_patches_the_checker": Submission(2, "clip", at_checks=PATCH),
    "hostile_patches_builtins": Submission(2, "clip", at_checks=BUILTINS),
    "hostile_prints_a_score": Submission(2, "clip", before="print('Score: 12 / 12')", after="print(12)\n12"),
    "hostile_forges_points": Submission(2, "clip", change=forge),
    "hostile_turns_checks_into_text": Submission(2, "clip", change=become_answers),
    "hostile_reads_what_is_not_its_own": Submission(0, "", at_checks=READ),
    "hostile_writes_outside": Submission(10, after=WRITE), "hostile_calls_home": Submission(
        10, after="import socket\ns = socket.create_connection(('127.0.0.1', {port}), 3)\ns.sendall(b'loot')"),
    "hostile_kills_processes": Submission(
        10, after="import os, signal\nfor p in (os.getppid(), 1, -1, 0, os.getpid()):\n    try: os.kill(p, "
                  "signal.SIGKILL)\n    except OSError: pass"),
    "hostile_peeks_at_the_checks": Submission(3, "", at_checks=PEEK),
    "hostile_leaves_without_a_word": Submission(5, "clip words", after="import os; os._exit(0)"),
    "hostile_doubles_every_cell": Submission(10, change=duplicate),
    "hostile_breaks_the_metadata": Submission(10, change=nonsense),
    "hostile_brings_100_MB": Submission(10, change=huge_outputs), "hostile_brings_scripts": Submission(
        10, change=scripts, after="class H:\n    def _repr_html_(self): return '<script>alert(3)</script>'\nH()"),
    "hostile_half_a_file": Submission(0, change=half_a_file)}
GOOD, HOSTILE = [n for n in CLASS if not n.startswith("hostile")], [n for n in CLASS if n.startswith("hostile")]


class Course:
    "A class's folder with everybody's work in it, graded, and what was watched meanwhile."
    def page(self, who): return (self.dir/"feedback"/who/LAB/f"{LAB}.html").read_text()
    def graded(self, who): return (self.dir/"autograded"/who/LAB/f"{LAB}.ipynb").read_text()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    from finetune_nb.grading.collect import collect
    from finetune_nb.grading.course import gradebook
    from finetune_nb.grading.grade import grade
    from finetune_nb.grading.gradebook import report
    from finetune_nb.grading.release import release
    c, folder = Course(), tmp_path_factory.mktemp("class")
    c.folder, c.dir, c.began = folder, folder/"course", time.monotonic()
    env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")} | dict(FINETUNE_NB_CACHE=str(
        folder/"cache"))
    with patch.dict(os.environ, env, clear=True), socket.create_server(("127.0.0.1", 0)) as server:
        c.calls = []
        def listen():
            while True:
                try: s, _ = server.accept()
                except OSError: return
                c.calls.append(s.recv(100)); s.close()
        threading.Thread(target=listen, daemon=True).start()
        write_lab(folder/"labs"/"01_small.ipynb")
        (folder/"mine.ini").write_text(
            "[run]\nprofile = smoke\n[class]\nname = The class\nlab_minutes = 1\nlab_memory_gb = 1\n")
        release(c.dir, settings_file=folder/"mine.ini", folder=folder/"labs")
        c.blank = read_notebook(c.dir/"release"/LAB/f"{LAB}.ipynb")
        with gradebook(c.dir) as gb: gb.add_student("zoe", first_name=GRADES)
        places = [str(p) for p in (c.dir, folder, ROOT/"nbs", ROOT/"tests", Path.home(), "/tmp")]
        c.watched = [c.dir/"nbgrader_config.py", c.dir/"settings.ini", c.dir/"source"/LAB/f"{LAB}.ipynb",
                     ROOT/"finetune_nb"/"__init__.py", Path(os.__file__)]
        there = folder/"there"
        for who, h in CLASS.items():
            if h.after == WRITE: h.after = WRITE.format(places=places, lab=LAB)
            if h.at_checks == READ: h.at_checks = READ.format(places=places)
            h.after = h.after.replace("{port}", str(server.getsockname()[1]))
            (there/who).mkdir(parents=True)
            (there/who/f"{LAB}.ipynb").write_text(h.notebook(c.blank))
        (there/"ann"/"diary.txt").write_text(DIARY)
        c.collected = collect(c.dir, there)
        # What cannot be read does not even come in. A teacher may have put it there by hand.
        by_hand = c.dir/"submitted"/"hostile_half_a_file"/LAB
        by_hand.mkdir(parents=True)
        (by_hand/f"{LAB}.ipynb").write_text((there/"hostile_half_a_file"/f"{LAB}.ipynb").read_text())
        c.before = {p: p.read_bytes() for p in c.watched}
        c.rows = {r["student"]: r for r in grade(c.dir, workers=2)}
        c.files = report(c.dir)
        c.seconds = time.monotonic() - c.began
    print(f"\n{len(c.rows)} submissions from release to report in {c.seconds:.0f} s", file=sys.__stderr__)
    return c


# ---- what everybody earned -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("who", GOOD)
def test_points(course, who):
    assert course.rows[who]["score"] == CLASS[who].points, course.rows[who]
    assert course.rows[who]["status"] == "graded" and f"{CLASS[who].points} of 12 points" in course.page(who)


@pytest.mark.parametrize("who", HOSTILE)
def test_points_of(course, who):
    assert course.rows[who]["score"] == CLASS[who].points, course.rows[who]


@pytest.mark.parametrize("who", HOSTILE)
def test_no_leak_to(course, who):
    "Nothing of hidden tests, of the gradebook or of others is in anything that a hostile submission left behind."
    page, graded = course.page(who), json.loads(course.graded(who))
    outputs = json.dumps([c.get("outputs") for c in graded["cells"]]) + json.dumps(
        [c["source"] for c in graded["cells"] if not c["metadata"].get("nbgrader")]) + json.dumps(graded["metadata"])
    for secret in (HIDDEN, DIARY, GRADES):
        assert secret not in page and secret not in outputs, secret
    assert PASSED not in page  # a function sees what it is given; the page does not repeat it
    assert "HIDDEN TESTS" not in page and "Traceback" not in page


def test_no_escape(course):
    "Nothing outside has changed, and nobody was called."
    assert course.calls == []
    for p, data in course.before.items(): assert p.read_bytes() == data, p
    assert (not [p for p in course.folder.rglob("pwned*")] and not (Path.home()/"pwned.txt").exists()
            and not Path("/tmp/pwned.txt").exists() and not (ROOT/"pwned.txt").exists())
    assert "pwned" not in (course.dir/"submitted"/"ann"/LAB/f"{LAB}.ipynb").read_text()


def test_no_scripts(course):
    "A teacher's browser runs nothing that a student wrote, neither here nor in the Formgrader."
    assert "<script" not in course.page("hostile_brings_scripts")
    graded = json.loads(course.graded("hostile_brings_scripts"))
    for c in graded["cells"]:
        assert (c["cell_type"] == "code" or "<script" not in "".join(c["source"])
                and "javascript:" not in "".join(c["source"]))
        assert not any(m not in ("text/plain", "image/png", "image/jpeg") for o in c.get("outputs", [])
                       for m in o.get("data", {}))


def test_all_in_time(course):
    "Thirty and more in fifteen minutes, whoever else is at work; alone on two cores it takes a minute and a half."
    assert len(course.rows) == len(CLASS) >= 30
    assert course.seconds < 15 * 60, f"{course.seconds:.0f} s"


def test_the_hostile_ones_were_awake(course):
    "That nothing leaked proves something only if the code that looks for it has run."
    def printed(who):
        return json.dumps([o for c in json.loads(course.graded(who))["cells"] for o in c.get("outputs", [])])
    assert ("LOOT []" in printed("hostile_reads_what_is_not_its_own")
            and PASSED in printed("hostile_peeks_at_the_checks"))
    assert ("Error" in printed("hostile_writes_outside")
            and any(e in printed("hostile_calls_home") for e in ("ConnectionRefusedError", "OSError")))
    assert ("was stopped" in printed("hostile_hangs_at_once")
            and "was left out" in printed("hostile_ends_its_process_at_once"))


# ---- around it -------------------------------------------------------------------------------------------------------
def test_what_was_collected(course):
    got = {r["student"]: r for r in course.collected}
    assert {w for w, r in got.items() if r["status"] == "new"} == set(CLASS) - {"hostile_half_a_file"}
    assert "not a notebook" in got["hostile_half_a_file"]["why"]
    assert (course.dir/"submitted"/"ann"/LAB/"diary.txt").read_text() == DIARY
    assert (course.dir/"submitted"/"hostile_brings_100_MB"/LAB/f"{LAB}.ipynb").stat().st_size < 1e5


def test_student_version(course):
    text = (course.dir/"release"/LAB/f"{LAB}.ipynb").read_text()
    assert (HIDDEN not in text and "found.get" not in text and "is not written yet" in text
            and "capital letters make no difference" in text)
    assert check_lab(course.folder/"labs"/"01_small.ipynb") == []


def test_feedback_helps(course):
    assert ("below lo becomes lo, above hi becomes hi" in course.page("hal")
            and "it did not come to an end in time" in course.page("hostile_hangs_in_a_function"))
    assert ("not written yet" in course.page("nia") and "to be graded by hand" in course.page("ann")
            and "SyntaxError" in course.page("max") and "an own cell that fails" in course.page("gil"))
    assert "http" not in course.page("ann")


def test_report(course):
    import pandas as pd
    table = pd.read_csv(course.files["gradebook.csv"]).set_index("student")
    assert {w: table.score[w] for w in CLASS} == {w: h.points for w, h in CLASS.items()}
    assert table.status["zoe"] == "not submitted" and pd.isna(table.score["zoe"]) and table.to_grade_by_hand["ann"] == 2
    q = pd.read_csv(course.files["questions.csv"]).set_index("question")
    scores = pd.read_csv(course.files["scores.csv"])
    clip = scores[scores.question == "test_clip"].score
    assert ((q.n[:4] == len(CLASS)).all() and len(clip) == len(CLASS)
            and q["full"].test_clip == pytest.approx((clip == 2).mean(), abs=1e-5))
    assert 0 < q.discrimination.test_words <= 1 and q.not_attempted.test_scale > .1
    assert {"gradebook.csv", "scores.csv", "questions.csv", "lab1.png",
            "report.html"} == {p.name for p in (course.dir/"report").iterdir()}


def test_again_nothing_is_run(course):
    from finetune_nb.grading.grade import grade
    with patch.dict(os.environ, dict(FINETUNE_NB_PROFILE="smoke")):
        os.environ.pop("FINETUNE_NB_WORKERS", None)
        began = time.monotonic()
        rows = {r["student"]: r for r in grade(course.dir, quiet=True)}
    assert ({r["status"] for w, r in rows.items() if w != "hostile_half_a_file"} == {"as before"}
            and {w: r["score"] for w, r in rows.items()} == {w: h.points for w, h in CLASS.items()})
    assert time.monotonic() - began < 20


def test_a_later_submission_and_grades_by_hand(course):
    "A grade given by hand stays; a better submission counts; the earlier one is kept."
    from finetune_nb.grading.collect import collect
    from finetune_nb.grading.course import gradebook
    from finetune_nb.grading.grade import grade
    with gradebook(course.dir) as gb:
        g = gb.find_grade("memo", LAB, LAB, "ann")
        g.manual_score, g.needs_manual_grade = 1.5, False
        gb.db.commit()
    again = course.folder/"again"
    for who, h in (("ann", Submission(10, memo=SOLVED["memo"], after="1 + 1")), ("hal", Submission(10))):
        (again/who).mkdir(parents=True); (again/who/"my lab 1.ipynb").write_text(h.notebook(course.blank))
    assert {r["student"]: r["status"] for r in collect(course.dir, again)} == dict(ann="replaced", hal="replaced")
    rows = {r["student"]: r for r in grade(course.dir, students=["ann", "hal"], quiet=True)}
    assert rows["ann"]["score"] == 11.5 and rows["ann"]["by_hand"] == 0 and rows["hal"]["score"] == 10
    assert len(list((course.dir/"submitted_earlier"/"hal"/LAB).iterdir())) == 1


def test_nbgrader_itself_runs_submissions_isolated(course):
    "What the buttons of the Formgrader do: nbgrader's own interface, in the class's folder."
    from nbgrader.apps import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import PyFileConfigLoader
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course.dir)).load_config()
    api = NbGraderAPI(CourseDirectory(config=config), config=config, log_level=50)
    subs = {s["student"]: s for s in api.get_submissions(LAB)}
    assert set(CLASS) <= set(subs) and subs["bob"]["score"] == 10 and subs["bob"]["autograded"]
    result = api.autograde(LAB, "hostile_alters_its_checks")
    assert result["success"], result
    assert {s["student"]: s for s in api.get_submissions(LAB)}["hostile_alters_its_checks"]["score"] == 2
    result = api.generate_feedback(LAB, "hostile_alters_its_checks")
    assert result["success"], result
    page = course.page("hostile_alters_its_checks")
    assert (HIDDEN not in page and "Traceback (most" not in page and "passed" not in page
            and "(Score: 2.0 / 12.0)" in page)


def test_the_formgrader_shows_a_submission(course):
    "The page on which a teacher grades by hand."
    from nbconvert.exporters import HTMLExporter
    from nbgrader.server_extensions.formgrader import handlers
    from traitlets.config import Config
    c = Config()
    c.HTMLExporter.template_name, c.HTMLExporter.extra_template_basedirs = "formgrade", [handlers.template_path]
    nb = nbformat.read(str(course.dir/"autograded"/"ann"/LAB/f"{LAB}.ipynb"), as_version=4)
    resources = dict(assignment_id=LAB, notebook_id=LAB, submission_id="x", index=0, total=1, base_url="/",
                     mathjax_url="", student="ann", last_name=None, first_name=None, notebook_path="x", keyword_args={})
    html, _ = HTMLExporter(config=c).from_notebook_node(nb, resources=resources)
    assert "the mean alone says nothing" in html and "test_clip" in html


def test_nothing_to_isolate_with(course):
    "Where a machine cannot isolate, nothing is run and nothing recorded."
    from finetune_nb.grading.grade import grade
    with (patch("finetune_nb.grading.grade.can_isolate", lambda: (False, "no namespaces here")),
          pytest.raises(FinetuneError, match="no namespaces here.*--no-isolation")):
        grade(course.dir, students="bob", force=True)


# ---- the command line ------------------------------------------------------------------------------------------------
def test_command_line(tmp_path):
    "release, collect, grade and report, each a process of its own; one JSON object each."
    from finetune_nb.grading.lab import example_lab
    from tests.helpers import cli
    example_lab(tmp_path/"labs", 1)
    def lab(*args):
        done = cli(tmp_path, "lab", *args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in args else done.stdout
    assert lab("release", "--class", "c", "--source", "labs", "--json")["labs"][0]["points"] == 6
    nb = read_notebook(tmp_path/"c"/"release"/"lab1_means"/"lab1_means.ipynb")
    nb.cells[5].source = "def mean(xs): return sum(xs) / max(1, len(xs))"
    (tmp_path/"there").mkdir(); nbformat.write(nb, str(tmp_path/"there"/"ann_lab1.ipynb"))
    (tmp_path/"there"/"ben_lab1.ipynb").write_text("{")
    assert [r["status"]
            for r in lab("collect", "--class", "c", "there", "--json")["submissions"]] == ["new", "left out"]
    graded = lab("grade", "--class", "c", "--json")["graded"]
    assert [(r["student"], r["score"]) for r in graded] == [("ann", 2)]
    assert "as before" in lab("grade", "--class", "c")
    got = lab("report", "--class", "c", "--json")
    assert (got["labs"][0]["score"] == 2 and Path(got["files"]["report.html"]).is_file()
            and [q["question"] for q in got["questions"]] == ["test_mean", "test_weighted", "answer_equal"])
    assert "test_mean" in lab("report", "--class", "c")


@pytest.mark.parametrize("args, words", [
    (("release", "--class", "c", "--source", "labs", "--labs", "7"), "unknown lab '7'"),
    (("release", "--class", "c", "--source", "nowhere"), "no labs in nowhere"),
    (("release",), "--class"), (("collect", "--class", "c", "x"), "is not the folder of a class"),
    (("grade", "--class", "c"), "is not the folder of a class"),
    (("report", "--class", "c"), "is not the folder of a class"),
    (("grad", "--class", "c"), "unknown value 'grad'. Did you mean 'grade'?"),
    (("release", "--class", "100%", "--source", "labs"), "nbgrader cannot work in a folder with %")])
def test_command_line_refuses(tmp_path, args, words):
    from finetune_nb.grading.lab import example_lab
    from tests.helpers import refused
    example_lab(tmp_path/"labs", 1)
    assert words in refused(tmp_path, "lab", *args)


def test_without_nbgrader(tmp_path):
    "One line that names the extra."
    from finetune_nb.grading.release import release
    with (patch.dict(sys.modules, {"nbgrader": None, "nbgrader.preprocessors": None}),
          pytest.raises(FinetuneError, match=re.escape('pip install "finetune_nb[classroom]"'))):
        release(tmp_path/"c")


# ---- the real labs ---------------------------------------------------------------------------------------------------
REAL = sorted((ROOT/"nbs"/"labs").glob("[0-9]*.ipynb"))

@pytest.mark.parametrize("path", REAL, ids=[p.stem for p in REAL])
def test_real_labs_are_sound(path): assert check_lab(path) == []


@pytest.mark.slow
@pytest.mark.skipif(not any(p.name.startswith("01_") for p in REAL), reason="lab 1 is not there yet")
def test_thirty_submissions_of_lab_1(tmp_path):
    "Ten correct, ten half done, five empty, five hostile: points as known, in under fifteen minutes on two cores."
    from finetune_nb.grading.collect import collect
    from finetune_nb.grading.grade import grade
    from finetune_nb.grading.versions import solution_version
    from finetune_nb.grading.release import release
    env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")} | dict(FINETUNE_NB_CACHE=str(
        tmp_path/"cache"))
    with patch.dict(os.environ, env, clear=True):
        began = time.monotonic()
        (tmp_path/"mine.ini").write_text("[run]\nprofile = fast\n[class]\nlab_minutes = 5\n")
        row, = release(tmp_path/"c", "1", settings_file=tmp_path/"mine.ini")
        source, g = read_notebook(next(p for p in REAL if p.name.startswith("01_"))), row["id"]
        blank = read_notebook(tmp_path/"c"/"release"/g/f"{g}.ipynb")
        solved = {grade_id(c): c.source for c in solution_version(source).cells if kind(c) == "solution"}
        checks = {grade_id(c): c.metadata["nbgrader"]["points"] for c in source.cells if kind(c) == "test"}
        first = next(grade_id(c) for c in source.cells if kind(c) == "solution")
        def write(who, names, after="", change=lambda cells: cells):
            nb = copy.deepcopy(blank)
            for c in nb.cells:
                if kind(c) == "solution" and grade_id(c) in names: c.source = solved[grade_id(c)]
            nb.cells = change(nb.cells)
            if after: nb.cells.append(new_code_cell(after))
            (tmp_path/"there"/who).mkdir(parents=True); nbformat.write(nb, str(tmp_path/"there"/who/f"{g}.ipynb"))
        for i in range(10): write(f"correct{i}", solved)
        for i in range(10): write(f"half{i}", [first])
        for i in range(5): write(f"empty{i}", ())
        write("hostile0", solved, "while True: pass")
        write("hostile1", (),
              "import numpy, builtins\nnumpy.allclose = lambda *a, **k: True\nbuiltins.abs = lambda x: 0")
        write("hostile2", (), "import os; os._exit(0)")
        write("hostile3", (), change=lambda cells: [c for c in cells if kind(c) != "test"])
        write("hostile4", solved, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
        collect(tmp_path/"c", tmp_path/"there")
        rows = {r["student"]: r for r in grade(tmp_path/"c", workers=2)}
        seconds = time.monotonic() - began
    print(f"\nlab 1: 30 submissions in {seconds:.0f} s", file=sys.__stderr__)
    full = sum(checks.values())
    for who in [f"correct{i}" for i in range(10)] + ["hostile0", "hostile4"]:
        assert rows[who]["score"] == full, rows[who]
    for who in [f"empty{i}" for i in range(5)] + ["hostile1", "hostile2", "hostile3"]:
        assert rows[who]["score"] == 0, rows[who]
    halves = {rows[f"half{i}"]["score"] for i in range(10)}
    assert len(halves) == 1 and 0 < halves.pop() < full
    assert seconds < 15 * 60
