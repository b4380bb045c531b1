"What several test files need."
import hashlib, importlib.util, io, json, os, subprocess, sys, tempfile, threading
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch

from tests.notebook_worker import fork_server, forked_cpu, kill_group, run_command, share

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    "scripts/NAME.py as a module."
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT/"scripts"/f"{name}.py")
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


def environment(tmp, **more):
    "An environment in which the kit's cache lies in `tmp` and nothing of the caller's settings shows."
    env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")}
    cache = Path(tmp)/"cache"
    if "FINETUNE_NB_CACHE" not in more and "NOTEBOOK_TESTS_SHARED" in env:
        share(env["NOTEBOOK_TESTS_SHARED"], cache, "docs")
    return env | dict(FINETUNE_NB_CACHE=str(cache), FINETUNE_NB_WORKERS="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT),
                      PYTHONWARNINGS="ignore") | more


def shared_runs():
    "The cache whose finished runs the whole test run shares."
    return os.path.join(os.environ["NOTEBOOK_TESTS_SHARED"], "cache")


def cli(tmp, *args, limit=300, fresh=False, **env):
    """Run finetune-nb in a process of its own; returns the finished process. It is forked from one that has the
    libraries loaded, which saves five processor seconds a call; `fresh` starts Python anew, as a shell does."""
    command, env = ["finetune-nb", *map(str, args)], environment(tmp, **env)
    if fresh or os.name != "posix":
        command[:1] = [sys.executable, "-m", "finetune_nb.cli.main"]
        return subprocess.run(command, cwd=tmp, env=env, capture_output=True, text=True, timeout=limit)
    with tempfile.TemporaryDirectory() as said:
        files = [Path(said)/name for name in ("out", "err", "cpu")]
        process = fork_server().Process(target=run_command, args=(command[1:], str(tmp), env, *map(str, files)))
        process.start(); process.join(limit)
        if process.exitcode is None: kill_group(process)
        out, err, took = (f.read_text() if f.exists() else "" for f in files)
    forked_cpu[0] += float(took or 0)
    if process.exitcode < 0: raise subprocess.TimeoutExpired(command, limit, out, err)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def said(tmp, *args, **env):
    "The same in this process, which has the libraries loaded already."
    from finetune_nb.cli.main import main
    out, err = io.StringIO(), io.StringIO()
    with (chdir(tmp), patch.dict(os.environ, environment(tmp, **env), clear=True), redirect_stdout(out),
          redirect_stderr(err)):
        status = main([str(a) for a in args])
    return subprocess.CompletedProcess(["finetune-nb", *args], status, out.getvalue(), err.getvalue())


def refused(tmp, *args):
    "The one line that bad input gets: status 2, nothing on standard output."
    done = said(tmp, *args)
    assert done.returncode == 2 and done.stdout == "", done
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


SMALL = ("compare", "digits", "--recipes", "full,linear_probe", "--labels", 1, "--profile", "smoke")


def without_times(summary):
    "A summary with what may differ between two equal runs taken out."
    if isinstance(summary, dict):
        return {k: without_times(v)
                for k, v in summary.items() if k not in ("seconds", "train_seconds", "cost", "files")}
    return [without_times(v) for v in summary] if isinstance(summary, list) else summary


@contextmanager
def hub(repository, files):
    """A server on this machine that answers as the Hugging Face hub does, with one model (`files`: name -> bytes).
    Gives (address, the list of paths that were asked for)."""
    commit, asked = "0"*40, []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self): self.answer(False)
        def do_GET(self): self.answer(True)
        def log_message(self, *a): pass
        def content(self):
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{repository}"):
                if "/tree/" in path:
                    return json.dumps(
                        [dict(type="file", path=f, size=len(c), oid=commit) for f, c in files.items()]).encode()
                return json.dumps(dict(id=repository, modelId=repository, sha=commit, tags=[],
                                       siblings=[dict(rfilename=f) for f in files])).encode()
            for start in (f"/{repository}/resolve/main/", f"/{repository}/resolve/{commit}/"):
                if path.startswith(start): return files.get(path.removeprefix(start))
        def answer(self, body):
            asked.append(self.path)
            content = self.content()
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code",
                                 "EntryNotFound" if self.path.startswith(f"/{repository}/") else "RepoNotFound")
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body: self.wfile.write(content or b"")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}", asked
    finally: server.shutdown()


# the hub's client waits 23 seconds in all between its six tries
_IMPATIENT = "import time; time.sleep = lambda seconds, wait=time.sleep: wait(min(seconds, .01))\n"


def with_hub(tmp, endpoint, code):
    "What `code` prints in a process whose hub is at `endpoint` and whose hub cache lies in `tmp`."
    done = subprocess.run([sys.executable, "-c", _IMPATIENT + code], capture_output=True, text=True, timeout=180,
                          env=environment(tmp, HF_ENDPOINT=endpoint, HF_HOME=str(Path(tmp)/"hf"),
                                          HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
