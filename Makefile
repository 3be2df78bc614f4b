# The only set-up there is: a virtual environment beside this file, and the notebooks through papermill.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NOTEBOOK ?= 03_compare
# For example: make compare PARAMETERS="-p model Llama3.2-1B-Instruct -p dtype bfloat16"
PARAMETERS ?=
# Two threads that spin on two busy cores are slower than one.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: compare test lab clean

compare: $(STAMP)
	@$(BIN)/papermill notebooks/$(NOTEBOOK).ipynb outputs/$(NOTEBOOK).ipynb $(PARAMETERS) \
		--no-progress-bar --log-level ERROR --cwd notebooks < /dev/null || \
		{ echo "FAIL: see the end of outputs/$(NOTEBOOK).ipynb" ; exit 1; }
	@$(BIN)/python entropix_lab/verdict.py outputs/$(NOTEBOOK).ipynb

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

.venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[notebooks,test]"
	@touch $@

clean:
	rm -rf .venv outputs/*.ipynb outputs/[0-9]*.json
