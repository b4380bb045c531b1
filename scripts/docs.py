"""Make the documentation site from the notebooks: build/site, readable without internet, also by opening index.html
from the disk.

Notebooks are shown with the outputs they carry; labs as students get them. Links, anchors and pictures of the
finished site are checked; anything broken is named and the exit status is 1."""
import argparse, fnmatch, logging, os, shutil, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # a notice about the theme's future, not about this site

try: from docs_text import DocsError, Places, Text, code_html
except ImportError as e:
    sys.exit(f'error: the site needs the package {e.name}; pip install "finetune_nb[docs]" or, in a clone, pip '
             'install -e ".[docs]"')
from docs_links import check_links
from docs_notebook import Page, lead, module_of, notebook_page, public_names, read, source_of, title_and_summary

NBS, DOCS = ROOT/"nbs", ROOT/"docs"
SECTIONS = {"tutorials": "Tutorials", "labs": "Labs", "howto": "How to", "api": "Library"}
# the order in the menu; others follow
HOWTO = ("photos", "texts", "documents", "real_networks", "hub_offline", "recipe", "study", "class", "offline_room",
         "cite")
FLOORS = {"core": "Core", "sandbox": "Sandbox", "models": "Models", "worlds": "Made-up worlds", "data": "Data",
          "layers": "Layers", "training": "Training", "recipes": "Recipes", "retrieval": "Retrieval",
          "experiments": "Experiments", "continual": "One task after another", "explain": "Understanding",
          "rag_vs_ft": "Retrieval or fine-tuning", "claims": "Claims", "pretraining": "Pre-training",
          "grading": "Grading", "projects": "Projects", "widgets": "Widgets", "cli": "Command line",
          "": "Everything by name"}


def sources():
    "{source file: page without suffix}, in the order of the site."
    out = {NBS/"index.ipynb": "index"}
    for part in SECTIONS:
        if part == "howto":
            out |= {f: f"howto/{f.stem}" for f in sorted((DOCS/"howto").glob("*.md"), key=lambda f: (
                HOWTO.index(f.stem) if f.stem in HOWTO else len(HOWTO), f.stem))}
        else:  # the library in the order of its floors, each folder in the order of its numbers
            def floor(f, part=part):
                folders = f.relative_to(NBS/part).parts[:-1]
                return list(FLOORS).index(folders[0]) if folders and part == "api" else len(FLOORS), f
            out |= {f: f"{part}/{f.relative_to(NBS/part).with_suffix('').as_posix()}"
                    for f in sorted((NBS/part).rglob("*.ipynb"), key=floor) if ".ipynb_checkpoints" not in f.parts}
        out[DOCS/f"{part}.md"] = f"{part}/index"
    return out | {NBS/"claims.ipynb": "claims"}


def student_cells(path):
    "The cells of a lab as a student gets them: no solutions, no hidden tests."
    from finetune_nb.grading.versions import student_version
    from finetune_nb.grading.lab import read_notebook
    cells = student_version(read_notebook(path))["cells"]
    left = [s for c in cells for s in ("BEGIN SOLUTION", "BEGIN HIDDEN TESTS") if s in source_of(c)]
    if left:
        raise DocsError(
            f"{path.relative_to(ROOT).as_posix()}: the student's copy still holds '{left[0]}'; it is not shown")
    return cells


def overview(part, pages, told):
    "Table of a section's pages: what each is about."
    mine = [s for s, p in pages.items() if p.startswith(part + "/") and not p.endswith("/index")]
    to = lambda s: Path(os.path.relpath(s, DOCS)).as_posix()
    if part != "api":
        return "\n".join(["| | |", "|---|---|",
                          *(f"| [{told[s][0]}]({to(s)}) | {told[s][1]} |" for s in mine)]) if mine else "None yet."
    out = []
    for floor, title in FLOORS.items():
        rows = [f"| [`{told[s][2]}`]({to(s)}) | {told[s][1]} |" for s in mine if floor_of(told[s][2]) == floor]
        if rows: out += [f"## {title}", "", "| module | what it is for |", "|---|---|", *rows, ""]
    return "\n".join(out)


def floor_of(module):
    "Folder of the package that a module lies in."
    return module.split(".")[1] if module and module.count(".") > 1 else ""


def navigation(pages, told, has):
    "What MkDocs shows as menu: sections in order, the library by floors."
    nav = [{"Home": "index.md"}]
    for part, title in SECTIONS.items():
        mine = [s for s, p in pages.items() if p.startswith(part + "/") and not p.endswith("/index") and has(pages[s])]
        entry = lambda s: {told[s][0].replace("`", ""): pages[s] + ".md"}
        inner = [entry(s) for s in mine]
        if part == "api":
            inner = [{t: [entry(s) for s in mine if floor_of(told[s][2]) == f]}
                     for f, t in FLOORS.items() if any(floor_of(told[s][2]) == f for s in mine)]
        if inner or has(f"{part}/index"):
            nav.append({title: ([f"{part}/index.md"] if has(f"{part}/index") else []) + inner})
        if part == "howto" and has("claims"): nav.append({"Claims": "claims.md"})
    return nav


