"""Markdown as notebooks write it (CommonMark, tables, formulas) to HTML that needs nothing from outside: code is
coloured here, formulas become pictures."""
import hashlib, html, os, re, struct
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
LOCAL = re.compile(r"^(?![a-z][a-z0-9+.-]*:|//)", re.I)
RECIPES = {"linear_probe"}  # functions that are called as a recipe is


class DocsError(Exception): "Something in a source of the site that has to be mended; one line."


def code_html(source, language="python", extra=""):
    "A block of code, coloured."
    try: lexer = get_lexer_by_name({"ipython3": "python", "bat": "batch"}.get(language, language) or "text")
    except ClassNotFound: lexer = get_lexer_by_name("text")
    # The formatter's own <pre> would lack <code>, which the copy button looks for.
    lines = highlight(source.rstrip("\n"), lexer, HtmlFormatter(nowrap=True)).rstrip("\n")
    return f'<div class="highlight{extra}"><pre><code>{lines}\n</code></pre></div>'


@lru_cache(maxsize=None)
def formula(tex):
    "A formula as SVG in the colour of the text; matplotlib sets it, so that no script and no font is needed."
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.textpath import TextPath
    plain = tex.strip()
    for a, b in ((r"\\[td]frac", r"\\frac"), (r"\\[lr]Vert", r"\\|"), (r"\\(ge|le|ne)(?![a-zA-Z])", r"\\\1q"),
                 (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\text\b", r"\\mathrm"), (r"\s+", " ")):
        plain = re.sub(a, b, plain)
    try:
        with rc_context({"mathtext.fontset": "stix"}):
            font, size = (FontProperties(size=10),
                          MathTextParser("path").parse(f"${plain}$", 72, FontProperties(size=10)))
            path = TextPath((0, 0), f"${plain}$", prop=font)
    except Exception as e:
        raise DocsError(f"the formula ${tex}$ cannot be drawn ({str(e).strip().splitlines()[-1].strip()}); write "
                        "it more simply") from None
    letters, d = {1: "M", 2: "L", 3: "Q", 4: "C"}, []
    for points, kind in path.iter_segments(curves=True, simplify=False):
        d.append("Z" if kind == 79 else letters[kind] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in points.reshape(-1, 2)))
    up, em = size.height - size.depth, 10/1.12  # a formula looks small beside text of the same size
    box = f'viewBox="0 {-up - .5:.2f} {size.width + .5:.2f} {size.height + 1:.2f}"'
    style = (f"width:{(size.width + .5)/em:.2f}em;height:{(size.height + 1)/em:.2f}em;"
             f"vertical-align:{-(size.depth + .5)/em:.2f}em")
    return (f'<svg class="formula" role="img" aria-label="{html.escape(tex.strip(), quote=True)}" {box} '
            f'style="{style}"><path d="{"".join(d)}"/></svg>')


class Places:
    "Where each file of the repository is found on the site, and what each public name is documented under."
    def __init__(self, pages, names=()):
        self.pages, self.names = pages, dict(names)  # {source: page without suffix}, {name: page#anchor}
        self.files, self.pictures, self.complaints = {}, {}, []  # {source: page}, {path on the site: bytes}, complaints

    def of(self, source):
        "Page of the file or folder `source`; a text file of the repository becomes a page once something links to it."
        if source in self.pages: return self.pages[source] + ".html"
        if source.is_dir():
            index = [p for p in self.pages.values() if p == f"{source.name}/index"]
            return index[0] + ".html" if index else None
        if source.is_file() and ROOT in source.parents and source.suffix != ".ipynb":
            return self.files.setdefault(source,
                                         f"files/{source.relative_to(ROOT).as_posix().replace('/', '_')}") + ".html"

    def link(self, href, source, page):
        "The link `href` in the file `source`, as it has to read on `page`."
        if not LOCAL.match(href): return href
        path, _, anchor = href.partition("#")
        anchor = (f"#{re.sub(r'[^a-z0-9_]+', '-', unquote(anchor).lower()).strip('-')}" if anchor
                  and path.endswith(".ipynb") | (not path) else "#" + anchor if anchor else "")
        if not path: return anchor
        found = self.of((source.parent/unquote(path)).resolve())
        if found is None:
            self.complaints.append(
                f"{source.relative_to(ROOT).as_posix()}: link to {href}, which is neither a page nor a file here")
            return href
        return self.relative(found, page) + anchor

    def name(self, name, page):
        """Link to the documentation of a public name, or None. A plain word may mean a task or a recipe as well; it
        counts only with its parentheses."""
        found = (self.names.get(name.removesuffix("()")) if re.search(r"[A-Z_.]|\(\)$", name)
                 and name not in RECIPES else None)
        return found and found.partition("#")[0] != page + ".html" and self.relative(found, page) or None

    def picture(self, data, suffix, page, alt, scale=1):
        "Keep a picture once and give the tag that shows it in its natural size, at most as wide as the text."
        path, size = f"pictures/{hashlib.sha256(data).hexdigest()[:16]}{suffix}", ""
        if suffix == ".png" and data[:8] == b"\x89PNG\r\n\x1a\n":
            w, h = struct.unpack(">II", data[16:24])
            size = f' width="{w/scale:.0f}" height="{h/scale:.0f}"'
        self.pictures[path] = data
        return f'<img src="{self.relative(path, page)}" alt="{html.escape(alt, quote=True)}"{size} loading="lazy">'

    @staticmethod
    def relative(target, page): return Path(os.path.relpath(target, Path(page).parent)).as_posix()


class Text:
    """Turns Markdown into a page for MkDocs: headings stay Markdown, so that contents and search know them, the rest
    becomes HTML."""
    def __init__(self, places):
        self.places = places
        self.md = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).use(
            dollarmath_plugin, double_inline=True)
        for rule in ("fence", "code_block", "code_inline", "link_open", "image", "table_open", "table_close",
                     "math_inline", "math_inline_double", "math_block"):
            self.md.renderer.rules[rule] = getattr(self, rule)

    def parts(self, text, source, page):
        "The text as a list: (level, heading) and strings of HTML."
        env = {"source": source, "page": page}
        self.inside = False
        tokens, out, rest = self.md.parse(text, env), [], []
        def flush():
            if rest:
                out.append(f'<div class="text">{self.md.renderer.render(rest, self.md.options, env)}</div>')
                rest.clear()
        i = 0
        while i < len(tokens):
            if tokens[i].type == "heading_open" and tokens[i].level == 0:
                flush(); out.append((int(tokens[i].tag[1]), tokens[i + 1].content.strip())); i += 3
            else: rest.append(tokens[i]); i += 1
        flush()
        return out

    # Each rule renders one kind of token.
    def fence(self, tokens, i, options, env):
        return code_html(tokens[i].content, tokens[i].info.strip().split(" ")[0]) + "\n"
    def code_block(self, tokens, i, options, env): return code_html(tokens[i].content, "text") + "\n"
    def table_open(self, *_): return '<div class="scroll"><table class="data">\n'
    def table_close(self, *_): return "</table></div>\n"

    def math_inline(self, tokens, i, options, env): return formula(tokens[i].content)
    def math_inline_double(self, tokens, i, options, env):
        return f'<span class="equation">{formula(tokens[i].content)}</span>'
    def math_block(self, tokens, i, options, env): return f'<p class="equation">{formula(tokens[i].content)}</p>\n'

    def code_inline(self, tokens, i, options, env):
        shown, linked = (f"<code>{html.escape(tokens[i].content)}</code>",
                         sum({"link_open": 1, "link_close": -1}.get(t.type, 0) for t in tokens[:i]))
        href = None if linked else self.places.name(tokens[i].content, env["page"])
        return f'<a class="name" href="{href}">{shown}</a>' if href else shown

    def link_open(self, tokens, i, options, env):
        link = self.places.link(tokens[i].attrGet("href"), env["source"], env["page"])
        return f'<a href="{html.escape(link, quote=True)}">'

    def image(self, tokens, i, options, env):
        src = tokens[i].attrGet("src")
        if not LOCAL.match(src):
            raise DocsError(f"{env['source'].relative_to(ROOT).as_posix()}: the picture {src} lies elsewhere; put a "
                            "copy beside the text")
        file = (env["source"].parent/unquote(src)).resolve()
        if not file.is_file(): raise DocsError(f"{env['source'].relative_to(ROOT).as_posix()}: no picture {src}")
        return self.places.picture(file.read_bytes(), file.suffix, env["page"], tokens[i].content)
