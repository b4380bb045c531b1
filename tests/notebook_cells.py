"""pytest plugin: every asserting cell of every notebook is a test.

A cell that asserts something is one test, named after the heading above it. Cells before it run first, once a
notebook, in one process that can be killed: a cell that hangs is stopped for real. After a failure the later cells
of that notebook are skipped."""
import ast, json, os, re, shutil, tempfile
from collections import Counter

import pytest

from tests.notebook_worker import fork_server, forked_cpu, kill_group, serve

SHARED = "NOTEBOOK_TESTS_SHARED"  # names a folder of this test run; workers inherit it
FLAGS = {"slow": "takes minutes", "gpu": "needs a GPU", "network": "needs the internet", "browser": "needs a browser",
         "real": "needs real networks in the cache (make real)"}
ASSERTING = re.compile(r"^(test_\w+|expect_fail|assert_\w+)$")


# ---- options ---------------------------------------------------------------------------------------------------------
def pytest_addoption(parser):
    group = parser.getgroup("notebooks")
    group.addoption("--flags", default="", help=f"also run what is flagged, separated by commas: {', '.join(FLAGS)}")
    group.addoption("--cell-timeout", type=float, default=None,
                    help="seconds a notebook cell may take (default: ini cell_timeout)")
    parser.addini("cell_timeout", "seconds a notebook cell may take", default="180")
    parser.addini("notebook_preload", "modules that the notebooks' processes import once and share",
                  type="args", default=[])


def pytest_configure(config):
    # Networks of test size run many times slower with several threads as soon as anything else wants a core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if SHARED not in os.environ:
        os.environ[SHARED], config.made_shared = tempfile.mkdtemp(prefix="notebook_tests_"), True
    fork_server(config.getini("notebook_preload"))
    for name, why in FLAGS.items(): config.addinivalue_line("markers", f"{name}: {why}; runs only with --flags {name}")
    config.enabled_flags = {f for f in config.getoption("--flags").split(",") if f}
    if "real" in config.enabled_flags:
        from finetune_nb.core.settings import settings
        os.environ["NOTEBOOK_TESTS_MODELS"] = os.path.join(settings()["cache"], "models")
    if unknown := config.enabled_flags - set(FLAGS):
        raise pytest.UsageError(f"--flags: unknown {', '.join(sorted(unknown))}; known are {', '.join(FLAGS)}")


def pytest_unconfigure(config):
    if getattr(config, "made_shared", None): shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    for item in items:
        for flag in FLAGS:
            if item.get_closest_marker(flag) and flag not in config.enabled_flags:
                item.add_marker(pytest.mark.skip(reason=f"flagged {flag} (--flags {flag})"))


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return Notebook.from_parent(parent, path=file_path)


# ---- reading ---------------------------------------------------------------------------------------------------------
class Cell:
    "A code cell: its number among all cells, source, directives and the heading above it."
    def __init__(self, number, source, heading):
        self.number, self.source, self.heading = number, source, heading
        self.directives = {}
        for line in source.splitlines():
            if not line.startswith("#|"): break
            key, _, value = line[2:].strip().partition(" ")
            self.directives[key.rstrip(":")] = value.strip()

    @property
    def runs(self): return bool(self.source.strip()) and self.directives.get("eval") != "false"
    @property
    def flags(self): return set(FLAGS) & set(self.directives)

    @property
    def tree(self):
        # IPython's own syntax (magics, shell commands) is not Python: such lines are left out of the search for
        # assertions.
        plain = "\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in self.source.splitlines())
        try: return ast.parse(plain)
        except SyntaxError: return ast.parse("")

    @property
    def asserts(self):
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assert): return True
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if ASSERTING.match(name): return True
        return False

    @property
    def words(self):
        return ({n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)}
                | {n.attr for n in ast.walk(self.tree) if isinstance(n, ast.Attribute)})


