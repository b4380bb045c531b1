"Above data, models' loaders and targets nothing asks what kind of task it has: the task's modality and target answer."
import io
import tokenize
from pathlib import Path

import finetune_nb

ROOT = Path(finetune_nb.__file__).parent
ALLOWED = ("data/", "models/")  # the contract's own floor


def faults(text):
    "Kinds of fault in a file: what asks for a modality, names the accuracy or handles bare classes."
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline)
              if t.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)]
    out = set()
    for i, t in enumerate(tokens):
        beside = {x.string for x in tokens[max(0, i - 3):i + 2] if x.type == tokenize.NAME}
        if t.type == tokenize.OP and t.string in ("==", "!=") and "modality" in beside: out.add("modality")
        if t.type == tokenize.STRING and t.string.strip("rbfu\"'") == "accuracy": out.add("accuracy")
        # the module of that name is no use of bare classes
        module = tokens[i - 1].string == "." and i + 1 < len(tokens) and tokens[i + 1].string == "import"
        if t.type == tokenize.NAME and t.string == "classes" and not module: out.add("classes")
    return out


def found():
    files = {p.relative_to(ROOT).as_posix(): p for p in sorted(ROOT.rglob("*.py")) if p.name != "_modidx.py"}
    return {name: f for name, p in files.items()
            if not name.startswith(ALLOWED) and (f := faults(p.read_text(encoding="utf-8")))}


def test_the_test_itself():
    assert faults('if task.modality == "text": pass') == {"modality"} and faults('m = {"accuracy": 1}') == {"accuracy"}
    assert faults("classes = 3") == {"classes"}
    assert faults('x = "of classes"\nfrom .targets.classes import Classes') == set()


def test_nothing_above_data_asks_for_the_kind_of_task():
    assert not (now := found()), f"use task.modality, task.target and its metrics instead: {now}"
