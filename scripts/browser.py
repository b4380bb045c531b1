"""What the tests in a browser need: Playwright, a Chromium, and nbgrader's page in JupyterLab. `make test-browser`
calls this first.

What is there is used. What is missing is installed: packages into .venv, a browser from Debian's archive where this
runs as root and apt is there, otherwise Playwright's own into the user's cache. If neither can be had, one line
says what to do."""
import glob, importlib.util, os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")


def stop(line):
    "One line on standard error, exit status 2."
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def playwrights_own():
    "Chromium as Playwright keeps it, or None."
    with_name = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    places = [with_name] if with_name else ["~/.cache/ms-playwright", "~/Library/Caches/ms-playwright",
                                            "~/AppData/Local/ms-playwright"]
    found = [f for p in places for f in glob.glob(os.path.expanduser(f"{p}/chromium*/**/*"), recursive=True)
             if os.path.basename(f) in ("chrome", "chrome.exe", "Chromium", "headless_shell")]
    return max(found, default=None)


def chromium():
    "Path of a Chromium or a relative of it: $CHROMIUM, one on the path, or Playwright's; None if there is none."
    named = os.environ.get("CHROMIUM")
    if named:
        if not shutil.which(named):
            stop(f"CHROMIUM={named} is not a program; name a browser, or unset it to let one be found")
        return shutil.which(named)
    return next((p for n in NAMES if (p := shutil.which(n))), None) or playwrights_own()


def run(*command):
    "Did the command succeed?"
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode == 0


def get_packages():
    "Install Playwright and nbgrader unless they are there."
    if all(importlib.util.find_spec(m) for m in ("playwright", "nbgrader")): return
    print("installing Playwright and nbgrader into .venv", file=sys.stderr)
    if not run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[browser]"):
        stop("Playwright or nbgrader cannot be installed (see above); the tests in a browser need both")


def get_chromium():
    "Install a browser unless one is there."
    if chromium(): return
    print("installing a browser, once", file=sys.stderr)
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        if not run("apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"):
            run("apt-get", "update", "-q") and run("apt-get", "install", "-y", "-q",
                                                   "--no-install-recommends", "chromium")
    if not chromium(): run(sys.executable, "-m", "playwright", "install", "chromium")
    if not chromium():
        stop("no Chromium is here and none can be installed. Install one (Debian: apt install chromium), or name one: "
             "make test-browser CHROMIUM=/path/to/chrome")


def has_nbgrader():
    "Is nbgrader's page part of this JupyterLab?"
    done = subprocess.run([sys.executable, "-m", "jupyter", "labextension", "list"], capture_output=True, text=True)
    return any("@jupyter/nbgrader" in line and "enabled" in line and "OK" in line
               for line in (done.stdout + done.stderr).splitlines())


def main():
    "Get what is missing."
    get_packages()
    get_chromium()
    if not has_nbgrader():
        stop("nbgrader is installed, but JupyterLab does not list its extension; `jupyter labextension list` says more")
    print(f"browser: {chromium()}", file=sys.stderr)


if __name__ == "__main__": main()
