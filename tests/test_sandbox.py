"What a submission may try: it gets the points it earned, and nothing outside of its sandbox changes."
import ast, json, os, socket, subprocess, sys, textwrap, time
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from finetune_nb.sandbox.isolation import IsolationError, Limits, can_isolate, run_isolated
from finetune_nb.sandbox.session import run_submission

OK, WHY = can_isolate()
pytestmark = pytest.mark.skipif(not OK, reason=f"this machine cannot isolate: {WHY}")
QUICK = Limits(seconds=20, cell_seconds=4, memory_gb=.5, disk_mb=16, processes=24)


def cell(source, kind=None, name=None, points=None):
    c = new_code_cell(textwrap.dedent(source).strip())
    if kind:
        c.metadata["nbgrader"] = dict(schema_version=3, task=False, grade=kind == "test",
                                      solution=kind == "solution", locked=kind != "solution", grade_id=name,
                                      cell_type="code") | (dict(points=points) if points else {})
    return c


GIVEN = """
    def apply(f, xs):
        "What `f` makes of each of `xs`."
        return [f(x) for x in xs]
"""
RIGHT = dict(double="def double(x): return 2*x", mean="def mean(xs): return sum(xs)/len(xs)",
             last="best = {'name': 'b', 'score': 0.5}")


def lab(before="", **answers):
    "A lab of three questions with the points 1, 2 and 4; `before` is a student's cell of his own in front of all."
    own = RIGHT | answers
    return new_notebook(cells=[
        new_markdown_cell("# A lab"), cell(GIVEN, "locked", "given"),
        cell(before), cell(own["double"], "solution", "double"),
        cell("assert double(4) == 8, 'twice four'\nassert apply(double, [1, 2]) == [2, 4]\n### BEGIN HIDDEN TESTS\n"
             "assert double(-3) == -6 and double('ab') == 'abab', 'SECRET-1'\n### END HIDDEN TESTS",
             "test", "test_double", 1), cell(own["mean"], "solution", "mean"),
        cell("import math\nassert math.isclose(mean([1, 2, 6]), 3)\n### BEGIN HIDDEN TESTS\n"
             "assert math.isclose(mean([0.25]*4), .25), 'SECRET-2'\n### END HIDDEN TESTS", "test", "test_mean", 2),
        cell(own["last"], "solution", "last"),
        cell("assert dict(best)['name'] == 'b' and abs(best['score'] - .5) < 1e-9", "test", "test_last", 4)])


def total(nb):
    "The sum of points as nbgrader would read it off the outputs."
    total = 0
    for c in nb.cells:
        g = c.metadata.get("nbgrader", {})
        if not g.get("grade"): continue
        assert not any(o.output_type == "execute_result" or o.get("name") == "stderr" for o in c.outputs)
        total += 0 if any(o.output_type == "error" for o in c.outputs) else g["points"]
    return total


def graded(nb, limits=QUICK, **kw):
    "-> (points, notebook, log); the notebook can be written as a file."
    nb, log = run_submission(nb, limits, **kw)
    nbformat.validate(nb)
    nbformat.writes(nb).encode("utf-8")
    return total(nb), nb, log


def shown(nb):
    return json.dumps(
        [c.outputs for c in nb.cells if c.cell_type == "code" and not c.metadata.get("nbgrader", {}).get("grade")])


# --- ordinary submissions


