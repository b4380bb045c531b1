"""Processes forked from one that has the libraries loaded: for a notebook's cells and for commands. Kept apart so that
they start without pytest."""
import os, signal, sys, traceback, warnings
from multiprocessing import get_all_start_methods, get_context

# processor seconds of such processes so far; the fork server is their parent, so the system counts them elsewhere
forked_cpu = [0.]


def cpu():
    "Processor seconds of this process and of its finished children."
    return sum(os.times()[:4])


def fork_server(preload=()):
    "The context that makes such processes; the server imports `preload` once, when the first of them is started."
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if preload and hasattr(context, "set_forkserver_preload"): context.set_forkserver_preload(list(preload))
    return context


def kill_group(process):
    "End a process that leads a group of its own, and its children with it, also when it has died before them."
    if hasattr(os, "killpg"):
        try: os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError: process.kill()
    else: process.kill()
    process.join(10)


def share(shared, own, *names):
    """Make the cache `own`, and in it links to what the whole test run keeps once: `docs` are texts that take ten
    seconds to read, `runs` finished trainings."""
    os.makedirs(own, exist_ok=True)
    for name in names:
        common, link = os.path.join(shared, "cache", name), os.path.join(own, name)
        os.makedirs(common, exist_ok=True)
        try:
            if not os.path.lexists(link): os.symlink(common, link, target_is_directory=True)
        except OSError: pass  # Windows may forbid links
    return own


def run_command(args, folder, env, out, err, took):
    """`finetune-nb args` in `folder`, what it writes into the files `out` and `err`; ends the process with the
    command's status."""
    os.setsid(); os.chdir(folder); os.environ.clear(); os.environ.update(env); warnings.simplefilter("ignore")
    for file, number in ((out, 1), (err, 2)): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    from finetune_nb.cli.main import main
    status = 1
    try: status = main(args)
    except SystemExit as e: status = e.code or 0
    except BaseException: traceback.print_exc()
    with open(took, "w") as f: f.write(str(cpu()))
    sys.stdout.flush(); sys.stderr.flush(); os._exit(status)


def serve(pipe, path, scratch, shared):
    """Run each source that comes through `pipe`; answer None, or what went wrong as text, and the processor seconds
    taken so far."""
    if hasattr(os, "setsid"): os.setsid()
    # A notebook that counts trainings makes itself a cache of its own.
    own = share(shared, os.path.join(scratch, "cache"), "docs", "runs")
    if models := os.environ.get("NOTEBOOK_TESTS_MODELS"): os.symlink(models, os.path.join(own, "models"))
    os.environ |= {"IN_TEST": "1", "MPLBACKEND": "agg", "FINETUNE_NB_CACHE": own,
                   "IPYTHONDIR": os.path.join(scratch, "ipython")}
    os.chdir(os.path.dirname(path))
    from execnb.shell import CaptureShell
    shell = CaptureShell(path, mpl_format="png")
    while True:
        try: source = pipe.recv()
        except (EOFError, OSError): break
        shell.run(source)
        pipe.send((None if shell.exc is None else shell.prettytb(fname=path) or repr(shell.exc), cpu()))
    # joblib's workers and torch's threads need no farewell.
    sys.stdout.flush(); os._exit(0)
