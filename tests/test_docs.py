"The documentation site: what a page shows and hides, links, formulas; the whole site in a browser."
import contextlib, functools, html, http.server, json, os, re, shutil, sys, threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"scripts"))
for package in ("mkdocs", "material", "markdown_it", "mdit_py_plugins"):
    pytest.importorskip(package, reason="needs the extra docs")

import docs
from docs_api import documented, public
from docs_links import check_links
from docs_notebook import notebook_page
from docs_text import DocsError, Places, Text, formula

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="  # one pixel


def code(source, *outputs, **metadata):
    return dict(cell_type="code", source=source, outputs=list(outputs), execution_count=7, metadata=metadata)
def words(source): return dict(cell_type="markdown", source=source, metadata={})
def shown(**data):
    return dict(output_type="display_data",
                data={k.replace("__", "/").replace("_plus_", "+"): v for k, v in data.items()}, metadata={})


@pytest.fixture
def page(tmp_path, monkeypatch):
    "Turns cells into the text of a page."
    for module in ("docs_text", "docs_notebook", "docs"): monkeypatch.setattr(sys.modules[module], "ROOT", tmp_path)
    (tmp_path/"nbs"/"api").mkdir(parents=True)
    other, mine = tmp_path/"nbs"/"api"/"30_groups.ipynb", tmp_path/"nbs"/"tutorials"/"01.ipynb"
    places = Places({other: "api/30_groups", mine: "tutorials/01"}, {"layer_groups": "api/30_groups.html#layer_groups"})
    (tmp_path/"settings.ini").write_text("[run]\n")
    def make(*cells, api=False): return notebook_page(mine, list(cells), Text(places), "tutorials/01", api)
    make.places = places
    return make


# ---- a page ----------------------------------------------------------------------------------------------------------
def test_front_matter_directives_and_hidden_cells_do_not_show(page):
    got = page(dict(cell_type="raw", source="---\ntitle: x\nskip_exec: true\n---", metadata={}),
               code("#| default_exp a.b"),
               words("# Title\n\n> What it is\n\n- skip_showdoc: true\n- order: 3\n\nText."),
               code("#| hide\nsecret = 1", shown(text__plain="'secret output'")),
               code("#| echo: false\nquiet()", shown(text__plain="'kept'")),
               code("#| output: false\nshown_code()", shown(text__plain="'dropped'")),
               code("#| slow\n#| timeout: 300\nassert long_enough"), code("#|include: false\nnothing()"),
               code("#| code-fold: true\nfolded()"))
    body = got.split("---\n", 2)[2]
    for gone in ("#|", "secret", "quiet", "dropped", "nothing", "skip_", "order", "execution_count", "In [", "---"):
        assert gone not in body, gone
    assert ("kept" in body and "shown_code" in body and "long_enough" in body and "<summary>Code</summary>" in body
            and 'class="lead">What it is' in body)
    assert got.startswith('---\ntitle: "Title"\ndescription: "What it is"\n') and "# Title" in body


def test_the_best_form_of_an_output_is_shown(page):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "FloatSlider(value=1)"}
    got = page(
        words("# T\n\n## Here"),
        code("plot()", dict(output_type="display_data", data=widget | {"image/png": PNG}, metadata={})),
        code("slide()", dict(output_type="display_data", data=widget, metadata={})), code("frame", shown(
            text__html='<div><style scoped>.dataframe {}</style><table border="1" '
                       'class="dataframe"><thead><tr style="text-align: '
                       'right;"><th></th><th>word</th><th>n</th></tr></thead><tbody><tr><th>0</th><td>a</td>'
                       '<td>1,000.5</td></tr></tbody></table></div>',
            text__plain="as text")),
        code("bar()", shown(text__html="<style>progress {}</style>"),
             shown(text__html='<div><progress max="3" value="3"></progress> 100.00% [3/3 '
                              '00:31&lt;00:00... runs: choosing: 3 done (1 before)]</div>')),
        code("log()", dict(output_type="stream", name="stderr", text="noise"),
             dict(output_type="stream", name="stdout", text="\x1b[31m5 < 6\x1b[0m\n")))
    assert (got.count("<img ") == 1 and "FloatSlider" not in got and "as text" not in got and "noise" not in got
            and "scoped" not in got)
    assert 'width="1" height="1"' in got and 'alt="Figure in the section Here"' in got
    assert ('<td align="right">1,000.5</td>' in got and "<td>a</td>" in got
            and '<div class="scroll"><table class="data"' in got)
    assert "runs: choosing: 3 of 3 in 00:31" in got and "5 &lt; 6" in got
    assert page.places.pictures and all(re.fullmatch(r"pictures/[0-9a-f]{16}\.png", p) for p in page.places.pictures)


