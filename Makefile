# Two commands do everything: `make compare` (the main job) and `make test`. The first of them sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SMOKE := FINETUNE_NB_PROFILE=smoke FINETUNE_NB_WORKERS=1

.PHONY: help compare claims test durations oldest test-slow test-browser real lab docs check pretrained readme outputs run-times clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml scripts/setup.py
	@$(PYTHON) scripts/setup.py

compare: $(READY)  ## measure the recipes on real handwriting (add ARGS="scripts --labels 3", say)
	@$(BIN)/finetune-nb compare $(or $(ARGS),digits)

claims: $(READY)  ## run all claims and write their page (add ARGS="replay fewer_labels", say)
	@$(BIN)/finetune-nb claims $(ARGS)

test: $(READY)  ## every notebook cell in the smoke profile, and the tests beside them
	$(SMOKE) $(BIN)/python -m pytest -q -n auto

durations: $(READY)  ## measure how long each test file takes, by which `make test` orders them
	$(SMOKE) $(BIN)/python -m pytest -q -n auto --write-durations

oldest:  ## the tests on the oldest versions that pyproject.toml allows, in build/oldest (6 GB)
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install -q uv
	build/oldest/bin/uv pip install -q --python build/oldest/bin/python --resolution lowest-direct -e ".[dev]"
	$(SMOKE) build/oldest/bin/python -m pytest -q -n auto

test-slow: $(READY)  ## tutorials and labs in the fast profile, slow cells and tests, and nbdev's own test run
	$(BIN)/python scripts/run_times.py $(or $(KEEP),--check)
	FINETUNE_NB_PROFILE=fast $(BIN)/python -m pytest -q --flags slow --cell-timeout 600 nbs/index.ipynb nbs/templates $$(grep -lr --include=*.ipynb '"#| slow' nbs/api) tests
	IN_TEST=1 $(SMOKE) OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs/api --n-workers 2

test-browser: $(READY)  ## JupyterLab and the site in a real browser, which is installed if none is there
	@$(BIN)/python scripts/browser.py
	$(SMOKE) $(BIN)/python -m pytest -q --flags browser -m browser tests/test_browser.py tests/test_docs.py

real: $(READY)  ## fetch the real networks (190 MB), and run the tests that need them
	@$(BIN)/finetune-nb models get --all
	$(SMOKE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s --flags real -m real tests/test_real.py nbs/tutorials

lab: $(READY)  ## open JupyterLab on the path through the tutorials
	$(BIN)/jupyter lab nbs/tutorials/00_start_here.ipynb

docs: $(READY)  ## make the documentation site in build/site, and check its links
	@$(BIN)/python scripts/docs.py

check: $(READY)  ## export and clean leave no difference, README in step, ruff clean
	@$(BIN)/python scripts/check.py

pretrained: $(READY)  ## remake the bundled checkpoints; interrupt it at will, the same command goes on
	@$(BIN)/python -m finetune_nb.pretraining.glyph_resnet --out build/pretrained/glyph_resnet
	@$(BIN)/python -m finetune_nb.pretraining.zoo --out build/pretrained
	@$(BIN)/python -m finetune_nb.pretraining.docs_lm --out build/pretrained/docs_lm
	@$(BIN)/python -m finetune_nb.pretraining.world_lm --out build/pretrained/world_lm
	cp -r build/pretrained/. finetune_nb/models/checkpoints
	rm -r build/pretrained

readme: $(READY)  ## make README.md from nbs/index.ipynb
	@$(BIN)/python scripts/readme.py

outputs: $(READY)  ## run every notebook and keep its outputs: the library's in smoke, tutorials and index in fast
	IN_TEST=1 $(SMOKE) OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs/api --save --n-workers 2
	FINETUNE_NB_PROFILE=fast $(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb nbs/claims.ipynb
	$(BIN)/python scripts/run_times.py --outputs nbs/tutorials/*.ipynb
	$(BIN)/nbdev-clean
	@$(BIN)/python scripts/readme.py

run-times: $(READY)  ## run every tutorial and lab from an empty cache and write down how long each takes
	@$(BIN)/python scripts/run_times.py $(ARGS)

clean:  ## remove reports and caches; .venv stays
	rm -rf reports build .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
