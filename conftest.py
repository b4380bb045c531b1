"pytest reads notebooks through the plugin in tests/; a conftest inside tests/ would not see nbs/."
pytest_plugins = ["tests.notebook_cells", "tests.slowest_first"]