def test_links_lead_to_pages(page):
    got = page(words(
        "# T\n\n[a](../api/30_groups.ipynb), [b](../api/30_groups.ipynb#Some-Heading), [c](#Own-Part), "
        "[d](https://example.org/x.ipynb), [e](../../settings.ini), `layer_groups`, `other`, [`layer_groups`](#x)"))
    for href in ("../api/30_groups.html", "../api/30_groups.html#some-heading", "#own-part",
                 "https://example.org/x.ipynb", "../files/settings.ini.html", "../api/30_groups.html#layer_groups"):
        assert f'href="{href}"' in got, href
    assert got.count("<a ") == 7 and not page.places.complaints
    page(words("[x](../api/99_gone.ipynb)"))
    assert page.places.complaints == ["nbs/tutorials/01.ipynb: link to ../api/99_gone.ipynb, which is neither a page "
                                      "nor a file here"]


def test_what_should_not_be_published_is_named(page):
    page(code("x", dict(output_type="stream", name="stdout", text="saved in /home/somebody/x")))
    assert "cell 0: an output shows a path of the machine it ran on" in page.places.complaints[0]
    with pytest.raises(DocsError, match="an error is kept among the outputs"):
        page(code("x", dict(output_type="error", ename="KeyError", evalue="", traceback=[])))
    with pytest.raises(DocsError, match="lies elsewhere"): page(words("![x](https://example.org/x.png)"))
    with pytest.raises(DocsError, match="cannot be drawn"): page(words(r"$\nosuchthing{x}$"))


def test_graded_cells_are_marked(page):
    def lab(grade, solution, points=None):
        return dict(nbgrader=dict(grade=grade, solution=solution, locked=True, grade_id="a")
                    | ({"points": points} if points else {}))
    got = page(code("a = 1", **lab(False, True)), code("assert a", **lab(True, False, 2)),
               code("b = 1", **lab(False, False)), code("c = 1", **lab(True, True, 1)))
    assert re.findall(r'<p class="mark \w+">(.*?)</p>', got) == ["Your code", "Check, 2 points", "Given",
                                                                 "Your answer, 1 point"]


# ---- the library -----------------------------------------------------------------------------------------------------
SOURCE = '''
@dataclass
class Group:
    "A piece."
    name:str  # its name
    items:list = field(default_factory=list)  # what is in it
    def size(self, unit="MB"): # -> float
        "How large."
        return 1
    def hidden(self): return 2

def cut(
    model, # any network
    how="stage", # "stage" or
    lo=0, hi=1, # bounds
    *more,
    strict=True,
): # -> list of Group
    """Cut `model`.

    In pieces & parts."""
def _own(x): "private"
def short(x, y=2): "A line." # about nothing
'''


