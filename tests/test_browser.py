"""JupyterLab as a reader, a student and a teacher see it: a real server, a real (headless) Chromium, driven by
Playwright.

Runs with `make test-browser` (flag `browser`). Pictures of what was on the screen go to the folder named by
SCREENSHOTS, or to a temporary one whose name is printed when a test fails."""
import hashlib, json, os, re, secrets, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment, script

WHOLE = 180_000  # ms that a tutorial may take in the smoke profile
STEP = 30_000  # ms for any single thing on the page


def write_notebook(path, *cells):
    "A notebook of (kind, source) cells."
    import nbformat
    new = nbformat.v4
    nb = new.new_notebook(cells=[new.new_markdown_cell(s) if k == "md" else new.new_code_cell(s) for k, s in cells],
                          metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    nbformat.write(nb, path)
    return nb


def copy_for_smoke(path, folder):
    "A tutorial without the cells that assert directions, which hold from the fast profile on."
    import nbformat
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| slow")]
    nbformat.write(nb, folder/path.name)


def write_lab(path):
    "A lab as students get it."
    import nbformat
    from finetune_nb.grading.versions import student_version
    from finetune_nb.grading.lab import example_lab, read_notebook
    source = example_lab(path.parent)
    nbformat.write(student_version(read_notebook(source)), path)
    source.unlink()


SLIDERS = (("md", "# Sliders"), ("code", "from finetune_nb.widgets.figures import layer_rates\nlayer_rates()"))
MENU = (("md", "# A menu"), ("code", "from finetune_nb.widgets.figures import unfreezing\nunfreezing()"))


# ---- no page: a picture ----------------------------------------------------------------------------------------------
def test_without_a_page_a_figure_is_one_picture(tmp_path):
    "nbconvert and the tests run a kernel that no page belongs to."
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    nb = write_notebook(tmp_path/"sliders.ipynb", *SLIDERS)
    before = dict(os.environ)
    os.environ.pop("JPY_SESSION_NAME", None)
    try:
        NotebookClient(nb, timeout=120, kernel_name="python3",
                       resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    finally: os.environ.update(before)
    out, = nb.cells[1].outputs
    assert set(out.data) == {"text/plain", "image/png"} and out.metadata["image/png"]["alt"] == out.data["text/plain"]
    assert not nb.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get(
        "state"), "no state of widgets is kept"
    for template in ("lab", "classic"):
        page, _ = HTMLExporter(template_name=template).from_notebook_node(nb)
        assert page.count("<img") == 1 and "data:image/png;base64" in page
    assert f'alt="{out.data["text/plain"][:30]}' in page, (
        "the classic page has the sentence for readers who cannot see the picture; the other one takes no such text")


# ---- the server ------------------------------------------------------------------------------------------------------
class Lab:
    "A JupyterLab of its own on this machine, over a scratch folder."
    def __init__(self, tmp):
        self.root, self.token, self.log = tmp/"work", secrets.token_hex(16), tmp/"server.log"
        self.root.mkdir()
        copy_for_smoke(ROOT/"nbs"/"tutorials"/"01_first_finetune.ipynb", self.root)
        write_notebook(self.root/"sliders.ipynb", *SLIDERS)
        write_notebook(self.root/"menu.ipynb", *MENU)
        write_lab(self.root/"lab.ipynb")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0)); self.port = s.getsockname()[1]
        news = tmp/"config"/"lab"/"user-settings"/"@jupyterlab"/"apputils-extension"
        news.mkdir(parents=True)
        (news/"notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        env = environment(tmp, FINETUNE_NB_PROFILE="smoke", JUPYTER_CONFIG_DIR=str(tmp/"config"),
                          JUPYTER_RUNTIME_DIR=str(tmp/"runtime"), JUPYTER_DATA_DIR=str(tmp/"data"),
                          IPYTHONDIR=str(tmp/"ipython"), JUPYTERLAB_WORKSPACES_DIR=str(tmp/"workspaces"))
        env.pop("JPY_SESSION_NAME", None)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
                 "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}",
                 "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                 f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True"],
                cwd=self.root, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.wait()

    def wait(self):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.process.poll() is not None: break
            try: return self.ask("api/status")
            except OSError: time.sleep(.2)
        self.stop()
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, path, method="GET"):
        "The server's own interface."
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", method=method,
                                                           headers={"Authorization": f"token {self.token}"}),
                                    timeout=20) as r:
            return json.loads(r.read() or "null")

    def url(self, notebook=""):
        return f"http://127.0.0.1:{self.port}/lab{'/tree/' + notebook if notebook else ''}?reset&token={self.token}"

    def close_notebooks(self):
        for s in self.ask("api/sessions"): self.ask(f"api/sessions/{s['id']}", "DELETE")

    def stop(self):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None: return
            os.killpg(self.process.pid, sig) if sig == signal.SIGKILL else self.process.send_signal(sig)
            if sig == signal.SIGINT: self.process.send_signal(sig)  # the first asks back, the second means it
            try: self.process.wait(15)
            except subprocess.TimeoutExpired: pass


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    program = script("browser").chromium()
    assert program, "no Chromium found: `make test-browser` gets one"
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program,
                                    args=["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"screenshots: {folder}")
    return folder


@pytest.fixture
def page(chromium, lab):
    context = chromium.new_context(viewport=dict(width=1280, height=900), device_scale_factor=1)
    page, broken = context.new_page(), []
    page.set_default_timeout(STEP)
    page.on("pageerror", lambda e: broken.append(str(e)))
    yield page
    context.close()
    lab.close_notebooks()
    assert not broken, f"errors of the page's own scripts: {broken}"


# ---- what is done on the page ----------------------------------------------------------------------------------------
def open_notebook(page, lab, name):
    page.goto(lab.url(name))
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=60_000)
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for()


