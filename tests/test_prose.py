"""What the notebooks say about their own results agrees with those results; and every tutorial has the parts that a
tutorial has.

The convention. A figure is a number in digits that is measured: one with a unit of a result behind it (%, percent,
points, seconds, s, ms, "times as", fold, MB, kB, "of 40"), one with decimals, or the two ends of an interval in
brackets, "(1.2 to 3.4)". Quoted in a markdown cell below the first code cell, it must occur, rounded as it is
quoted, in the outputs of the code cells above it. Free of this are: quotations (>), tables, code, exercises and
everything after them, what is folded away (<details>), a level that belongs to an interval or a test ("95 %
interval", "at 95 %"), a sentence that cites its source (a name with a year, "et al.", a link to the web), and a
paragraph marked <!-- not from above: where from -->. Numbers in words are not looked at: write measured figures in
digits."""
import html, json, re
from pathlib import Path

import pytest

from finetune_nb.widgets.tutorial_index import (ROWS, read_series, read_times, read_tutorial, seconds_of,
                                                series_table, stated)
from tests.helpers import ROOT

TUTORIALS = [p for p in sorted((ROOT/"nbs"/"tutorials").glob("*.ipynb")) if not p.name.startswith("00_")]
NOTEBOOKS = [*TUTORIALS, *sorted((ROOT/"nbs"/"labs").glob("*.ipynb")), ROOT/"nbs"/"index.ipynb",
             ROOT/"nbs"/"claims.ipynb"]
NUMBER = r"[-+−±]?\d[\d,]*(?:\.\d+)?"
UNIT = (r"(?:%|per\s?cent\b|points?\b|seconds?\b|ms\b|s\b"
        r"|times(?=\s(?:as|more|less|faster|slower|longer|larger|smaller)\b)|-?fold\b|of\s\d[\d,]*\b|[MkG]B\b)")
# A number with its unit, and those that are joined to it: "3 to 5 %", "19 points, 6 to 32".
QUOTED = re.compile(
    rf"(?<![\w.,])({NUMBER})((?:\s?(?:to|and|or|–|,)\s?{NUMBER})*)\s?({UNIT})(?:,?\s({NUMBER})\sto\s({NUMBER}))?")
INTERVAL = re.compile(rf"\(({NUMBER})\s(?:to|and)\s({NUMBER})[^)\d]*\)")
DECIMAL = re.compile(r"(?<![\w.,])[-+−]?\d[\d,]*\.\d+(?![\w.]*\d)")
EXEMPT = re.compile(
    r"\d+\s?%[\s-]+(?:confidence\s|wilson\s|t\s|paired\s)*(?:interval|level|point\b|of\sthe\stime)"
    r"|\b[Aa]t\s\d+\s?%|\(https?:[^)]*\)")
ELSEWHERE = re.compile(r"\(?[A-Z][\w-]+(?: and [A-Z][\w-]+| et al\.)?,? \(?(?:19|20)\d\d\)?|et al\.|\]\(https?:")


def cells_of(path): return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])


def ran(cells):
    """Have the code cells been run? A good part of them has something to show (one figure alone may have been put in
    by hand)."""
    code = [c for c in cells if c["cell_type"] == "code"]
    return sum(bool(c.get("outputs")) for c in code) > len(code)/4