def test_a_correct_submission_gets_all_points():
    points, nb, log = graded(lab("print('hello')\n1 + 1"))
    assert (points, log) == (7, [])
    assert [(o.output_type, o.get("text") or o.data["text/plain"])
            for o in nb.cells[2].outputs] == [("stream", "hello\n"), ("execute_result", "2")]
    assert all(c.outputs == [] for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade"))


def test_a_wrong_answer_costs_its_own_question_only():
    points, nb, _ = graded(lab(mean="def mean(xs): return sum(xs)"))
    assert points == 5
    error, = nb.cells[6].outputs
    assert error.ename == "AssertionError" and "line 2: assert math.isclose(mean([1, 2, 6]), 3)" in error.traceback


def test_what_a_hidden_check_says_does_not_show_its_source():
    points, nb, _ = graded(lab(double="def double(x): return 2*abs(x) if isinstance(x, int) else x"))
    assert points == 6
    error, = nb.cells[4].outputs
    assert error.traceback == ["in a hidden check", "AssertionError: SECRET-1"]


def test_an_empty_submission_gets_nothing():
    points, nb, log = graded(lab(**{k: f"raise NotImplementedError('{k} is not written yet')" for k in RIGHT}))
    assert (points, log) == (0, [])
    assert [c.outputs[0].ename for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade")] == ["NameError"]*3


def test_a_submission_without_sense_gets_nothing():
    assert graded(lab(**{k: "§§ this is no Python" for k in RIGHT}))[0] == 0


def test_no_cells_at_all():
    assert graded(new_notebook())[0] == 0


def test_state_is_as_it_was_where_the_check_stands():
    nb = lab(last="best = {'name': 'b', 'score': 0.5}\ndouble = mean = None")
    assert graded(nb)[0] == 7


def test_a_check_changes_nothing_for_later_cells():
    nb = new_notebook(cells=[cell("log = []\ndef note(x): log.append(x); return len(log)"),
                             cell("assert note(1) == 1 and note(2) == 2", "test", "a", 1), cell("seen = len(log)"),
                             cell("assert seen == 0 and note(1) == 1", "test", "b", 1)])
    assert graded(nb)[0] == 2


def test_probes_take_what_cannot_travel():
    student = ("class Counter:\n    def __init__(self, start): self.n = start\n    def up(self): self.n += 1\n"
               "mine = Counter(10)")
    check = """
        from finetune_nb.sandbox.session import probe
        @probe
        def raise_by(kind, start, times):
            c = kind(start)
            for _ in range(times): c.up()
            return c.n
        @probe
        def look(c): return {"n": c.n, "applied": apply(abs, [-1])}
        assert raise_by(Counter, 3, 4) == 7
        assert look(mine) == {"n": 10, "applied": [1]}
    """
    assert graded(new_notebook(cells=[cell(GIVEN, "locked", "given"), cell(student),
                                      cell(check, "test", "t", 1)]))[0] == 1


def test_files_and_settings_reach_it(tmp_path):
    (tmp_path/"data").mkdir(); (tmp_path/"data"/"a.txt").write_text("from a folder")
    (tmp_path/"seen.txt").write_text("read in place")
    student = ("import os\ngot = [open('data/a.txt').read(), open('note.txt').read(), "
               f"open({str(tmp_path/'seen.txt')!r}).read(), os.environ['FINETUNE_NB_PROFILE']]\n"
               "open('data/mine.txt', 'w').write('x')")
    nb = new_notebook(cells=[cell(student),
                             cell("import os\nassert got == ['from a folder', 'bytes', 'read in place', 'smoke'] and "
                                  "os.environ['FINETUNE_NB_PROFILE'] == 'smoke'", "test", "t", 1)])
    assert graded(nb, files={"data": tmp_path/"data", "note.txt": b"bytes"}, readable=[tmp_path/"seen.txt"],
                  settings_env={"FINETUNE_NB_PROFILE": "smoke"})[0] == 1
    assert sorted(p.name for p in (tmp_path/"data").iterdir()) == ["a.txt"]


# --- hostile ones: the points are those that were earned


def test_hang_in_a_cell_is_stopped_and_other_points_stay():
    began = time.monotonic()
    points, nb, log = graded(lab(mean="print('so far')\nwhile True: pass"),
                             Limits(seconds=12, cell_seconds=1, memory_gb=.5))
    assert points == 5 and time.monotonic() - began < 8
    assert [o.get("text") or o.ename for o in nb.cells[5].outputs] == ["so far\n", "Stopped"]
    assert log == ["cell 6 (mean) ran longer than 1 s and was stopped"]


def test_hang_in_a_function_is_stopped_and_other_points_stay():
    points, nb, log = graded(lab(double="def double(x):\n    while True: pass"),
                             Limits(seconds=12, cell_seconds=1, memory_gb=.5))
    assert points == 6
    assert "double(...) did not come to an end in time" in nb.cells[4].outputs[0].evalue and len(log) == 1


def test_hang_in_every_cell_leaves_time_for_what_is_right():
    nb = lab()
    for i in range(4): nb.cells.insert(3, cell("import time; time.sleep(100)"))
    assert graded(nb, Limits(seconds=10, cell_seconds=2, memory_gb=.5))[0] == 7


def test_time_of_the_whole_submission_is_limited():
    began = time.monotonic()
    nb = lab()
    for i in range(30): nb.cells.insert(5, cell("import time; time.sleep(.4)"))
    points, nb, log = graded(nb, Limits(seconds=3, cell_seconds=1, memory_gb=.5))
    assert points == 1 and time.monotonic() - began < 5 and any("was used up" in l for l in log)


def test_fork_bomb_is_contained():
    bomb = ("import os, time\nfor i in range(8):\n    try: os.fork()\n    except OSError: time.sleep(.01)\n"
            "if os.getpid() != me: time.sleep(100)")
    points, _, log = graded(lab("import os; me = os.getpid()", mean=f"{RIGHT['mean']}\n{bomb}"))
    assert points == 7 and "processes running" in log[0], log
    points, _, log = graded(lab("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
                            Limits(seconds=12, cell_seconds=1, memory_gb=.5, processes=24))
    assert points == 7 and "was stopped" in log[0], log


def test_a_full_disk_is_its_own():
    before = os.statvfs("/tmp").f_bavail
    fill = ("try:\n    for i in range(1000): open(f'f{i}', 'wb').write(b'x'*10**6)\n"
            "except OSError as e: print('full:', e.strerror)")
    points, nb, _ = graded(
        lab(fill + "\n" + fill.replace("f'f", "f'/tmp/f") + "\n" + fill.replace("f'f", "f'/dev/shm/f")))
    assert points == 7 and nb.cells[2].outputs[0].text.count("full:") == 3
    assert abs(os.statvfs("/tmp").f_bavail - before)*os.statvfs("/tmp").f_frsize < 500 << 20


def test_a_full_disk_of_many_empty_files():
    points, nb, _ = graded(
        lab("try:\n    for i in range(100_000): open(f'f{i}', 'w').close()\nexcept OSError as e: print('full at', i)"))
    assert points == 7 and nb.cells[2].outputs[0].text.startswith("full at")


def test_memory_is_limited():
    points, nb, _ = graded(lab("x = bytearray(2 << 30)"))
    assert points == 7 and nb.cells[2].outputs[0].ename == "MemoryError"


def test_memory_of_many_processes_is_limited():
    grab = ("import os, time\nfor i in range(8):\n    if os.fork() == 0:\n        x = bytearray(b'x')*(200 << 20); "
            "time.sleep(100)\ntime.sleep(100)")
    points, _, log = graded(lab(grab), Limits(seconds=20, cell_seconds=8, memory_gb=.5))
    assert points == 7 and log == ["cell 3 needed more than 0.5 GB and was stopped"]


def test_memory_that_no_process_owns_cannot_be_had():
    hide = ("import ctypes, os\nC = ctypes.CDLL(None, use_errno=True)\nassert C.shmget(0, 1 << 30, 0o1600) == -1\n"
            "try: os.memfd_create('x')\nexcept OSError as e: print(e.strerror)")
    points, nb, _ = graded(lab(hide))
    assert points == 7 and nb.cells[2].outputs[0].text == "Operation not permitted\n"


def test_forged_score_printed_or_shown():
    forged = "print('7'); print('score: 7/7'); import sys; sys.stdout.write('[]'); sys.stderr.write('passed'); 7.0"
    assert graded(lab(forged, **{k: forged for k in RIGHT}))[0] == 0


def test_an_object_that_equals_everything():
    yes = ("class Yes(float):\n    __eq__ = __lt__ = __gt__ = __contains__ = lambda *a: True\n    __sub__ = __rsub__ = "
           "__abs__ = lambda *a: Yes()\n    __hash__ = None\n")
    assert graded(lab(double=yes + "def double(x): return Yes(1)", mean=yes + "def mean(xs): return Yes(1)",
                      last=yes + "class D(dict):\n    __getitem__ = lambda *a: Yes(1)\nbest = D()"))[0] == 0


def test_patched_builtins_and_modules_have_no_effect_on_checks():
    patch = """
        import builtins, math, sys
        yes = lambda *a, **k: True
        for name in ("abs", "all", "any", "isinstance", "len", "sum", "dict"):
            globals()[name] = yes
        math.isclose = math.fabs = yes
        builtins.AssertionError = type("Quiet", (Exception,), {})
        import finetune_nb.sandbox.session as session, finetune_nb.sandbox.check_worker as worker
        worker.run_check = worker.probe = session.probe = session.run_submission = yes
    """
    wrong = dict(double="def double(x): return 0", mean="def mean(xs): return 0",
                 last="best = {'name': 'a', 'score': 1}")
    assert graded(lab(patch, **wrong))[0] == 0
    points, _, log = graded(lab(patch.replace('"len", "sum", "dict"', '"divmod"')))
    assert (points, log) == (7, [])


def test_broken_builtins_cost_the_cell_that_broke_them():
    assert graded(lab("import builtins\n"
                      "builtins.len = builtins.isinstance = builtins.print = builtins.type = lambda *a: 1/0"))[0] == 7


def test_given_functions_cannot_be_replaced():
    nb = new_notebook(
        cells=[cell("def score(f): return f(3)", "locked", "given"), cell("def f(x): return 0\ndef score(f): return 6"),
               cell("assert score(f) == 6", "test", "t", 1)])
    assert graded(nb)[0] == 0


@pytest.fixture
def many_files():
    "A grader with many open files, as after an hour of tests: what it hands to a sandbox has a high number."
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(60)]
    yield
    for f in held: os.close(f)


@pytest.mark.parametrize("busy", [False, True], ids=["fresh", "busy"])
def test_forged_answers_on_the_connection_fail(busy, request):
    if busy: request.getfixturevalue("many_files")
    forge = """
        import os, socket, struct, threading
        from finetune_nb.sandbox.protocol import pack
        body = pack(dict(value=8, error=None, ok=True))
        for fd in map(int, os.listdir("/proc/self/fd")):  # a busy grader hands over a high number
            for nonce in (bytes(8), b"checkjob") if fd > 2 else ():
                try: os.write(fd, nonce + struct.pack("<Q", len(body)) + body)
                except OSError: pass
    """
    points, _, log = graded(lab(forge, double="def double(x): return 0"))
    assert points == 6 and log and "wrote to the session's connection" in log[0], log


@pytest.mark.parametrize("raw",
                         ["b'\\xff'*100_000", "bytes(64)", "b'\\x00'*8 + b'\\xff'*8", "pickle.dumps(print)*1000"])
def test_garbage_on_the_connection_of_a_check_fails_that_check(raw):
    shout = ("import os, pickle\ndef double(x):\n    for fd in map(int, os.listdir('/proc/self/fd')):\n        try: "
             f"fd > 2 and os.write(fd, {raw})\n        except OSError: pass\n    return 2*x")
    points, nb, _ = graded(lab(double=shout))
    assert points == 6 and nb.cells[4].outputs[0].output_type == "error"


@pytest.mark.parametrize(
    "way", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt",
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import os, signal; os.kill(-1, signal.SIGKILL)",
            "import os, signal; os.kill(-1, signal.SIGSTOP)", "import os; os.closerange(0, 100)",
            "import ctypes; ctypes.string_at(0)", "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"])
def test_ending_the_process_costs_nothing_that_was_earned(way):
    points, nb, log = graded(lab(mean=way))
    assert points == 5 and nb.cells[5].outputs, log


@pytest.mark.parametrize("way", ["import os; os._exit(0)", "raise SystemExit(0)", "raise KeyboardInterrupt",
                                 "import os, signal; os.kill(os.getpid(), 9)", "import os; os.closerange(0, 100)",
                                 "raise StopIteration", "raise type('AssertionError', (BaseException,), {})()"])
def test_ending_the_process_in_a_check_fails_that_check(way):
    points, nb, _ = graded(lab(mean=f"def mean(xs):\n    {way}"))
    assert points == 5 and nb.cells[6].outputs[0].output_type == "error"


def test_replaced_stdout_is_put_back():
    points, nb, _ = graded(
        lab("import sys\nclass Mute:\n    def write(self, x): raise RuntimeError\n    flush = write\n"
            "sys.stdout = sys.stderr = sys.__stdout__ = Mute()", double=RIGHT["double"] + "\nprint('back')"))
    assert points == 7 and nb.cells[3].outputs[0].text == "back\n"


def test_threads_and_processes_left_running_do_no_harm():
    leave = """
        import subprocess, sys, threading, time
        def work():
            while True: print("still here"); time.sleep(.01)
        for _ in range(3): threading.Thread(target=work, daemon=True).start()
        child = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    """
    points, _, log = graded(lab(leave))
    assert points == 7 and log == ["cell 3 left 1 process running, which was ended"]
    points, _, log = graded(lab("import threading, time\nfor _ in range(22): threading.Thread(target=time.sleep, "
                                "args=(100,), daemon=True).start()"))
    assert points == 7 and "threads running" in log[0], log


def test_a_flood_of_output_is_cut():
    points, nb, _ = graded(lab("while True: print('x'*10_000)", last=RIGHT["last"] + "\nprint('y'*10**7)"),
                           Limits(seconds=12, cell_seconds=1, memory_gb=.5, output_kb=50))
    assert points == 7 and len(nbformat.writes(nb)) < 300_000


def test_output_that_would_spoil_the_file_is_cleaned():
    points, nb, _ = graded(lab(
        "import sys\nprint('a\\ud800b\\0c'.encode('utf-8', 'surrogatepass')); "
        "sys.stdout.buffer.write(b'\\xff\\xfe<script>\\x00'); sys.stdout.flush()\nclass Page:\n    def __repr__(self): "
        "return '<b>\\ud800'\n    def _repr_html_(self): return '<script>alert(1)</script>'\nPage()"))
    assert points == 7 and "text/html" not in nbformat.writes(nb)


# --- what it cannot reach


def test_nothing_outside_can_be_read(tmp_path):
    "Other submissions, hidden tests, the gradebook, the teacher's home, and the checkout with the labs."
    course = tmp_path/"course"
    for name in ("submitted/other/lab.ipynb", "source/lab.ipynb", "gradebook.db"):
        (course/name).parent.mkdir(parents=True, exist_ok=True); (course/name).write_text("TOP-SECRET")
        (course/name).chmod(0o644)
    for p in (course, *course.rglob("*/"), *list(course.parents)[:1]): p.chmod(0o755) if p.is_dir() else None
    checkout = Path(__file__).resolve().parents[1]
    tries = [str(p) for p in (course/"submitted"/"other"/"lab.ipynb", course/"source"/"lab.ipynb",
                              course/"gradebook.db", course, Path.home()/".bashrc", Path.home()/".ssh", checkout/"nbs",
                              checkout/"tests"/"test_sandbox.py", checkout/"settings.ini", "/etc/shadow",
                              "/etc/hostname", "/var", "/sys", "/proc/1/environ", "/proc/1/root/tmp")]
    student = f"""
        import glob, os
        got = []
        for p in {tries!r}:
            for way in (os.listdir, lambda p: open(p).read()):
                try: got.append((p, str(way(p))[:100]))
                except OSError: pass
        print([p for p, v in got if v != '[]'])
        print(len(glob.glob('/proc/[0-9]*/cmdline')))
        print(os.listdir({str(Path.home())!r}) if os.path.exists({str(Path.home())!r}) else [])
    """
    points, nb, _ = graded(lab(student))
    readable, seen, home = nb.cells[2].outputs[0].text.splitlines()
    assert points == 7 and readable == "[]" and int(seen) <= 2
    # Of the home there is at most the way to Python and to the kit.
    ways = {p.relative_to(Path.home()).parts[0] for p in map(Path, (sys.prefix, sys.base_prefix, checkout))
            if p.is_relative_to(Path.home()) and p != Path.home()}
    assert set(ast.literal_eval(home)) <= ways
    assert "TOP-SECRET" not in nbformat.writes(nb)


def test_notebooks_inside_the_package_are_covered():
    student = ("import finetune_nb, pathlib\n"
               "print(len(list(pathlib.Path(finetune_nb.__file__).parent.rglob('*.ipynb'))), "
               "len(list(pathlib.Path(finetune_nb.__file__).parent.rglob('*.py'))) > 50)")
    assert graded(lab(student))[1].cells[2].outputs[0].text == "0 True\n"


def test_the_source_of_a_hidden_check_never_gets_there():
    "Whoever looks through the memory of every process finds no hidden line; probes come after the last cell."
    spy = """
        import gc, os, sys
        def double(x):
            f, seen = sys._getframe(), []
            while f:
                known = {**f.f_locals, **f.f_globals}.values()
                seen += [str(v) for v in known if isinstance(v, (str, bytes, dict, list))]; f = f.f_back
            seen += [str(o) for o in gc.get_objects() if isinstance(o, (str, bytes, bytearray))]
            open("found.txt", "a").write("SECRET-" + "1" in str(seen) and "LEAK" or "nothing ")
            return 2*x
    """
    nb = lab(double=spy, last=RIGHT["last"] + "\nimport os\nprint(os.path.exists('found.txt'))")
    nb.cells.insert(4, cell("def leak(): return open('found.txt').read()"))
    nb.cells[5].source = ("from finetune_nb.sandbox.session import probe\n@probe\n"
                          "def hidden_probe_name(f): return f(1)\nassert double(2) == 4\n"
                          "assert 'LEAK' not in leak() and 'nothing' in leak()\nassert hidden_probe_name(double) == 2")
    points, nb, _ = graded(nb)
    assert points == 7 and "False" in nb.cells[8].outputs[0].text and "hidden_probe_name" not in shown(nb)


def test_nothing_outside_can_be_written(tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path/"readable").mkdir(); (tmp_path/"readable"/"x.txt").write_text("as it was")
    (tmp_path/"readable"/"x.txt").chmod(0o666); (tmp_path/"readable").chmod(0o777)
    import finetune_nb
    student = f"""
        import os
        for p in ({str(tmp_path)!r}, {str(tmp_path/'readable')!r}, "/usr/lib", "/etc", "/", "/dev",
                  "/proc/sys/kernel/hostname", {str(Path(finetune_nb.__file__).parent)!r}, {sys.prefix + '/lib'!r}):
            for q in (p + "/written", p + "/x.txt", p):
                try: open(q, "w").write("changed"); print("wrote", q)
                except OSError: pass
        for p in ("/usr", {str(tmp_path/'readable'/'x.txt')!r}):
            for f in (os.unlink, os.rmdir, lambda p: os.rename(p, p + "2"), lambda p: os.chmod(p, 0o777)):
                try: f(p); print("changed", p)
                except OSError: pass
    """
    points, nb, _ = graded(lab(student), readable=[tmp_path/"readable"])
    # Its own /tmp may be written to, also where a path to something readable leads through it; here nothing has
    # changed.
    said = "".join(o.text for o in nb.cells[2].outputs).splitlines()
    assert points == 7 and not any(str(tmp_path/"readable") in l or not l.startswith(f"wrote {tmp_path}/")
                                   for l in said), said
    assert ((tmp_path/"readable"/"x.txt").read_text() == "as it was"
            and sorted(p.name for p in tmp_path.rglob("*")) == ["readable", "x.txt"])


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.settimeout(.1); local.bind("\0finetune_nb test of the sandbox"); local.listen()
        student = f"""
            import socket
            for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
                                    (socket.AF_INET, ("10.0.0.1", 80)),
                                    (socket.AF_UNIX, "\\0finetune_nb test of the sandbox"), (40, (2, 1))):
                try:
                    with socket.socket(family) as s: s.settimeout(1); s.connect(address); print("reached", address)
                except OSError as e: pass
            try: print(socket.gethostbyname("example.com"))
            except OSError: pass
        """
        points, nb, _ = graded(lab(student))
        assert points == 7 and nb.cells[2].outputs == []
        with pytest.raises(TimeoutError): server.accept()


def test_no_process_outside_can_be_seen_or_ended():
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        student = f"""
            import os, signal
            seen = [int(p) for p in os.listdir("/proc") if p.isdecimal()]
            hit = []
            for p in ({victim.pid}, {os.getpid()}, 1, *range(3, 300)):
                if p == os.getpid(): continue
                try: os.kill(p, signal.SIGTERM); hit.append(p)
                except OSError: pass
            print(len(seen) <= 2, [p for p in hit if p != 1])
        """
        points, nb, _ = graded(lab(student))
        assert points == 7 and nb.cells[2].outputs[0].text == "True []\n" and victim.poll() is None
    finally: victim.kill(); victim.wait()


def test_secrets_of_the_environment_are_not_there(monkeypatch):
    monkeypatch.setenv("GRADEBOOK_TOKEN", "TOP-SECRET"); monkeypatch.setenv("FINETUNE_NB_NAME", "course")
    points, nb, _ = graded(lab("import os\nprint(os.environ, [open(p).read() for p in ('/proc/self/environ',)])"))
    assert (points == 7 and "TOP-SECRET" not in nbformat.writes(nb) and "HOME" in nb.cells[2].outputs[0].text
            and "FINETUNE_NB_NAME" not in nb.cells[2].outputs[0].text)


def test_rights_cannot_be_had_again():
    student = """
        import ctypes, os, subprocess
        C = ctypes.CDLL(None, use_errno=True)
        print(os.getuid() != 0,
              [C.unshare(0x10000000), C.unshare(0x20000), C.mount(b"none", b"/tmp", b"tmpfs", 0, None),
               C.umount2(b"/usr", 2), C.chroot(b"/tmp"), C.setuid(0), C.ptrace(16, 1, 0, 0), C.setns(0, 0),
               C.syscall(321, 0, 0, 0)])
        marks = ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp:")
        print([l.split()[1] for l in open("/proc/self/status") if l.startswith(marks)])
        try: print(subprocess.run(["unshare", "-Ur", "id"], capture_output=True).returncode)
        except OSError: print(1)
    """
    points, nb, _ = graded(lab(student))
    first, second, third = nb.cells[2].outputs[0].text.splitlines()
    assert (points == 7 and first == f"True {[-1]*9}" and second == f"{['0'*16, '0'*16, '0'*16, '1', '2']}"
            and third != "0")


def test_links_in_a_submission_lead_nowhere(tmp_path):
    (tmp_path/"secret.txt").write_text("TOP-SECRET"); (tmp_path/"submitted").mkdir()
    (tmp_path/"submitted"/"photo.png").symlink_to(tmp_path/"secret.txt")
    (tmp_path/"submitted"/"all").symlink_to(tmp_path)
    points, nb, _ = graded(lab("import os\nfor p in ('submitted/photo.png', 'submitted/all/secret.txt'):\n    "
                               "try: print(open(p).read())\n    except OSError: pass"),
                           files={"submitted": tmp_path/"submitted"})
    assert points == 7 and nb.cells[2].outputs == []
    for name, what in (("../x", b""), ("/x", b""), ("x", tmp_path/"submitted"/"photo.png"), ("x", tmp_path/"none")):
        with pytest.raises(IsolationError): run_submission(lab(), QUICK, files={name: what})


def test_two_submissions_do_not_meet():
    "Files, sockets and processes of one are not there for the other, which runs at the same time."
    from concurrent.futures import ThreadPoolExecutor
    leave = ("import socket, time\nfor p in ('/tmp/mine', '/dev/shm/mine', 'mine'): open(p, 'w').write('TOP-SECRET')\n"
             "s = socket.socket(socket.AF_UNIX); s.bind('\\0mine'); s.listen()\n"
             "t = socket.create_server(('127.0.0.1', 5000)); time.sleep(1.5)")
    look = ("import os, socket, time\ntime.sleep(.7)\nfor p in ('/tmp/mine', '/dev/shm/mine', 'mine'): "
            "print(os.path.exists(p))\nfor f, a in ((socket.AF_UNIX, '\\0mine'), (socket.AF_INET, ('127.0.0.1', "
            "5000))):\n    with socket.socket(f) as s: print(s.connect_ex(a) == 0)")
    with ThreadPoolExecutor(2) as pool:
        (a, _, _), (b, nb, _) = pool.map(lambda before: graded(lab(before)), (leave, look))
    assert (a, b) == (7, 7) and nb.cells[2].outputs[0].text.split() == ["False"]*5


def test_a_neighbour_that_takes_all_processors_costs_no_points():
    from concurrent.futures import ThreadPoolExecutor
    hog = "import os\nfor _ in range(15):\n    if os.fork() == 0:\n        while True: pass\nwhile True: pass"
    work = ("import time\nbegan = time.process_time(), time.monotonic()\n"
            "while time.process_time() - began[0] < .5: pass\nspent = time.monotonic() - began[1]\nprint(spent)")
    with ThreadPoolExecutor(2) as pool:
        (a, _, log), (b, nb, none) = pool.map(
            lambda x: graded(lab(x), Limits(seconds=10, cell_seconds=3, memory_gb=.5)), (hog, work))
    assert (a, b, none) == (7, 7, []) and "was stopped" in log[0]


def test_nothing_is_left_running():
    mark = f"sleep {31000 + os.getpid() % 1000}.5"
    graded(lab(f"import subprocess\nfor _ in range(3): subprocess.Popen({mark.split()!r}, start_new_session=True)",
               mean="import os; os._exit(0)"))
    time.sleep(.2)
    running = [Path(p, "cmdline").read_bytes() for p in Path("/proc").glob("[0-9]*") if (p/"cmdline").exists()]
    assert not any(mark.encode().replace(b" ", b"\0") in r for r in running)


def test_a_grader_that_is_killed_takes_the_sandbox_along(tmp_path):
    code = ("import sys\nfrom finetune_nb.sandbox.isolation import *\nbox = isolate(['/bin/sleep', "
            f"'{32000 + os.getpid() % 1000}.5'])\nprint('up', flush=True)\nimport time; time.sleep(60)")
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert grader.stdout.readline() == b"up\n"
    def there():
        return any(f"{32000 + os.getpid() % 1000}.5".encode() in (p/"cmdline").read_bytes()
                   for p in Path("/proc").glob("[0-9]*") if (p/"cmdline").exists() and p.name != str(grader.pid))
    def comes_true(what):
        until = time.monotonic() + 5
        while not what() and time.monotonic() < until: time.sleep(.05)
        return what()
    assert comes_true(there)
    grader.kill(); grader.wait()
    assert comes_true(lambda: not there())


# --- without isolation


def test_refused_where_it_is_impossible(monkeypatch):
    from finetune_nb.sandbox import isolation as module
    monkeypatch.setattr(module, "can_isolate", lambda: (False, "user namespaces are not allowed here"))
    with pytest.raises(
        IsolationError,
        match=r"cannot be isolated on this machine: user namespaces are not allowed here. "
              r"--no-isolation \(unsafe=True\) goes on"):
        run_submission(lab(), QUICK)
    points, _, log = graded(lab(), unsafe=True)
    assert points == 7 and log == ["it ran without isolation, as asked for"]


def test_limits_hold_without_isolation():
    points, nb, log = graded(
        lab("x = bytearray(2 << 30)",
            mean="import subprocess\nsubprocess.Popen(['sleep', '100'], start_new_session=True)\nwhile True: pass"),
        Limits(seconds=12, cell_seconds=1, memory_gb=.5, disk_mb=4), unsafe=True)
    assert points == 5 and nb.cells[2].outputs[0].ename == "MemoryError" and "ran longer than 1 s" in log[1]
    points, nb, _ = graded(lab("open('big', 'wb').write(b'x'*(8 << 20))"),
                           Limits(seconds=12, cell_seconds=1, disk_mb=4), unsafe=True)
    assert points == 7 and nb.cells[2].outputs[0].ename == "OSError"


def test_an_ordinary_user_can_isolate_too():
    "The superuser grades here: then the same is tried as the user nobody."
    if os.getuid() != 0 or not Path("/usr/bin/setpriv").exists():
        pytest.skip("only the superuser can become somebody else; the other tests ran as an ordinary user")
    python = next((p for p in ("/usr/bin/python3",) if Path(p).exists()
                   and subprocess.run([p, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode == 0),
                  None)
    checkout = Path(__file__).resolve().parents[1]
    if python is None or subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "test", "-r",
                                         checkout/"finetune_nb"/"__init__.py"]).returncode:
        pytest.skip("nobody can read the checkout, or there is no Python that nobody can run")
    code = ("from finetune_nb.sandbox.isolation import *; print(can_isolate()); d = run_isolated(['/bin/sh', '-c', 'id "
            "-u; kill -9 1; echo done'], Limits(seconds=5)); print(d.returncode, d.stdout.split())")
    done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env",
                           f"PYTHONPATH={checkout}", python, "-B", "-c", code], capture_output=True, text=True, cwd="/")
    first, second = done.stdout.splitlines()
    assert first.startswith("(True") and second == "0 ['1000', 'done']", done


def test_run_isolated_says_how_it_ended():
    def end(*command, **limits):
        done = run_isolated(command, Limits(**dict(seconds=5, memory_gb=.25) | limits))
        return done.returncode, done.reason, done.stdout
    assert end("/bin/sh", "-c", "echo hello; exit 3") == (3, "ended", "hello\n")
    assert end("/bin/sh", "-c", "kill -9 $$") == (-9, "ended", "")
    assert end("/bin/sleep", "10", seconds=.3) == (None, "time", "")
    assert end(sys.executable, "-S", "-c", "import os, time\nfor _ in range(4):\n    if not os.fork(): x = "
               "bytearray(b'x')*(100 << 20); time.sleep(9)\ntime.sleep(9)")[:2] == (None, "memory")
    with pytest.raises(IsolationError, match="/bin/no_such_program"): run_isolated(["/bin/no_such_program"])
