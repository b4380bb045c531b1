"Do notebooks, library and README agree? Export and clean must change nothing; if they do, the changes stay for you to look at and commit."
import hashlib, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def state():
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("finetune_nb/**/*.py"), *ROOT.glob("finetune_nb/projects/templates/*.ipynb")]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if ".ipynb_checkpoints" not in f.parts}


before = state()
for tool in ("nbdev-export", "nbdev-clean"): subprocess.run([BIN/tool], cwd=ROOT, check=True)
subprocess.run([sys.executable, ROOT/"scripts"/"templates.py"], cwd=ROOT, check=True)
after = state()
changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
for f in changed: print(f"was out of step, changed now: {f.relative_to(ROOT)}", file=sys.stderr)
counted = [f for f in after if f.suffix == ".ipynb" and '"execution_count": 1' in f.read_text(encoding="utf-8")]
for f in counted: print(f"still carries execution counts: {f.relative_to(ROOT)}", file=sys.stderr)
stale = subprocess.run([sys.executable, ROOT/"scripts"/"readme.py", "--check"]).returncode
if changed or counted or stale: sys.exit(1)
print(f"notebooks, library and README agree ({len(after)} files)")