def prepare(folder, only=("*",)):
    "Write the pages as Markdown into `folder`; gives (menu, complaints)."
    pages = sources()
    cells = {s: read(s) for s in pages if s.suffix == ".ipynb"}
    told = {s: (*title_and_summary(c), module_of(c)) for s, c in cells.items()}
    told |= {s: (*title_and_summary([{"cell_type": "markdown", "source": s.read_text(encoding="utf-8")}]), None)
             for s in pages if s.suffix == ".md"}
    names, twice = {}, set()
    for s, c in cells.items():
        for n in public_names(c) if NBS/"api" in s.parents else ():
            (twice.add if n in names else lambda n: None)(n); names[n] = f"{pages[s]}.html#{n}"
    places = Places(pages, {n: p for n, p in names.items() if n not in twice})
    text, has = Text(places), lambda page: any(fnmatch.fnmatch(page, o) for o in only)

    def write(page, markdown):
        file = folder/f"{page}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(markdown, encoding="utf-8")

    def words(content, source, page, title=""):
        out = Page()
        for part in lead(text.parts(content, source, page)): out.add(part)
        return out.markdown(title or told[source][0], told[source][1] if source in told else "")

    for s, page in pages.items():
        if not has(page): continue
        if s.suffix == ".ipynb":
            shown = student_cells(s) if s.parent == NBS/"labs" else cells[s]
            made = notebook_page(s, shown, text, page, api=NBS/"api" in s.parents)
            if page == "index": made = home(made, text)
            write(page, made)
        else:
            content = s.read_text(encoding="utf-8")
            if page.endswith("/index"):
                content = content.replace("{overview}", overview(page.split("/")[0], pages, told))
            write(page, words(content, s, page))
    for s, page in list(places.files.items()):  # a file of the repository that some page links to
        content = s.read_text(encoding="utf-8", errors="replace")
        name = s.relative_to(ROOT).as_posix()
        write(page, words(content, s, page, name) if s.suffix == ".md" else page_of_file(name, content))
    for path, data in places.pictures.items():
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/path).write_bytes(data)
    shutil.copytree(DOCS/"assets", folder/"assets", dirs_exist_ok=True)
    return navigation(pages, told, has), places.complaints


def page_of_file(name, content):
    "A page that shows a file of text."
    out = Page()
    out.add((1, f"`{name}`"))
    out.add(code_html(content, {"ini": "ini", "toml": "toml", "py": "python", "yaml": "yaml", "yml": "yaml",
                                "json": "json"}.get(name.rsplit(".", 1)[-1], "text")))
    return out.markdown(name, "")


def home(made, text):
    "The first page: the three doors go below its first sentence."
    doors = text.parts((DOCS/"doors.md").read_text(encoding="utf-8"), DOCS/"doors.md", "index")
    assert all(isinstance(d, str) for d in doors), "docs/doors.md holds no headings"
    head, body = made.replace("\n---\n", "\nhide: [navigation]\n---\n", 1).split("</div>", 1)
    return head + "</div>\n\n" + f'<div class="doors">{"".join(doors)}</div>' + body


class Collect(logging.Handler):
    "Keeps what MkDocs warns about."
    def __init__(self): super().__init__(logging.WARNING); self.said = []
    def emit(self, record): self.said.append(record.getMessage())


def build(out, only=("*",)):
    """Build the site into `out`; gives (pages, links, complaints). An older site is replaced only when the new one is
    complete."""
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    out = Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    collect = Collect()
    log = logging.getLogger("mkdocs")
    log.addHandler(collect); log.propagate = False
    try:
        with tempfile.TemporaryDirectory(prefix=".site_", dir=out.parent) as tmp:
            src, new = Path(tmp)/"src", Path(tmp)/"site"
            nav, complaints = prepare(src, only)
            config = load_config(str(DOCS/"mkdocs.yml"), docs_dir=str(src), site_dir=str(new), nav=nav)
            config.plugins.on_startup(command="build", dirty=False)
            try: mkdocs_build(config)
            finally: config.plugins.on_shutdown()
            n_pages, n_links, wrong = check_links(new)
            old = Path(tmp)/"old"
            if out.exists(): out.rename(old)
            new.rename(out)
    finally: log.removeHandler(collect)
    return n_pages, n_links, complaints + collect.said + wrong


def main():
    "Build the site, check it, say what was found."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", default=str(ROOT/"build"/"site"), help="folder of the finished site")
    p.add_argument("--only", default="*", help="pages to build, such as 'index,tutorials/0*': for a quick look; links "
                                               "to the others count as broken")
    p.add_argument("--check", action="store_true", help="only check the links of a site that is there")
    a = p.parse_args()
    start = time.perf_counter()
    try:
        if a.check and not Path(a.out).is_dir(): raise DocsError(f"no site at {a.out}; make docs builds it")
        pages, links, wrong = check_links(a.out) if a.check else build(a.out, a.only.split(","))
    except DocsError as e: sys.exit(f"error: {e}")
    for w in wrong: print(w, file=sys.stderr)
    print(f"{pages} pages, {links:,} links checked, {len(wrong) or 'none'} broken; "
          f"{time.perf_counter() - start:.0f} s. Open {Path(a.out)/'index.html'}" if not wrong
          else f"{len(wrong)} complaints, see above ({pages} pages, {links:,} links)")
    return 1 if wrong else 0


if __name__ == "__main__": sys.exit(main())
