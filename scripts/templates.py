"""Copy nbs/templates/*.ipynb, without what the cells showed, to finetune_nb/projects/templates/, where an installed
kit finds them.

The notebooks in nbs/templates are the source; `make check` runs this.
"""
import json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bare(text):
    "A notebook as it goes into the package: no outputs, no counts."
    nb = json.loads(text)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell.update(outputs=[], execution_count=None)
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(root=ROOT):
    "Names of the copies that had to be changed."
    source, target, changed = root/"nbs"/"templates", root/"finetune_nb"/"projects"/"templates", []
    target.mkdir(parents=True, exist_ok=True)
    wanted = {p.name: bare(p.read_text(encoding="utf-8")) for p in sorted(source.glob("*.ipynb"))}
    for name, text in wanted.items():
        if not (target/name).is_file() or (target/name).read_text(encoding="utf-8") != text:
            (target/name).write_text(text, encoding="utf-8", newline="\n"); changed.append(name)
    for old in target.glob("*.ipynb"):
        if old.name not in wanted: old.unlink(); changed.append(old.name)
    return changed


if __name__ == "__main__":
    for name in main(): print(f"was out of step, changed now: finetune_nb/projects/templates/{name}", file=sys.stderr)