def test_signatures_and_parameter_comments():
    got = documented(SOURCE)
    assert ([(n, m) for _, n, m in public(SOURCE)] == [("Group", ["Group.size"]), ("cut", []), ("short", [])]
            and [n for n, _ in got] == ["Group", "cut", "short"])
    group, cut, short = (re.sub(r"<[^>]+>", "|", h) for _, h in got)
    assert ("its name" in group and "items=list()" in group and "How large." in group and "hidden" not in group
            and "float" in group and "self" not in group)
    for row in ("|model|||any network|", '|how="stage"|||"stage" or|', "|lo=0|||bounds|", "|hi=1|||bounds|",
                "returns||list of Group|", "|strict=True|||||"):
        assert row in cut.replace("&quot;", '"'), row
    assert "In pieces &amp; parts." in cut and "|model|" in cut
    assert "about nothing" not in short and "parameter" not in short


def test_api_page_documents_exported_cells(page):
    got = page(code("#| default_exp a.b"), words("# Cutting\n\n> In pieces"), code("#| export\nimport os"),
               words("## cut"), code("#| export" + SOURCE), code("#| export\n_own = 3"), code("cut(net)"), api=True)
    assert "Module <code>finetune_nb.a.b</code>" in got and "import os" not in got
    assert ("## `cut` { #cut }" in got and "### `Group` { #Group }" in got and "### `short` { #short }" in got
            and 'id="Group.size"' in got)
    assert (got.index("{ #cut }") < got.index("{ #Group }") and got.count("<details") == 2
            and "cut" in got.split("</details>")[-1])


def test_formulas_are_drawn_in_the_colour_of_the_text():
    got = formula(r"\tfrac{\alpha}{2}\,\lVert w_\text{body} - w^0\rVert^2 \ge \frac12 \sum_{j<T} R_{T,j}")
    assert (got.startswith("<svg") and 'class="formula"' in got and "aria-label=" in got and "fill" not in got
            and len(got) > 2000)
    low, high = (float(re.search(r"height:([\d.]+)em", formula(t))[1]) for t in ("x", r"\frac{x}{y}"))
    assert .3 < low < 1 < high < 2.5


# ---- links -----------------------------------------------------------------------------------------------------------
def test_link_checker_finds_what_is_broken(tmp_path):
    def site(a, b="", css=""):
        (tmp_path/"in").mkdir(exist_ok=True)
        (tmp_path/"a.html").write_text(a); (tmp_path/"in"/"b.html").write_text(b); (tmp_path/"s.css").write_text(css)
        (tmp_path/"p.png").write_bytes(b"")
        return check_links(tmp_path)[2]
    assert site('<a href="in/b.html#x"></a><a href="#y"></a><p id="y"></p><img src="p.png"><a '
                'href="https://e.org"></a><a href="mailto:a@b"></a>', '<p id="x"></p><a href="../a.html"></a>') == []
    for bad in ('<a href="in/c.html"></a>', '<a href="in/b.html#z"></a>', '<a href="#n"></a>',
                '<img src="q.png">', '<img src="https://e.org/x.png">', '<script src="//e.org/x.js"></script>',
                '<link rel="stylesheet" href="http://e.org/x.css">',
                '<p id="t"></p><p id="t"></p>', '<a href="../outside.html"></a>'):
        assert len(site(bad)) == 1, bad
    assert (site("", css="@font-face { src: url(https://e.org/f.woff) }")
            == ["s.css: loads https://e.org/f.woff from outside"])


# ---- the real pages --------------------------------------------------------------------------------------------------
def test_no_solution_and_no_hidden_test_is_published(tmp_path):
    docs.prepare(tmp_path, ("labs/*",))
    sources, secrets = sorted((ROOT/"nbs"/"labs").glob("*.ipynb")), 0
    assert sources and {f.stem for f in sources} == {f.stem for f in (tmp_path/"labs").glob("*.md")} - {"index"}
    for source in sources:
        page = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path/"labs"/f"{source.stem}.md").read_text(encoding="utf-8")))
        told = "\n".join("".join(c["source"]) for c in json.loads(source.read_text(encoding="utf-8"))["cells"])
        block = r"### BEGIN (?:SOLUTION|HIDDEN TESTS)[ \t]*\n(.*?)### END"
        given = re.sub(block, "", told, flags=re.S)
        for line in {l.strip() for s in re.findall(block, told, re.S) for l in s.splitlines()}:
            if len(line) < 12 or line in given: continue  # said elsewhere anyway
            secrets += 1
            assert line not in page, f"{source.name}: {line}"
        assert "BEGIN SOLUTION" not in page and "HIDDEN TESTS" not in page
    assert secrets > 20*len(sources)


