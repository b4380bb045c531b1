"A notebook as a page: directives obeyed and taken out, code coloured, the best form of each output."
import base64, html, json, re

from docs_api import documented, only_imports, public
from docs_text import ROOT, DocsError, code_html

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MACHINE = re.compile(r"(?:/home/|/root/|/Users/|/tmp/|site-packages)")
GRADED = {"test": "Check", "answer": "Your answer", "solution": "Your code", "locked": "Given"}


def read(path):
    "The cells of a notebook."
    try: return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DocsError(f"{path.relative_to(ROOT).as_posix()} is no readable notebook ({type(e).__name__})") from None


def source_of(cell):
    "The text of a cell."
    return "".join(cell["source"])


def directives(source):
    "({name: value} of the lines `#| name: value`, the source without them)"
    found, lines = {}, []
    for line in source.splitlines():
        if m := re.match(r"\s*#\|\s*([\w-]+)(?::?\s+(.*)|:)?\s*$", line):
            found[m[1].replace("-", "_")] = (m[2] or "").strip()
        elif re.match(r"\s*#\|", line): continue
        else: lines.append(line)
    return found, "\n".join(lines).strip("\n")


def front_matter(text):
    "Without front matter: a block between two lines of ---, or nbdev's list of keys right below title and description."
    text = re.sub(r"\A---\n.*?\n---\s*\n?", "", text, flags=re.S)
    if re.match(r"# ", text):
        text = (re.sub(r"((?:\A|\n)# .*\n(?:\s*\n)?(?:>.*\n?)*\s*)(?:^- [\w-]+: .*\n?)+",
                       r"\1", text, count=1, flags=re.M)
                if re.search(r"^- (skip_\w+|title|author|date|categories|output-file|description|image|order): ", text,
                             re.M) else text)
    return text


def title_and_summary(cells):
    "What the H1 and the `>` line say."
    text = "\n\n".join(front_matter(source_of(c)) for c in cells if c["cell_type"] == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)
    below = text[title.end():] if title else text
    summary = re.match(r"\s*((?:>.*\n?)+)", below)
    return (title[1].strip() if title else "",
            " ".join(re.sub(r"^>\s?", "", l) for l in summary[1].splitlines()).strip() if summary else "")


def module_of(cells):
    "Module that the notebook makes, as finetune_nb.x.y, or None."
    for c in cells:
        if c["cell_type"] == "code" and "default_exp" in (d := directives(source_of(c))[0]):
            return f"finetune_nb.{d['default_exp']}"


def exported(cell):
    "Does this cell go into the library?"
    return cell["cell_type"] == "code" and directives(source_of(cell))[0].keys() & {"export", "exporti", "exports"}


def public_names(cells):
    "Names that the notebook's page documents: what is public, and methods."
    return [n for c in cells if exported(c) for _, name, methods in public(directives(source_of(c))[1])
            for n in [name, *methods]]


def tidy_html(text):
    "A rich output: no scripts, pandas' own look taken off, wide tables in a box of their own that scrolls."
    if found := re.search(r"<progress[^>]*></progress>\s*(.*?)\s*(?:</div>|$)", text, re.S):
        done = re.match(r"[\d.]+% \[(\d+)/(\d+) ([\d:]+)&lt;[\d:]*\S*\s*(.*?)\]$", found[1])
        what = done and re.sub(r"(^|: )\d+ done( \(\d+ before\))?$", "", done[4])
        said = f"{what or 'done'}: {done[1]} of {done[2]} in {done[3]}" if done else found[1]
        return f'<p class="progress">{said}</p>'
    text = re.sub(r"<script\b.*?</script>", "", text, flags=re.S | re.I)
    text = re.sub(r"<style\b[^>]*>\s*</style>|<style scoped>.*?</style>|<style>\s*progress\b.*?</style>", "",
                  text, flags=re.S)
    if not re.sub(r"<[^>]*>|\s", "", text) and "<img" not in text and "<svg" not in text: return ""
    return re.sub(r"<table\b.*?</table>", lambda m: f'<div class="scroll">{aligned(m[0])}</div>', text, flags=re.S)


