"""Signatures and parameter comments of exported cells, read from their source: building the site imports neither the
library nor torch."""
import ast, html, io, re, tokenize
from functools import lru_cache

from docs_text import code_html


@lru_cache(maxsize=None)
def comments(source):
    "{line: comment without its #}"
    return {t.start[0]: t.string.lstrip("# ").rstrip()
            for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def parameters(node, source, skip_self=False):
    """Rows (name, default, comment) of a function's parameters, and the comment on what it returns; parameters that
    share a line share its comment."""
    a, note = node.args, comments(source)
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    every = (list(zip(plain, defaults)) + ([(a.vararg, None)] if a.vararg else [])
             + list(zip(a.kwonlyargs, a.kw_defaults)) + ([(a.kwarg, None)] if a.kwarg else []))
    if skip_self: every = [(p, d) for p, d in every if p.arg not in ("self", "cls")]
    said = lambda p: "" if note.get(p.lineno, "->").startswith("->") else note[p.lineno]
    stars, last = {id(a.vararg): "*", id(a.kwarg): "**"}, node.body[0].lineno
    # else a comment on the line is about the whole
    spread = max((p.lineno for p, _ in every), default=node.lineno) > node.lineno
    rows = [(stars.get(id(p), "") + p.arg, ast.get_source_segment(source, d) if d else "", said(p) if spread else "")
            for p, d in every]
    gives = next((c for line, c in sorted(note.items()) if node.lineno <= line <= last and c.startswith("->")), "")
    return rows, gives[2:].strip()


def call(name, arguments):
    "A call on one line, or on several where it is long."
    flat = f"{name}({', '.join(arguments)})"
    return flat if len(flat) <= 88 else f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + ")"


def signature(node, source, name, skip_self=False):
    "The signature as one writes a call; one parameter a line if it would be long."
    a, out, seen_star = node.args, [], False
    rows, _ = parameters(node, source, skip_self)
    bare, alone = {p.arg for p in a.kwonlyargs}, a.posonlyargs[-1].arg if a.posonlyargs else None
    for n, d, _ in rows:
        if n.startswith("*"): seen_star = True
        elif n in bare and not seen_star: out.append("*"); seen_star = True
        out.append(n + ("=" + " ".join(d.split()) if d else ""))
        if n == alone: out.append("/")
    return call(name, out)


def note(text):
    "A comment as HTML, `words` in it as code."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def prose(text):
    "A docstring as paragraphs; what is in backticks is code."
    return "".join(f"<p>{note(' '.join(p.split()))}</p>"
                   for p in re.split(r"\n\s*\n", (text or "").strip()) if p.strip())


def plain_default(text):
    "A default as people write it."
    return re.sub(r"field\(default_factory=(\w+)\)", r"\1()", " ".join(text.split()))


def table(rows, gives=""):
    "Parameters with their comments; nothing if there is no comment to show."
    if not any(c for _, _, c in rows) and not gives: return ""
    body = "".join(
        f"<tr><td><code>{html.escape(n + ('=' + plain_default(d) if d else ''))}</code></td><td>{note(c)}</td></tr>"
        for n, d, c in rows)
    head = "<thead><tr><th>parameter</th><th>meaning</th></tr></thead>" if rows else ""
    returned = f"<tr><td>returns</td><td>{note(gives)}</td></tr>" if gives else ""
    return f'<div class="scroll"><table class="data parameters">{head}<tbody>{body}{returned}</tbody></table></div>'


def function_html(node, source, name, skip_self=False):
    "Signature, docstring and parameters of a function."
    rows, gives = parameters(node, source, skip_self)
    return code_html(signature(node, source, name,
                               skip_self), extra=" signature") + prose(ast.get_docstring(node)) + table(rows, gives)


def fields(node, source):
    "Rows of a dataclass: (name, default, comment)."
    found = comments(source)
    return [(f.target.id, ast.get_source_segment(source, f.value) if f.value else "", found.get(f.end_lineno, ""))
            for f in node.body if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_")]


def is_property(f):
    "Is this method used like an attribute?"
    return any(getattr(d, "id", getattr(d, "attr", "")) in ("property", "cached_property", "lazyproperty")
               for d in f.decorator_list)


def class_html(node, source, name):
    "A class with its fields and public methods."
    defs = {f.name: f for f in node.body if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))}
    bases = ", ".join(ast.get_source_segment(source, b) for b in node.bases)
    if init := defs.get("__init__"):
        rows, gives = parameters(init, source, True)
        shown = signature(init, source, name, True)
    else: rows, gives, shown = fields(node, source), "", None
    if shown is None:
        shown = call(name, [n + ("=" + plain_default(d) if d else "") for n, d, _ in rows]) if rows else name
    out = code_html("class " + shown, extra=" signature") + prose(ast.get_docstring(node)) + table(rows, gives)
    if bases: out = out + f'<p class="bases">A kind of <code>{html.escape(bases)}</code>.</p>'
    for n, f in defs.items():
        if n.startswith("_") or not ast.get_docstring(f): continue
        shown = (code_html(f"{name}.{n}", extra=" signature")
                 + prose(ast.get_docstring(f)) if is_property(f) else function_html(f, source, f"{name}.{n}", True))
        out += f'<div class="method" id="{name}.{n}">{shown}</div>'
    return out


def patched(node):
    "Name of a function that fastcore's `patch` makes a method, such as Learner.fit; else its own."
    if (any(getattr(d, "id", "") == "patch" for d in node.decorator_list) and node.args.args
        and node.args.args[0].annotation is not None):
        return f"{ast.unparse(node.args.args[0].annotation).split('.')[-1]}.{node.name}"
    return node.name


def public(source):
    "[(node, name, names of methods)] of what the exported cell `source` makes public."
    out = []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        methods = [f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)
                   and not f.name.startswith("_") and ast.get_docstring(f)] if isinstance(node, ast.ClassDef) else []
        out.append((node, node.name if isinstance(node, ast.ClassDef) else patched(node), methods))
    return out


def documented(source):
    "[(name, HTML)] of what the exported cell `source` makes public."
    return [(name, class_html(node, source, name) if isinstance(node, ast.ClassDef)
             else function_html(node, source, name, "." in name)) for node, name, _ in public(source)]


def only_imports(source):
    "Nothing but imports and words?"
    return all(isinstance(n, (ast.Import, ast.ImportFrom))
               or isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in ast.parse(source).body)
