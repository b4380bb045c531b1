"The process in which a notebook's cells run; see notebook_cells.py. Kept apart so that it starts without pytest."
import os, sys


def serve(pipe, path, scratch, shared):
    "Run each source that comes through `pipe`; answer None, or what went wrong as text."
    if hasattr(os, "setsid"): os.setsid()
    # Caches are each notebook's own but for the texts of `docs`, named by what they were read from: reading them takes ten seconds.
    os.makedirs(os.path.join(shared, "docs"), exist_ok=True); os.makedirs(os.path.join(scratch, "cache"))
    try: os.symlink(os.path.join(shared, "docs"), os.path.join(scratch, "cache", "docs"), target_is_directory=True)
    except OSError: pass  # Windows may forbid links
    os.environ |= {"IN_TEST": "1", "MPLBACKEND": "agg", "FINETUNE_NB_CACHE": os.path.join(scratch, "cache"), "IPYTHONDIR": os.path.join(scratch, "ipython")}
    os.chdir(os.path.dirname(path))
    from execnb.shell import CaptureShell
    shell = CaptureShell(path, mpl_format="png")
    while True:
        try: source = pipe.recv()
        except (EOFError, OSError): break
        shell.run(source)
        pipe.send(None if shell.exc is None else shell.prettytb(fname=path) or repr(shell.exc))
    # joblib's workers and torch's threads need no farewell.
    sys.stdout.flush(); os._exit(0)
