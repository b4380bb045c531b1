"""Do notebooks, library and README agree, and is the code in order?

Export and clean must change nothing; if they do, the changes stay for you to look at and commit. Then ruff: what it
asks for and who is still excused stands in pyproject.toml; whoever needs no excuse any more is struck off there.
"""
import hashlib, json, subprocess, sys, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def state():
    "Hashes of the files that export and clean may change."
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("finetune_nb/**/*.py"),
             *ROOT.glob("finetune_nb/projects/templates/*.ipynb")]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if ".ipynb_checkpoints" not in f.parts}


def in_step():
    "What notebooks, library and README disagree on, one line each."
    before = state()
    for tool in ("nbdev-export", "nbdev-clean"): subprocess.run([BIN/tool], cwd=ROOT, check=True)
    subprocess.run([sys.executable, ROOT/"scripts"/"templates.py"], cwd=ROOT, check=True)
    after = state()
    changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    counted = [f for f in after if f.suffix == ".ipynb" and '"execution_count": 1' in f.read_text(encoding="utf-8")]
    stale = subprocess.run([sys.executable, ROOT/"scripts"/"readme.py", "--check"]).returncode
    return ([f"was out of step, changed now: {f.relative_to(ROOT)}" for f in changed] +
            [f"still carries execution counts: {f.relative_to(ROOT)}" for f in counted] +
            ["README.md is out of step"]*bool(stale))


def ruff(*options):
    "What ruff finds: (file, line number, code, message). nbdev writes `__all__` ten columns wider than it means to."
    done = subprocess.run([BIN/"ruff", "check", "--output-format", "json", "--no-cache", *options], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode > 1: sys.exit(done.stderr)
    found = [(Path(f["filename"]), f["location"]["row"], f["code"], f["message"]) for f in json.loads(done.stdout)]
    line = lambda file, row: file.read_text(encoding="utf-8").splitlines()[row - 1]
    return [f for f in found if f[2] != "E501" or not line(*f[:2]).startswith("__all__ = ")]


def lint():
    "Complaints, and excuses in pyproject.toml that nobody needs any more."
    rules = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    out = [f"{file.relative_to(ROOT)}:{row}: {code} {message}" for file, row, code, message in ruff()]
    width = ["--isolated", "--line-length", str(rules["line-length"]), "--extend-exclude", "*.ipynb"]
    for pattern, codes in rules["lint"]["per-file-ignores"].items():
        files = [str(f) for f in ROOT.glob(pattern) if f.suffix == ".py" or f.is_dir()]
        needed = {f[2] for f in ruff(*width, "--select", ",".join(codes), *files)} if files else set()
        out += [f"pyproject.toml, per-file-ignores: '{pattern}' needs {c} no longer" for c in codes if c not in needed]
    return out


def main():
    "Print every complaint; exit status 1 if there is one."
    wrong = in_step() + lint()
    for line in wrong: print(line, file=sys.stderr)
    if wrong: sys.exit(1)
    print("notebooks, library and README agree; ruff has nothing to say")


if __name__ == "__main__": main()
