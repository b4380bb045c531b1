"""Make .venv and install the kit into it. `make` calls this; on Windows call it yourself: py scripts\\setup.py

It runs on the Python that is there, whatever its age, so that a wrong one gets a sentence and not a syntax error.
"""
import hashlib, os, re, shutil, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDS_PYTHON, NEEDS_GB = (3, 11), 9
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
LOG = os.path.join(VENV, "setup.log")


def stop(line):
    "One line on standard error, exit status 2."
    sys.stderr.write("error: " + line + "\n")
    sys.exit(2)


def check_python(version):
    "Stop if this Python is too old."
    if tuple(version[:2]) < NEEDS_PYTHON:
        stop("finetune_nb needs Python %d.%d or newer, this is %d.%d. Install one and name it: make "
             "PYTHON=python3.12" % (NEEDS_PYTHON + tuple(version[:2])))


def check_disk(free_gb, installed):
    "Stop if an installation would not fit."
    if not installed and free_gb < NEEDS_GB:
        stop("installing takes about 7 GB, only %.1f GB are free here. Make room or move the folder "
             "to another disk" % free_gb)


def explain(log):
    "One line for what pip wrote."
    if "No space left on device" in log:
        return "the disk is full. Make room and run this again; it goes on where it stopped"
    if re.search(
        r"NewConnectionError|ConnectTimeout|Temporary failure in name resolution"
        r"|Network is unreachable|Connection refused"
        r"|ProxyError|getaddrinfo failed|Failed to establish",
        log):
        return ("no network: the Python package index cannot be reached. Connect (or set PIP_INDEX_URL to a mirror) "
                "and run this again")
    lacking = re.search(r"satisfies the requirement (\S+) \(from versions: none\)", log)
    if lacking:
        return ("no network, or an index without %s: the Python package index gave nothing. Connect (or set "
                "PIP_INDEX_URL) and run this again" % lacking.group(1))
    errors = [l for l in log.splitlines() if l.startswith("ERROR")]
    return (errors[0][7:] if errors else "installation failed") + " (whole log: %s)" % LOG


def run(*command):
    "Run a command, its output into the log; explain a failure in one line."
    with open(LOG, "a") as log:
        done = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if done:
        with open(LOG, errors="replace") as log: stop(explain(log.read()))


def merge_notebooks(root=ROOT, tools=BIN):
    """Notebooks merge cell by cell: git calls the driver that .gitattributes names. Where it is not installed, git
    merges them as the text they are; a folder without git is left alone."""
    if not os.path.exists(os.path.join(root, ".git")) or not shutil.which("git"): return
    tool = os.path.join(tools, "nbdev-merge")
    text = "git merge-file -L ours -L base -L theirs %A %O %B"
    driver = 'if test -x "%s"; then "%s" %%O %%A %%B %%P; else %s; fi' % (tool, tool, text)
    for key, value in (("name", "notebooks, cell by cell"), ("driver", driver)):
        subprocess.call(["git", "-C", root, "config", "merge.nbdev-merge." + key, value])


def wanted():
    "What an installation depends on; make goes by file times, which tools move without changing a word."
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f: return hashlib.sha256(f.read()).hexdigest()


def is_ready():
    "Has this very pyproject.toml been installed?"
    try:
        with open(os.path.join(VENV, ".ready")) as f: return f.read() == wanted()
    except (IOError, OSError): return False


def main():
    "Make .venv and install the kit into it, unless that is done."
    check_python(sys.version_info)
    if is_ready():
        os.utime(os.path.join(VENV, ".ready"), None)
        return
    python = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
    check_disk(shutil.disk_usage(ROOT).free / 1e9, os.path.exists(python))
    sys.stderr.write(
        "setting up .venv (once: about 3 minutes and 6 GB of downloads on Linux, where torch brings GPU libraries)\n")
    if not os.path.exists(python):
        if subprocess.call([sys.executable, "-m", "venv", VENV]):
            stop("Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv")
    open(LOG, "w").close()
    run(python, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2", "-e", ".[dev]")
    merge_notebooks()
    with open(os.path.join(VENV, ".ready"), "w") as f: f.write(wanted())
    sys.stderr.write("ready\n")


if __name__ == "__main__": main()