def menu(page, name):
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{name}$")).click()
    page.locator(".lm-Menu-content").first.wait_for()
    return [t for t in page.locator(".lm-Menu-itemLabel").all_inner_texts() if t]


CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(w => w.model.type === 'code' && w.model.sharedModel.getSource().trim())
    .map(w => ({count: w.model.executionCount, outputs: w.model.outputs.toJSON(),
                source: w.model.sharedModel.getSource()}))"""
ENDED = f"""() => {{ const cells = ({CELLS})();
    const failed = cells.some(c => c.outputs.some(o => o.output_type === 'error'));
    return failed || (cells.every(c => c.count) &&
        window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle') }}"""


def run_all(page, timeout=WHOLE):
    "Menu Run, Run All Cells; wait for the end; -> the code cells with their outputs."
    menu(page, "Run")
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.wait_for_function(ENDED, timeout=timeout)
    cells = page.evaluate(CELLS)
    wrong = [(c["source"], o["ename"], o["evalue"]) for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert not wrong, wrong
    return cells


SHOWN = "img.widget-image"
BYTES = "async img => Array.from(new Uint8Array(await (await fetch(img.src)).arrayBuffer()))"


def picture(page): return bytes(page.locator(SHOWN).evaluate(BYTES))


def wait_for_another(page, before):
    "Until the figure on the page is another one."
    page.wait_for_function("async ([sel, before]) => { const img = document.querySelector(sel); if (!img?.complete) "
                           "return false; const b = new Uint8Array(await (await fetch(img.src)).arrayBuffer());"
                           "const h = Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', "
                           "b))).map(x => x.toString(16).padStart(2, '0')).join(''); return h !== before }",
                           arg=[SHOWN, hashlib.sha256(before).hexdigest()])


# ---- a reader --------------------------------------------------------------------------------------------------------
@pytest.mark.browser
def test_tutorial_1_runs_to_its_last_output(page, lab, shots):
    open_notebook(page, lab, "01_first_finetune.ipynb")
    page.screenshot(path=shots/"1_opened.png")
    cells = run_all(page)
    assert len(cells) > 15 and cells[-1]["outputs"], "the last cell shows something"
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c["outputs"]) >= 5
    assert not [o for c in cells for o in c["outputs"] if o.get("name") == "stderr"], "nothing on standard error"
    page.evaluate(
        "() => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = "
        "n.widgets.findLastIndex(w => w.model.type === 'code'); return n.scrollToItem(n.activeCellIndex, 'center') }")
    page.locator(".jp-Cell.jp-mod-active .jp-OutputArea-output").first.wait_for()
    page.screenshot(path=shots/"2_run_to_the_end.png")


@pytest.mark.browser
def test_a_slider_moves_the_figure(page, lab, shots):
    open_notebook(page, lab, "sliders.ipynb")
    run_all(page)
    page.locator(SHOWN).wait_for()
    page.wait_for_function(f"() => document.querySelector('{SHOWN}').naturalWidth > 0")
    start, place, said = (picture(page), page.locator(SHOWN).bounding_box(),
                          page.locator(".widget-html-content p").inner_text())
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    output = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output")
    assert output.count() == 1 and output.locator("img").count() == 1, "one figure, not the widget and its picture"
    page.screenshot(path=shots/"3_sliders.png")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    wait_for_another(page, start)
    moved = picture(page)
    page.wait_for_function("said => document.querySelector('.widget-html-content p').innerText !== said", arg=said)
    groups = page.locator(".widget-slider .noUi-handle").nth(1)
    groups.focus()
    groups.press("ArrowRight")
    wait_for_another(page, moved)
    page.screenshot(path=shots/"4_sliders_moved.png")
    assert page.locator(SHOWN).bounding_box() == place, "nothing jumps"
    # Back to where it was: the same figure, to the last byte.
    for slider in (groups, handle):
        before = picture(page)
        slider.focus()
        slider.press("ArrowLeft")
        wait_for_another(page, before)
    assert picture(page) == start


@pytest.mark.browser
def test_a_menu_changes_the_figure_and_an_impossible_plan_is_said(page, lab, shots):
    open_notebook(page, lab, "menu.ipynb")
    run_all(page)
    page.wait_for_function(f"() => document.querySelector('{SHOWN}')?.naturalWidth > 0")
    start, said = picture(page), page.locator(".widget-html-content p")
    page.locator(".widget-dropdown select").select_option("chain_thaw")
    wait_for_another(page, start)
    page.screenshot(path=shots/"4a_menu.png")
    assert "chain_thaw" not in said.inner_text() and "step 40 of 100" in said.inner_text()
    kept, steps = picture(page), page.locator(".widget-slider .noUi-handle").first
    steps.focus()
    steps.press("Home")
    page.wait_for_function(
        "() => document.querySelector('.widget-html-content p').innerText.startsWith('This cannot be drawn: recipe')")
    assert "phases but only 4 steps" in said.inner_text() and picture(page) == kept, "the last figure stays"
    page.screenshot(path=shots/"4b_impossible.png")


@pytest.mark.browser
def test_a_saved_page_needs_no_widgets(page, lab, shots):
    "What JupyterLab saves holds the picture beside the widget; a page made of it shows the picture."
    open_notebook(page, lab, "sliders.ipynb")
    run_all(page)
    page.keyboard.press("Control+s")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    import nbformat
    from nbconvert import HTMLExporter
    nb = nbformat.read(lab.root/"sliders.ipynb", 4)
    out, = nb.cells[1].outputs
    assert ({"image/png", "application/vnd.jupyter.widget-view+json", "text/plain"} == set(out.data)
            and "widgets" not in nb.metadata)
    made, _ = HTMLExporter(template_name="classic").from_notebook_node(nb)
    (lab.root/"sliders.html").write_text(made)
    page.goto(f"file://{lab.root/'sliders.html'}")
    shown = page.locator("img")
    assert (shown.count() == 1 and shown.evaluate("i => i.naturalWidth") == 2*shown.evaluate("i => i.width")
            and shown.get_attribute("alt") == out.data["text/plain"])
    page.screenshot(path=shots/"5_saved_page.png")


# ---- a teacher, a student --------------------------------------------------------------------------------------------
@pytest.mark.browser
def test_nbgrader_is_part_of_this_lab(): assert script("browser").has_nbgrader()


@pytest.mark.browser
def test_the_menu_of_nbgrader_loads(page, lab, shots):
    open_notebook(page, lab, "sliders.ipynb")
    items = menu(page, "Nbgrader")
    page.screenshot(path=shots/"6_nbgrader_menu.png")
    assert {"Assignment List", "Course List", "Formgrader"} <= set(items), items


@pytest.mark.browser
def test_a_student_validates_a_lab(page, lab, shots):
    "The button says which checks fail while nothing is done yet."
    open_notebook(page, lab, "lab.ipynb")
    def validate(name):
        page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-NotebookPanel-toolbar").get_by_text(
            "Validate", exact=True).click()
        dialog = page.locator(".jp-Dialog")
        dialog.get_by_text("Validation Results").wait_for(timeout=60_000)
        said = dialog.inner_text()
        page.screenshot(path=shots/name)
        dialog.locator("button", has_text=re.compile("^(Ok|OK|Close)$")).last.click()
        dialog.wait_for(state="detached")
        return said
    said = validate("7_lab_not_done.png")
    assert "failed" in said.lower() and "mean([1, 2, 6]) == 3" in said and "BEGIN" not in said, said


@pytest.mark.browser
def test_the_server_has_nothing_to_complain_of(lab):
    log = lab.log.read_text()
    assert "Jupyter Server" in log and "Traceback" not in log, log[-5000:]
    assert not (wrong := re.findall(r"^\[E .*", log, re.M)), wrong
