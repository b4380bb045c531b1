"Make README.md (or what --to names) from nbs/index.ipynb; the figure goes to nbs/images/."
import argparse, base64, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def readme(index):
    """(markdown, {file name: bytes}) of the notebook `index`: cells marked `#| hide` left out, directives removed,
    figures as files."""
    nb, images = nbformat.read(index, 4), {}
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(hide|default_exp)", c.source)]
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        if re.search(r"^#\|\s*echo:\s*false", cell.source, re.M): cell.metadata["transient"] = {"remove_source": True}
        cell.source = "\n".join(l for l in cell.source.splitlines() if not l.startswith("#|"))
        for out in cell.get("outputs", []):
            if png := out.get("data", {}).get("image/png"):
                name = f"readme_{len(images)}.png"
                images[name] = base64.b64decode(png)
                out.data = {"text/markdown": f"![Made by the cell above](nbs/images/{name})"}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    head = "<!-- Made from nbs/index.ipynb by `make readme`; edit it there. -->\n\n"
    # Links in the notebook are relative to nbs/.
    text = re.sub(r"\]\((?!http|#|nbs/)([^)]+)\)",
                  lambda m: f"]({m[1][3:]})" if m[1].startswith("../") else f"](nbs/{m[1]})", text)
    return head + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", images


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is out of step")
    a = p.parse_args()
    text, images = readme(ROOT/"nbs"/"index.ipynb")
    files = {ROOT/"README.md": text.encode(), **{ROOT/"nbs"/"images"/n: b for n, b in images.items()}}
    stale = [f for f, b in files.items() if not f.exists() or f.read_bytes() != b]
    if a.check:
        for f in stale: print(f"out of step with nbs/index.ipynb: {f.relative_to(ROOT)} (make readme)", file=sys.stderr)
        sys.exit(bool(stale))
    for f in stale: f.parent.mkdir(exist_ok=True); f.write_bytes(files[f])
