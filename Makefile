# Each target does all of its own set-up: the first call makes .venv, later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BROWSER := $(VENV)/.browser
# Threads that fight for busy cores cost up to 180 times; tests use one each.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test test-all lint lab bench clean

demo: $(INSTALLED)  ## Train the quickstart's LoRA headless; writes workspace/demo/
	HF_HUB_OFFLINE=1 $(BIN)/ot-notebook demo

lab: $(INSTALLED)  ## Open the quickstart in JupyterLab
	$(BIN)/ot-notebook lab

test: $(INSTALLED) $(BROWSER)  ## What CI runs
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(INSTALLED) $(BROWSER)  ## Everything, minutes-long cases too; GPU cases where there is one
	$(ONE_THREAD) $(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## Step, dashboard and data path against bare loops, alternately in one run
	$(ONE_THREAD) $(BIN)/python benchmarks/step_time.py
	$(ONE_THREAD) $(BIN)/python benchmarks/dashboard_cost.py
	$(ONE_THREAD) $(BIN)/python benchmarks/data_path.py

clean:
	rm -rf $(VENV) workspace workspace-cache artifacts

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Browser tests need Chromium and a font. Debian's is installed where we may; elsewhere they skip.
$(BROWSER): $(INSTALLED)
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    --no-install-recommends chromium fonts-dejavu-core fonts-noto-color-emoji >/dev/null; \
	else echo "No Chromium: the browser tests will be skipped. Install it to run them."; fi
	touch $@