def read_cells(path):
    "The code cells of a notebook that are meant to run; raises ValueError if it is not a notebook."
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list): raise ValueError("no list of cells")
    heading, cells = path.stem, []
    for number, cell in enumerate(data["cells"]):
        source = "".join(cell["source"])
        if number == 0 and cell["cell_type"] in ("raw", "markdown") and re.search(r"^skip_exec:\s*true", source, re.M):
            return []
        if cell["cell_type"] == "markdown":
            for line in source.splitlines():
                if found := re.match(r"#{1,4}\s+(.+)", line): heading = found[1].strip()
        elif cell["cell_type"] == "code" and (c := Cell(number, source, heading)).runs: cells.append(c)
    return cells


# ---- collecting ------------------------------------------------------------------------------------------------------
class Notebook(pytest.File):
    def collect(self):
        try: self.cells = read_cells(self.path)
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise self.CollectError(f"{self.path} is not a readable notebook: {e}") from None
        tests = [c for c in self.cells if c.asserts]
        total, seen = Counter(c.heading for c in tests), Counter()
        for c in tests:
            seen[c.heading] += 1
            yield self._item(c.heading + (f" [{seen[c.heading]}]" if total[c.heading] > 1 else ""), c)
        # What comes after the last assertion (a plot, a table) has to run, too.
        if self.cells and (not tests or tests[-1] is not self.cells[-1]):
            yield self._item("runs to the end", self.cells[-1])

    def _item(self, name, cell):
        item = CellTest.from_parent(self, name=name.replace("/", "-").replace("::", ":"))
        item.cell = cell
        item.extra_keyword_matches |= cell.words
        for flag in cell.flags: item.add_marker(flag)
        return item

    def setup(self): self.session_ = NotebookProcess(self.path, self.config)
    def teardown(self): self.session_.stop()


class CellTest(pytest.Item):
    def runtest(self):
        allowed = self.config.enabled_flags
        run = self.parent.session_
        for cell in self.parent.cells:
            if cell.number > self.cell.number: break
            if cell.flags <= allowed: run.once(cell)

    def repr_failure(self, excinfo):
        return excinfo.value.report if isinstance(excinfo.value, CellFailed) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, self.cell.number, f"{self.path.name}: {self.name}"


class CellFailed(Exception):
    def __init__(self, path, cell, why):
        source = "\n".join(f"{i:4} {line}" for i, line in enumerate(cell.source.splitlines(), 1))
        self.report = f"{path}, cell {cell.number} under '{cell.heading}':\n\n{source}\n\n{why}"
        super().__init__(self.report)


# ---- running ---------------------------------------------------------------------------------------------------------
class NotebookProcess:
    "A process in which one notebook's cells run in order; it and its children can be killed."
    def __init__(self, path, config):
        self.path, self.done, self.broken, self.process, self.cpu = path, set(), None, None, 0.
        self.limit = config.getoption("--cell-timeout") or float(config.getini("cell_timeout"))

    def once(self, cell):
        "Run `cell` unless it has run; skip the test if an earlier cell broke the notebook."
        if self.broken: pytest.skip(f"cell {self.broken.number} of this notebook failed before")
        if cell.number in self.done: return
        if self.process is None: self._start()
        limit = float(cell.directives.get("timeout", self.limit))
        self.pipe.send(cell.source)
        try:
            if not self.pipe.poll(limit): why = f"stopped: the cell took longer than {limit:g} seconds"
            else: why, cpu = self.pipe.recv(); forked_cpu[0] += cpu - self.cpu; self.cpu = cpu
        except EOFError: why = f"the process ended (exit code {self._exit_code()})"
        self.done.add(cell.number)
        if why is not None:
            self.broken = cell
            self.stop()
            raise CellFailed(self.path, cell, why)

    def _start(self):
        context = fork_server()
        self.scratch = tempfile.TemporaryDirectory(prefix="notebook_test_", ignore_cleanup_errors=True)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, str(self.path), self.scratch.name, os.environ[SHARED]), daemon=False)
        self.process.start()
        theirs.close()

    def _exit_code(self):
        self.process.join(5)
        return self.process.exitcode

    def stop(self):
        if self.process is None: return
        kill_group(self.process)
        self.scratch.cleanup()
