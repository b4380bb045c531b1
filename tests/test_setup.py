"What someone reads whose machine does not fit; and that the shipped files are complete."
import json, os, subprocess, sys

import pytest

from tests.helpers import ROOT, script


@pytest.fixture
def setup(): return script("setup")


def said(capsys, f, *args):
    with pytest.raises(SystemExit) as e: f(*args)
    assert e.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_wrong_python(setup, capsys):
    assert "needs Python 3.11 or newer, this is 3.9" in said(capsys, setup.check_python, (3, 9, 2))
def test_no_disk(setup, capsys): assert "only 2.0 GB are free" in said(capsys, setup.check_disk, 2.0, False)
def test_enough_is_enough(setup):
    setup.check_python((3, 12, 0)); setup.check_disk(50.0, False); setup.check_disk(0.5, True)


def test_no_network_for_real(setup, tmp_path, monkeypatch, capsys):
    "pip against a port where nobody listens."
    monkeypatch.setattr(setup, "LOG", str(tmp_path/"log"))
    line = said(capsys, setup.run, sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "0",
                "--index-url", "http://127.0.0.1:9/simple", "-d", str(tmp_path), "no-such-package-here")
    assert "no network" in line


def test_full_disk(setup):
    assert "the disk is full" in setup.explain("ERROR: Could not install packages due to an OSError: [Errno 28] No "
                                               "space left on device")
def test_other_failures_quote_pip(setup):
    assert "No matching distribution found for x" in setup.explain("Collecting x\n"
                                                                   "ERROR: No matching distribution found for x\n")


def test_a_touched_file_does_not_install_again(setup, tmp_path, monkeypatch):
    (tmp_path/"pyproject.toml").write_text("[project]\n"); (tmp_path/".ready").write_text("")
    monkeypatch.setattr(setup, "ROOT", str(tmp_path)); monkeypatch.setattr(setup, "VENV", str(tmp_path))
    assert not setup.is_ready()
    (tmp_path/".ready").write_text(setup.wanted())
    assert setup.is_ready()
    (tmp_path/"pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert not setup.is_ready()


def conflict(folder):
    "A repository in which a merge has just met two versions of one cell of a.ipynb; gives git's exit status."
    def cell(text): return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type="code", id="c0", metadata={}, source=[text], outputs=[], execution_count=None)]), indent=1)
    def git(*args):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=folder,
                              capture_output=True)
    (folder/".gitattributes").write_text("*.ipynb merge=nbdev-merge\n")
    for branch, text in (("main", "x = 1"), ("theirs", "x = 2"), ("main", "x = 3")):
        git("checkout", "-q", *(["-b"] if branch == "theirs" else []), branch)
        (folder/"a.ipynb").write_text(cell(text)); git("add", "-A"); git("commit", "-qm", text)
    return git("merge", "theirs").returncode


@pytest.mark.parametrize("installed", [True, False])
def test_notebooks_merge_cell_by_cell(setup, tmp_path, installed):
    "Two versions of a cell become two cells; where nbdev is not (any more), git marks the lines as in any text."
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path], check=True)
    setup.merge_notebooks(str(tmp_path), os.path.dirname(sys.executable) if installed else str(tmp_path))
    assert conflict(tmp_path) == 1
    text = (tmp_path/"a.ipynb").read_text()
    if installed: assert {"x = 2", "x = 3"} <= {"".join(c["source"]) for c in json.loads(text)["cells"]}
    else: assert "<<<<<<<" in text and "x = 2" in text and "x = 3" in text


def test_a_folder_without_git_is_left_alone(setup, tmp_path):
    setup.merge_notebooks(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_export_clean_and_readme_agree():
    done = subprocess.run([sys.executable, ROOT/"scripts"/"check.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_floor_imports_only_what_is_below():
    "The architecture of DESIGN, read off the import statements."
    import ast
    floors = [{"core"}, {"sandbox", "worlds"}, {"data"}, {"models"}, {"layers", "retrieval"}, {"training"}, {"recipes"},
              {"experiments"}, {"continual", "explain", "rag_vs_ft"}, {"claims", "grading", "pretraining"},
              {"projects", "widgets"}, {"cli", "all"}]
    level, seen = {name: i for i, floor in enumerate(floors) for name in floor}, 0
    for file in (ROOT/"finetune_nb").rglob("*.py"):
        parts = file.relative_to(ROOT/"finetune_nb").with_suffix("").parts
        if parts[0].startswith("_"): continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module: continue
            # Dots count from the file's own folder: as many as there are folders lead to the package.
            whole = node.module if not node.level else ".".join(["finetune_nb", *parts[:len(parts) - node.level],
                                                                 node.module])
            if not whole.startswith("finetune_nb."): continue
            other, seen = whole.split(".")[1], seen + 1
            assert (level[other] < level[parts[0]]
                    or other == parts[0]), f"{file.relative_to(ROOT)} imports {whole}, which is not on a floor below"
    assert seen > 200, "the imports were not found"


def imported(file):
    "Names of modules that a file of the kit imports, its relative ones spelled out."
    import ast
    parts = file.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ".".join([*parts[:len(parts) - node.level], node.module or ""]) if node.level else node.module


def test_sandbox_and_grading_stand_on_core():
    "A submission is isolated and graded without the rest of the kit; the class bundle alone packs texts of the data."
    for package, may in dict(sandbox={"core", "sandbox"}, grading={"core", "sandbox", "grading"}).items():
        for file in (ROOT/"finetune_nb"/package).glob("*.py"):
            kit = {m.split(".")[1] for m in imported(file) if m.startswith("finetune_nb.")}
            assert kit <= may | ({"data"} if file.stem == "class_bundle" else set()), f"{file.name} imports {kit - may}"


def test_the_launcher_needs_python_alone():
    "It runs before anything of the kit can be imported; what starts it runs without installed packages."
    folder = ROOT/"finetune_nb"/"sandbox"
    assert set(imported(folder/"launcher.py")) <= sys.stdlib_module_names
    others = {m.split(".")[0] for name in ("isolation", "protocol", "student_worker", "check_worker")
              for m in imported(folder/f"{name}.py")}
    # all but the first inside functions
    assert others - sys.stdlib_module_names <= {"finetune_nb", "numpy", "pandas", "torch", "IPython"}
