"""pytest plugin: the slowest files first, so that no worker is left alone with a long one at the end.

`tests/durations.json` holds the processor seconds of every file, and of every test of the files that may be split;
`make durations` measures it anew. What is not in it comes first: nobody knows how long it takes. xdist's own order, by
the number of tests, is switched off in pyproject.toml.
"""
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.notebook_worker import cpu, forked_cpu

TABLE = Path(__file__).with_name("durations.json")


def pytest_addoption(parser):
    parser.getgroup("notebooks").addoption("--write-durations", action="store_true",
                                           help=f"write the processor seconds of every file to {TABLE.name}")
    parser.addini("split_files",
                  "test files whose tests do not depend on each other: each test may go to another worker",
                  type="args", default=[])


def pytest_configure(config):
    if config.getoption("--write-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations(config))


def unit(nodeid, split):
    "What goes to one worker as a whole: a file, or a test of the files that may be split."
    file = nodeid.split("::")[0]
    return nodeid if file in split else file


# ---- order -----------------------------------------------------------------------------------------------------------
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if not hasattr(config, "workerinput"): return  # one process takes them in the order in which people read them
    known, split = json.loads(TABLE.read_text()), config.getini("split_files")
    # Sorting is stable: a file's tests keep their order.
    items.sort(key=lambda item: -known.get(unit(item.nodeid, split), float("inf")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid): return unit(nodeid, config.getini("split_files"))

    if config.getoption("dist") == "loadfile": return ByUnit(config, log)


# ---- measuring -------------------------------------------------------------------------------------------------------
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    item.began = cpu() + forked_cpu[0]
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown": item.user_properties.append(("cpu", cpu() + forked_cpu[0] - item.began))


class Durations:
    "Adds up what the tests took and writes the table at the end."
    def __init__(self, config): self.split, self.found = config.getini("split_files"), Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.found[unit(report.nodeid, self.split)] += dict(report.user_properties).get("cpu", 0)

    def pytest_sessionfinish(self):
        rows = {k: round(v) for k, v in self.found.most_common()}
        TABLE.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