def test_a_part_of_the_site_is_built(tmp_path):
    pages, links, said = docs.build(tmp_path/"site", ("index", "api/layers/03_groups", "tutorials/01*"))
    assert pages >= 4 and links > 100
    assert not [s for s in said if "leads nowhere" not in s], said  # the pages that were left out
    page = (tmp_path/"site"/"api"/"layers"/"03_groups.html").read_text(encoding="utf-8")
    assert 'id="layer_groups"' in page and 'class="data parameters"' in page and "__palette" in page
    assert [p.name for p in tmp_path.iterdir()] == ["site"], "nothing is left behind"


# ---- the whole site in a browser -------------------------------------------------------------------------------------
@contextlib.contextmanager
def served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally: server.shutdown(); server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")/"site"
    _, _, said = docs.build(folder)
    return folder, said


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    own = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=own,
                              args=["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else [])
        yield b
        b.close()


@pytest.mark.slow
def test_every_notebook_is_a_page_and_every_link_leads_somewhere(site):
    folder, said = site
    assert said == []
    for part in ("api", "tutorials", "labs", "pretraining"):
        assert ({f.stem for f in (ROOT/"nbs"/part).glob("*.ipynb")} == {f.stem for f in (folder/part).glob("*.html")}
                - {"index"})
    assert ({f.stem for f in (ROOT/"docs"/"howto").glob("*.md")} == {f.stem for f in (folder/"howto").glob("*.html")}
            - {"index"})
    for f in folder.rglob("*.html"):
        if f.parent.name == "files": continue  # how to contribute: it speaks of directives
        # source code may speak of notebooks
        body = re.sub(r'<div class="highlight.*?</div>', "", f.read_text(encoding="utf-8"), flags=re.S)
        for gone in ("#|", "execution_count", "widget-view", "In&nbsp;[", "Traceback (most recent"):
            assert gone not in body, f"{f.name}: {gone}"
        assert f.name == "404.html" or body.count("<h1") == 1, f.name


@pytest.mark.browser
def test_no_page_asks_the_internet_or_scrolls_sideways(site, browser):
    site, outside, wide, lost = site[0], set(), [], set()
    with served(site) as base:
        page = browser.new_page(viewport=dict(width=390, height=844))
        page.on("request", lambda r: r.url.startswith((base, "data:", "blob:")) or outside.add(r.url))
        page.on("response", lambda r: r.status >= 400 and lost.add(r.url))
        page.on("pageerror", lambda e: lost.add(str(e)))
        for f in sorted(site.rglob("*.html")):
            page.goto(base + f.relative_to(site).as_posix())
            if (w := page.evaluate("document.documentElement.scrollWidth")) > 390: wide.append((f.name, w))
    assert not outside and not wide and not lost


@pytest.mark.browser
@pytest.mark.parametrize("how", ["served", "from the disk"])
def test_search_and_dark_mode(site, browser, how):
    site = site[0]
    with served(site) as base:
        page = browser.new_page(viewport=dict(width=1280, height=900), color_scheme="light")
        page.goto((base if how == "served" else site.as_uri() + "/") + "index.html")
        page.locator(".md-search__input").click()
        page.locator(".md-search__input").type("layer_groups")
        page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
        assert "03_groups.html" in page.locator(".md-search-result__link").first.get_attribute("href")
        page.keyboard.press("Escape")
        seen = set()
        for _ in range(3):
            seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.locator("label.md-header__button[for^=__palette]:visible").click()
        assert len(seen) == 2, seen