def aligned(table):
    "A table of pandas in our own look, columns of numbers to the right."
    table = re.sub(r'<table(?: border="1")?(?: class="dataframe")?', '<table class="data"', table, count=1)
    table = re.sub(r'(<tr) style="text-align: right;"', r"\1", table)
    if re.search(r"(col|row)span=", table): return table
    cell = r"<(t[hd])([^>]*)>(.*?)</\1>"
    rows = [re.findall(cell, r, re.S) for r in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)]
    body = [r for r in rows if any(kind == "td" for kind, _, _ in r)]
    number = lambda s: re.fullmatch(r"\s*(?:[-+\u2212]?[\d,]*\.?\d+(?:e[-+]?\d+)?\s*%?|nan|NaN|inf|None|-|)\s*",
                                    re.sub(r"<[^>]*>|&nbsp;", "", s))
    right = {i for i in range(max(map(len, body), default=0))
             if all(number(r[i][2]) for r in body if i < len(r)) and any(r[i][2].strip() for r in body if i < len(r))}
    def row(m):
        i = iter(range(999))
        def one(c):
            how = (' align="right"' if next(i) in right else ' class="long"' if "class=" not in c[2]
                   and len(re.sub(r"<[^>]*>", "", c[3])) > 30 else "")
            return f"<{c[1]}{c[2]}{how}>{c[3]}</{c[1]}>"
        return re.sub(cell, one, m[0], flags=re.S)
    return re.sub(r"<tr[^>]*>.*?</tr>", row, table, flags=re.S)


def plain(text):
    "Text that a cell printed, without colours."
    return f'<div class="output"><pre>{html.escape(ANSI.sub("", text).rstrip(), quote=False)}</pre></div>'


def outputs(cell, where, text, source, page, alt):
    "The outputs of a cell, as parts of a page."
    out = []
    for o in cell.get("outputs", []):
        if o["output_type"] == "error":
            raise DocsError(
                f"{where}: an error is kept among the outputs ({o.get('ename', '')}); run the notebook again")
        if o["output_type"] == "stream":
            if o["name"] == "stdout": out.append(plain("".join(o["text"])))
            continue
        data = {k: v if isinstance(v, dict) else "".join(v)
                for k, v in o.get("data", {}).items() if k != "application/vnd.jupyter.widget-view+json"}
        if "image/svg+xml" in data:
            svg = re.sub(r"<[?!].*?>", "", data["image/svg+xml"], flags=re.S).strip()
            out.append(f'<div class="output figure">{svg}</div>')
        elif "image/png" in data:
            png = base64.b64decode(data["image/png"])
            shown = o.get("metadata", {}).get("image/png", {}).get("width")
            scale = int.from_bytes(png[16:20], "big")/shown if shown else 1
            out.append(f'<div class="output figure">{text.places.picture(png, ".png", page, alt, scale)}</div>')
        elif "text/html" in data:
            if shown := tidy_html(data["text/html"]): out.append(f'<div class="output">{shown}</div>')
        elif "text/markdown" in data: out += text.parts(data["text/markdown"], source, page)
        elif "text/plain" in data and "application/vnd.jupyter.widget-view+json" not in o["data"]:
            out.append(plain(data["text/plain"]))
    for part in out:
        if isinstance(part, str) and (found := MACHINE.search(re.sub(r'(?:src|href)="[^"]*"', "", part))):
            text.places.complaints.append(f"{where}: an output shows a path of the machine it ran on ({found[0]}...)")
    return out


def mark(cell):
    "What nbgrader knows about a cell, as a line above it."
    g = cell.get("metadata", {}).get("nbgrader")
    if not g: return ""
    kind = ("answer" if g.get("grade")
            and g.get("solution") else "test" if g.get("grade") else "solution" if g.get("solution") else "locked")
    points = f", {g['points']:g} point" + "s"*(g["points"] != 1) if g.get("grade") else ""
    return f'<p class="mark {kind}">{GRADED[kind]}{points}</p>'


