"A class without internet: what is packed, what must not be in it, and what a student's laptop makes of it."
import json, re, subprocess, sys, zipfile

import pytest

from finetune_nb.grading.class_bundle import bundle_class, check_bundle
from tests.helpers import ROOT, cli, environment, refused

LABS = sorted((ROOT/"nbs"/"labs").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "The bundle of this checkout, as a student has it: taken out of the zip, somewhere else."
    tmp = tmp_path_factory.mktemp("room")
    (tmp/"class").mkdir()
    (tmp/"class"/"settings.ini").write_text(
        "[run]\nprofile = smoke\nseeds = 2\n\n[class]\nname = Tuesday course\nlabs = all\n")
    made = bundle_class(tmp/"course.zip", tmp/"class"/"settings.ini", source=None if LABS else False)
    with zipfile.ZipFile(tmp/"course.zip") as z: z.extractall(tmp/"stick")
    assert made["files"] == len([p for p in (tmp/"stick"/"course").rglob("*") if p.is_file()])
    return tmp/"stick"/"course"


def installed(room, target):
    "The bundle's kit in a folder of its own, as pip installs it; this checkout is out of the way."
    if not target.exists():
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps",
                               "--no-compile", "--disable-pip-version-check", "-q", "--target", target,
                               next((room/"kit").glob("*.whl"))], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return target


def student(room, tmp, *args, limit=300):
    "finetune-nb from the installed copy, in the bundle's folder."
    kit = installed(room, room.parent/"site")
    return subprocess.run([sys.executable, "-c",
                           "import sys; from finetune_nb.cli.main import main; import finetune_nb; assert 'site' in "
                           "finetune_nb.__file__; sys.exit(main())", *map(str, args)], cwd=room,
                          env=environment(tmp, PYTHONPATH=str(kit)), capture_output=True, text=True, timeout=limit)


def test_everything_is_there_and_whole(room):
    state = check_bundle(room)
    assert not (state["missing"] or state["damaged"] or state["changed"] or state["added"])
    names = set(state["manifest"]["files"])
    assert {"START_HERE.md", "settings.ini", "wheels.txt"} <= names and len(
        [n for n in names if n.startswith("tutorials/")]) == len(list((ROOT/"nbs"/"tutorials").glob("*.ipynb")))
    assert len(state["manifest"]["labs"]) == len(LABS)
    listed = (room/"wheels.txt").read_text()
    assert (re.search(r"^torch==\d", listed, re.M) and re.search(r"^jupyterlab==\d", listed, re.M)
            and not re.search(r"^finetune", listed, re.M))


def test_nothing_of_this_machine(room):
    for p in room.rglob("*"):
        if p.is_file() and p.suffix in (".md", ".ini", ".txt", ".json", ".ipynb"):
            assert str(ROOT) not in p.read_text(encoding="utf-8"), p.name


@pytest.mark.skipif(not LABS, reason="no labs in nbs/labs")
def test_no_solution_and_no_hidden_test(room):
    """Every line between markers in the sources is looked for in every notebook and page, the wheel's included, unless
    it also stands outside of markers; the library may hold what a lab asks for."""
    secret, open_ = set(), set()
    for lab in LABS:
        for cell in json.loads(lab.read_text(encoding="utf-8"))["cells"]:
            g, inside = cell["metadata"].get("nbgrader") or {}, False
            for line in "".join(cell["source"]).splitlines():
                if "### BEGIN" in line: inside = True
                elif "### END" in line: inside = False
                # A hand-graded answer is a solution as a whole.
                elif len(line.strip()) > 25:
                    (secret if inside or g.get("grade") and g.get("solution") else open_).add(line.strip())
    secret = {s for s in secret - open_ if not s.startswith(("import ", "from "))}
    assert len(secret) > 20, "the labs hold solutions, or this test looks for nothing"
    # a tutorial may show a line that a lab asks for
    files = {str(p): p.read_bytes()
             for p in room.rglob("*") if p.is_file() and p.suffix != ".whl" and "tutorials" not in p.parts}
    with zipfile.ZipFile(next((room/"kit").glob("*.whl"))) as z:
        files |= {n: z.read(n) for n in z.namelist() if not n.endswith(".safetensors")}
    for name, data in files.items():
        if name.endswith(".ipynb"): data = "\n".join("".join(c["source"]) for c in json.loads(data)["cells"]).encode()
        text = data.decode("utf-8", "replace")
        assert not any(m in text for m in ("BEGIN SOLUTION", "BEGIN HIDDEN")) or name.endswith(".py"), name
        if not name.endswith((".md", ".txt", ".json", ".py")): assert not [s for s in secret if s in text], name


def test_a_laptop_that_is_ready(room, tmp_path):
    done = student(room, tmp_path, "doctor")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # paths are as long as they are
    assert lines[-1] == "ready" and len(lines) <= 24 and max(map(len, lines)) <= 160 + len(str(room)), done.stdout
    assert ("Tuesday course" in done.stdout and any("bundle" in l and "whole" in l for l in lines)
            and any("ms a step" in l for l in lines))


def test_quick_starts_from_the_installed_kit(room, tmp_path):
    "The templates went along."
    (tmp_path/"docs").mkdir()
    for i in range(6):
        (tmp_path/"docs"/f"{i}.md").write_text(
            f"# A piece of number {i}\nIt comes after {i - 1} in every list. Nobody has ever counted past it twice. A "
            "child learns it in its first year. It is neither good nor bad.\n")
    done = student(room, tmp_path, "new", tmp_path/"mine", "--kind", "rag", "--data", tmp_path/"docs")
    assert done.returncode == 0, done.stderr
    assert (tmp_path/"mine"/"project.ipynb").is_file()


def test_a_damaged_bundle_is_named(room, tmp_path):
    wheels, kept = room/"wheels.txt", (room/"wheels.txt").read_text()
    try:
        wheels.write_text(kept + "x==1\n")
        done = student(room, tmp_path, "doctor", "--quick", "--json")
        got = json.loads(done.stdout)
        assert got["ready"] is False and "wheels.txt is damaged" in got["trouble"][0]
        assert done.returncode == 0 and not any(r["check"] == "training" for r in got["checks"])
        wheels.unlink()
        out = student(room, tmp_path, "doctor", "--quick").stdout
        assert "wheels.txt is missing" in out and out.splitlines()[-1] == "not ready: bundle"
    finally: wheels.write_text(kept)


def test_from_the_command_line(tmp_path):
    done = cli(tmp_path, "bundle-class", "--out", "small", "--no-labs", "--no-tutorials", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labs"] == [] and not check_bundle(tmp_path/"small")["damaged"]
    (tmp_path/"small"/"mine.txt").write_text("work")
    assert "holds work that is not of the bundle (mine.txt)" in refused(tmp_path, "bundle-class", "--out",
                                                                        tmp_path/"small", "--no-labs", "--no-tutorials")
    assert (tmp_path/"small"/"mine.txt").read_text() == "work"
    assert "no tutorials in" in refused(tmp_path, "bundle-class", "--out", "x.zip", "--no-labs", "--tutorials",
                                        tmp_path/"small")
    assert not (tmp_path/"x.zip").exists()
