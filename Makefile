# Each command does all the set-up on a fresh machine. `make regress` holds the built-in detectors
# against tests/suite/builtin.jsonl; `make regress-update` measures and writes that file anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUITE := out/suite

.PHONY: demo test check regress regress-update suite-artifacts clean

demo: $(STAMP)
	$(BIN)/edge demo -o out/demo

test: check
	$(BIN)/python -m pytest -n 2

regress: suite-artifacts
	$(BIN)/edge regress --suite tests/suite/builtin.toml --report $(SUITE)/report

regress-update: suite-artifacts
	$(BIN)/edge regress --suite tests/suite/builtin.toml --update

# Made anew each time: how they are made is what is guarded.
suite-artifacts: $(STAMP)
	rm -rf $(SUITE)
	$(BIN)/export-engine tiny-yolo-scenes --int8 --images 64 --builder none -o $(SUITE)
	$(BIN)/export-engine squeezedet-scenes --int8 --images 64 --builder none -o $(SUITE)
	$(BIN)/export-engine yolov3-tiny --random-weights --fp32 --builder none -o $(SUITE)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[build,rtx,cuda,dev]"
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache
