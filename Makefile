# Each target does all of its own set-up: the first call makes .venv, later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BROWSER := $(VENV)/.browser
COLAB := .venv-colab
# Threads that fight for busy cores cost up to 180 times; tests use one each.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

# The widgets once more, with the widget libraries of Colab's kernels.
TEST_COLAB = OT_PINS=tests/colab.txt $(ONE_THREAD) $(COLAB)/bin/python -m pytest tests/widgets \
  -n 2 --dist loadfile -m "not slow and not gpu" -W ignore::DeprecationWarning

.PHONY: demo test test-all lint lab bench clean

demo: $(INSTALLED)  ## Train the quickstart's LoRA headless; writes workspace/demo/
	HF_HUB_OFFLINE=1 $(BIN)/ot-notebook demo

lab: $(INSTALLED)  ## Open the quickstart in JupyterLab
	$(BIN)/ot-notebook lab

test: $(INSTALLED) $(BROWSER) $(COLAB)/.installed  ## What CI runs
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"
	$(TEST_COLAB)

test-all: $(INSTALLED) $(BROWSER) $(COLAB)/.installed  ## Everything, minutes-long cases too; GPU cases where there is one
	$(ONE_THREAD) $(BIN)/python -m pytest
	$(TEST_COLAB)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## Step, dashboard and data path against bare loops, alternately in one run
	$(ONE_THREAD) $(BIN)/python benchmarks/step_time.py
	$(ONE_THREAD) $(BIN)/python benchmarks/fixed_cost.py
	$(ONE_THREAD) $(BIN)/python benchmarks/dashboard_cost.py
	$(ONE_THREAD) $(BIN)/python benchmarks/data_path.py

clean:
	rm -rf $(VENV) $(COLAB) workspace workspace-cache artifacts

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Everything but those few libraries comes from .venv, which stands behind them on the path.
$(COLAB)/.installed: $(INSTALLED) tests/colab.txt
	$(BIN)/python -m venv --clear $(COLAB)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(COLAB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	$(COLAB)/bin/python -m pip install --quiet --no-warn-conflicts --disable-pip-version-check \
	  -r tests/colab.txt
	touch $@

# Browser tests need Chromium and a font. Debian's is installed where we may; elsewhere they skip.
$(BROWSER): $(INSTALLED)
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    --no-install-recommends chromium fonts-dejavu-core fonts-noto-color-emoji >/dev/null; \
	else echo "No Chromium: the browser tests will be skipped. Install it to run them."; fi
	touch $@