def output_text(cell):
    "What a reader sees below a cell, pictures apart and without progress bars."
    out = []
    for o in cell.get("outputs", []):
        if o["output_type"] == "stream": out.append("".join(o["text"])); continue
        data = {k: "".join(v) if isinstance(v, list) else v for k, v in o.get("data", {}).items()}
        if "<progress" in str(data.get("text/html")): continue
        if "text/html" in data:
            out.append(html.unescape(
                re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", " ", data["text/html"], flags=re.S))))
        out += [data[k] for k in ("text/plain", "text/markdown") if k in data]
    return "\n".join(out)


def number(text): return float(text.replace(",", "").replace("−", "-").replace("±", ""))
def numbers(text):
    return ({number(t) for t in re.findall(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", text)
             if re.fullmatch(r"[-+−]?\d[\d,]*(?:\.\d+)?", t)}
            | {float(t) for t in re.findall(r"\d(?:\.\d+)?e[-+]?\d+", text)})


def paragraphs(text):
    """Pieces of prose that hold together: paragraphs and items of lists, without code, quotations and what is folded
    away."""
    text = re.sub(r"<details>.*?</details>|```.*?```", " ", text, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text):
        if not block.lstrip().startswith((">", "#", "|")): yield re.sub(r"`[^`\n]*`|\$[^$\n]*\$", " ", block)


def quoted(block):
    "(text as quoted, value, decimals, unit) of the figures in a paragraph that must come from above."
    if "<!-- not from above" in block: return
    for sentence in re.split(r"(?<=[.:;?!])\s+(?=[A-Z*(\"])", block):
        if ELSEWHERE.search(sentence): continue
        found, sentence = {}, EXEMPT.sub(lambda e: " "*len(e[0]), sentence)
        for m in DECIMAL.finditer(sentence): found[m.start()] = (m[0], m[0], "")
        for m in INTERVAL.finditer(sentence):
            for g in (1, 2): found[m.start(g)] = (m[0], m[g], "%")
        for m in QUOTED.finditer(sentence):
            unit = m[3]
            for t in re.finditer(NUMBER, m[0]): found[m.start() + t.start()] = (m[0], t[0], unit)
        for text, t, unit in found.values(): yield text.strip(), number(t), len(t.partition(".")[2]), unit


def agrees(value, decimals, unit, seen):
    """Does the quoted value occur among the numbers above, rounded as it is quoted? Shares may stand as percentages
    and seconds as milliseconds; the direction is told in words."""
    def near(v): return abs(abs(v) - abs(value)) <= .5*10**-decimals*1.0001 + 1e-9
    if any(near(v) for v in seen): return True
    if re.match(r"%|per|point", unit): return any(near(100*v) for v in seen if abs(v) <= 1)
    scales = (1000,
              .001) if re.match(r"m?s\b|second", unit) else (1e-3, 1e-6, 1/1024, 1/1024**2) if unit[1:] == "B" else ()
    return any(near(v*k) for v in seen for k in scales)


def figures(cells):
    """(number of the cell, text, value, decimals, unit, numbers that stand above) of every figure that a notebook
    quotes."""
    seen, began = set(), False
    for i, c in enumerate(cells):
        if c["cell_type"] == "code": began = True; seen |= numbers(output_text(c)); continue
        if not began or c["cell_type"] != "markdown": continue
        text, stop = source(c), re.search(r"^#+\s+(?:Exercises|Reflection|Solutions)\b", source(c), re.M)
        for block in paragraphs(text[:stop.start()] if stop else text):
            for found in quoted(block): yield (i, *found, frozenset(seen))
        if stop: return


def disagreements(cells):
    return [(i, f"{text}: {value:g}") for i, text, value, decimals, unit, seen in figures(cells)
            if not agrees(value, decimals, unit, seen)]


@pytest.fixture(scope="module", params=[p for p in NOTEBOOKS], ids=lambda p: p.stem)
def ran_notebook(request):
    cells = cells_of(request.param)
    if not ran(cells): pytest.skip("no outputs yet: nothing to compare with")
    return cells


def test_prose_agrees_with_outputs(ran_notebook):
    wrong = disagreements(ran_notebook)
    assert not wrong, (
        "figures that no output above them shows (cell, figure): " + "; ".join(f"{i}, {w}" for i, w in wrong))


# ---- the rule itself -------------------------------------------------------------------------------------------------
def notebook(*cells):
    "Small cells: text is prose, (text,) is a code cell with that output."
    return [dict(cell_type="markdown", source=c) if isinstance(c, str)
            else dict(cell_type="code", source="f()", outputs=[dict(output_type="stream", name="stdout", text=c[0])])
            for c in cells]


OUT = ("accuracy 0.9444, 0.974 [0.9605, 0.9869]; took 2312 ms; 37 of 40 right; tau -0.52",)


@pytest.mark.parametrize("said", ["94.4 % are right", "94 percent", "97.4 % (96.1 to 98.7)", "2.3 seconds",
                                  "right 37 of 40 times", "a tau of 0.52", "between 94 and 97 %", "0.974"])
def test_right_figures(said): assert len(list(figures(notebook(OUT, said)))) and not disagreements(notebook(OUT, said))


@pytest.mark.parametrize(
    "said", ["95.4 % are right", "93 percent", "97.4 % (96.1 to 99.7)", "3.3 seconds", "right 38 of 40 times",
             "a tau of 0.25", "between 93 and 97 %", "0.984", "- an item: 12 points better", "94.45 %"])
def test_wrong_figures(said): assert disagreements(notebook(OUT, said))


@pytest.mark.parametrize(
    "said", ["a 95 % interval", "at 95 % one of twenty", "> 12.5 % quoted", "`12.5 %`", "| 12.5 % | in a table |",
             "## Exercises\n\nbring it to 12.5 %", "<details><summary>S</summary>\n\n12.5 %\n\n</details>",
             "Smith et al. found 12.5 %.", "Menon and Li (2021) report 12.5 %.",
             "12.5 % <!-- not from above: card of the model -->", "three labels, 2,000 draws and 64 pieces"])
def test_what_is_free(said): assert not list(figures(notebook(OUT, said)))


def test_only_what_stands_above_counts():
    assert disagreements(notebook(("0.5",), "It was 94.4 %.", OUT)) and not disagreements(notebook(
        "In the head: 94.4 %.", OUT))


def test_most_wrong_figures_are_found():
    """Every figure of the tutorials, changed by a tenth and by a quarter: how many of the changes would have been
    noticed?"""
    all_, noticed = 0, 0
    for path in TUTORIALS:
        if not ran(cells := cells_of(path)): continue
        for _, _, value, decimals, unit, seen in figures(cells):
            for factor in (1.1, .9, 1.25, .8):
                if (new := round(value*factor, decimals)) != value:
                    all_, noticed = all_ + 1, noticed + (not agrees(new, decimals, unit, seen))
    assert all_ > 300 and noticed/all_ > .7, (noticed, all_)


# ---- the parts of a tutorial -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=TUTORIALS, ids=lambda p: p.stem)
def tutorial(request): return request.param


def markdown(path): return [source(c) for c in cells_of(path) if c["cell_type"] == "markdown"]


def test_head(tutorial):
    t, text = read_tutorial(tutorial), markdown(tutorial)
    assert tuple(t.head) == ROWS and all(t.head.values()), t.head
    assert t.number == int(tutorial.name[:2]) and text[1].startswith(f"| Tutorial {t.number} of {len(TUTORIALS)} |")
    assert t.prediction == "", "a prediction cell that waits for the reader"
    asked = next(i for i, s in enumerate(text) if "write down a prediction" in s)
    assert ("My prediction" in text[asked + 1]
            and cells_of(tutorial)[asked + 1]["cell_type"] == "markdown"), "asked for before anything runs"


def test_measured_answer(tutorial):
    if not ran(cells_of(tutorial)): pytest.skip("no outputs yet: nothing to answer with")
    text = "\n".join(markdown(tutorial))
    assert text.index("## The measured answer") < text.index("## Recap") < text.index("## Exercises")
    where = next(i for i, c in enumerate(cells_of(tutorial)) if "## The measured answer" in source(c))
    assert sum(i == where for i, *_ in figures(cells_of(tutorial))) >= 3, "the answer has figures"


def test_exercises_have_folded_solutions(tutorial):
    end = next(s for s in markdown(tutorial) if "## Exercises" in s)
    tasks, folded = re.match(r".*?^## Exercises\n(.*?)\n\n<details><summary>Solutions</summary>\n\n(.*)\n\n</details>$",
                             end, re.S | re.M).groups()
    number_of = lambda s: [int(n) for n in re.findall(r"^(\d+)\. ", re.sub(r"```.*?```", "", s, flags=re.S), re.M)]
    assert (number_of(tasks) == number_of(folded) == list(range(1, len(number_of(tasks)) + 1))
            and len(number_of(tasks)) >= 3)


def test_links(tutorial):
    text, order = "\n".join(markdown(tutorial)), [p.name for p in TUTORIALS]
    for to in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)):
        if not to.startswith(("http", "#")): assert (tutorial.parent/to.split("#")[0]).exists(), f"{to} does not exist"
    i, end = order.index(tutorial.name), markdown(tutorial)[-1]
    for neighbour in [*order[max(0, i - 1):i], *order[i + 1:i + 2]]:
        assert f"]({neighbour})" in markdown(tutorial)[1] and f"]({neighbour})" in end
    assert "](../labs/" in end and "](../api/" in end


def test_stated_time_is_the_measured_one(tutorial):
    times = read_times(ROOT/"nbs"/"run_times.json")
    entry = times.get(f"tutorials/{tutorial.name}")
    assert read_tutorial(tutorial).head["Time"] == stated(seconds_of(times, tutorial), entry["cores"] if entry
                                                          else 2), "run scripts/run_times.py --heads"
    assert entry is None or entry["profile"] == "fast" and entry["seconds"] <= 300


def test_start_page():
    series, text = (read_series(ROOT/"nbs"/"tutorials"),
                    "\n\n".join(markdown(ROOT/"nbs"/"tutorials"/"00_start_here.ipynb")))
    assert series_table(series, read_times(ROOT/"nbs"/"run_times.json")) in text, "run scripts/run_times.py --heads"
    assert len(series) >= 20


@pytest.mark.slow
def test_solutions_run(tutorial, tmp_path):
    """The tutorial in the smoke profile, and after its last cell the code of the solutions (```python; what is marked
    ```py needs time or files of the reader's)."""
    import nbformat
    from nbclient import NotebookClient
    from tests.helpers import environment
    if "#| real" in tutorial.read_text(encoding="utf-8"): pytest.skip("its cells need real networks: make real")
    nb = nbformat.read(tutorial, 4)
    end = next(s for s in markdown(tutorial) if "## Exercises" in s)
    nb.cells = ([c for c in nb.cells if c.cell_type == "code" and not c.source.startswith("#| slow")]
                + [nbformat.v4.new_code_cell(s) for s in re.findall(r"```python\n(.*?)```", end, re.S)])
    NotebookClient(nb, timeout=300, kernel_name="python3", resources=dict(metadata=dict(path=str(tmp_path)))).execute(
        env=environment(tmp_path, FINETUNE_NB_PROFILE="smoke"))