class Page:
    "Collects the parts of one page and writes them as the Markdown that MkDocs reads."
    def __init__(self): self.parts, self.at = [], None  # at: number of the last heading of the text
    def add(self, part):
        if isinstance(part, tuple): self.at = len(self.parts)
        if part: self.parts.append(part)

    @property
    def heading(self):
        return ("" if self.at is None
                else re.sub(r"[`*_]|\s*\{ #.*", "", self.parts[self.at][1].replace("_", "\0")).replace("\0", "_"))

    def name(self, name):
        "A heading for a documented name, unless the heading above says it already; either way it can be linked to."
        if self.heading == name: self.parts[self.at] = (self.parts[self.at][0], f"`{name}` {{ #{name} }}")
        else:
            self.parts.append((min(self.parts[self.at][0] + 1, 4) if self.at is not None else 2,
                               f"`{name}` {{ #{name} }}"))

    def markdown(self, title, summary):
        # MkDocs reads front matter; JSON is YAML.
        head = ("---\n" + f"title: {json.dumps(title, ensure_ascii=False)}\n"
                + (f"description: {json.dumps(summary, ensure_ascii=False)}\n" if summary else "") + "---\n\n")
        return head + "\n\n".join(f"{'#'*p[0]} {p[1]}" if isinstance(p, tuple) else p for p in self.parts) + "\n"


def lead(parts):
    "The quotation right below the title is the page's first sentence, not a quotation."
    if len(parts) > 1 and isinstance(parts[0], tuple) and isinstance(parts[1], str):
        parts[1] = re.sub(r'^<div class="text"><blockquote>\s*<p>(.*?)</p>\s*</blockquote>',
                          r'<div class="text"><p class="lead">\1</p>', parts[1], count=1, flags=re.S)
    return parts


def notebook_page(path, cells, text, page, api=False):
    "The page of a notebook, as Markdown for MkDocs."
    title, summary = title_and_summary(cells)
    out, module = Page(), module_of(cells) if api else None
    title = title or path.stem
    for number, cell in enumerate(cells):
        where, source = f"{path.relative_to(ROOT).as_posix()}, cell {number}", source_of(cell)
        if cell["cell_type"] == "raw": continue
        if cell["cell_type"] == "markdown":
            if m := mark(cell): out.add(m)
            for part in lead(text.parts(front_matter(source), path, page)): out.add(part)
            if module and out.at is not None:
                out.add(f'<p class="module">Module <code>{module}</code></p>'); module = None
            continue
        told, code = directives(source)
        if told.keys() & {"hide", "default_exp"} or told.get("include") == "false": continue
        if exported(cell) and api:
            if not code or only_imports(code): continue
            # what the section is called after comes first
            shown = sorted(documented(code), key=lambda d: d[0] != out.heading)
            for name, doc in shown: out.name(name); out.add(f'<div class="api">{doc}</div>')
            title_ = "Source" if shown else "Source: helpers"
            out.add(
                f'<details class="source" data-search-exclude><summary>{title_}</summary>{code_html(code)}</details>')
        elif code and not (told.get("echo") == "false" or "hide_input" in told):
            if m := mark(cell): out.add(m)
            flags = [f for f in ("slow", "gpu", "network", "browser", "real") if f in told]
            shown = code_html(code, extra=" cell")
            if told.get("code_fold") == "true":
                shown = f'<details class="source"><summary>Code</summary>{shown}</details>'
            out.add((f'<p class="mark flag">Checked only in longer test runs ({", ".join(flags)})</p>' if flags else "")
                    + shown)
        if not (told.get("output") == "false" or "hide_output" in told):
            for part in outputs(cell, where, text, path, page,
                                told.get("fig_alt") or f"Figure in the section {out.heading or title}"):
                out.add(part)
    return out.markdown(title, summary)
