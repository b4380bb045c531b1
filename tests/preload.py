"""Imported once by the process that tests' processes are forked from, after the libraries of pyproject.toml: what every
process would make or read again, the bundled tasks. What is there is frozen, so that no collector looks through it."""
import gc, os
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock

from finetune_nb.data.registry import TASKS, load_task

cache = Path(os.environ["NOTEBOOK_TESTS_SHARED"])/"cache"
cache.mkdir(parents=True, exist_ok=True)
# The texts take ten seconds to read, and are then in the cache for the other workers.
with FileLock(cache/"preload.lock"), patch.dict(os.environ, FINETUNE_NB_CACHE=str(cache)):
    for name in TASKS: load_task(name)
gc.collect(); gc.freeze()
