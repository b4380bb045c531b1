"""Imported once by the process that tests' processes are forked from, after the libraries of pyproject.toml: what every
process would make or read again, the bundled tasks."""
import os
from unittest.mock import patch

from finetune_nb.data.registry import TASKS, load_task

with patch.dict(os.environ, FINETUNE_NB_CACHE=os.path.join(os.environ["NOTEBOOK_TESTS_SHARED"], "cache")):
    for name in TASKS: load_task(name)
