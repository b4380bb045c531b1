"Above data, models' loaders and targets nothing asks what kind of task it has: the task's modality and target answer."
import io
import tokenize
from pathlib import Path

import finetune_nb

ROOT = Path(finetune_nb.__file__).parent
ALLOWED = ("data/", "models/")  # the contract's own floor
# Not clean yet; take a file off as soon as it is.
NOT_YET = {
    "continual/scenarios.py": {"classes"},  # sequences are made of classes, and say so
    "continual/sequence.py": {"accuracy"},
    "explain/attribution.py": {"classes"},  # names of the outputs that a map explains
    "explain/confusion.py": {"classes"},  # a confusion matrix has classes
    "pretraining/glyph_resnet.py": {"accuracy", "classes"},  # its own loop over drawn characters, which is no task
    "projects/new.py": {"classes"},  # folders of classes are counted before there is a task
    "projects/prepare.py": {"classes"},
    "widgets/figures.py": {"accuracy"},  # key of a stored file of measurements
}


def faults(text):
    "Kinds of fault in a file: what asks for a modality, names the accuracy or handles bare classes."
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline)
              if t.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)]
    out = set()
    for i, t in enumerate(tokens):
        if t.type == tokenize.OP and t.string in ("==", "!=") and "modality" in {x.string for x in tokens[max(0, i - 3):i + 2] if x.type == tokenize.NAME}:
            out.add("modality")
        if t.type == tokenize.STRING and t.string.strip("rbfu\"'") == "accuracy": out.add("accuracy")
        # the module of that name is no use of bare classes
        if t.type == tokenize.NAME and t.string == "classes" and not (tokens[i - 1].string == "." and tokens[i + 1].string == "import"):
            out.add("classes")
    return out


def found():
    return {p.relative_to(ROOT).as_posix(): f for p in sorted(ROOT.rglob("*.py")) if p.name != "_modidx.py"
            and not p.relative_to(ROOT).as_posix().startswith(ALLOWED) and (f := faults(p.read_text(encoding="utf-8")))}


def test_the_test_itself():
    assert faults('if task.modality == "text": pass') == {"modality"} and faults('m = {"accuracy": 1}') == {"accuracy"}
    assert faults("classes = 3") == {"classes"} and faults('x = "of classes"\nfrom .targets.classes import Classes') == set()


def test_nothing_above_data_asks_for_the_kind_of_task():
    now = found()
    new = {p: f - NOT_YET.get(p, set()) for p, f in now.items() if f - NOT_YET.get(p, set())}
    assert not new, f"use task.modality, task.target and its metrics instead: {new}"
    clean = {p: f - now.get(p, set()) for p, f in NOT_YET.items() if f - now.get(p, set())}
    assert not clean, f"clean by now, take off the list: {clean}"
