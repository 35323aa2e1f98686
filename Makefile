# make demo: a synthetic cohort, cross-validated with the real scripts; make test: lint and tests.
PYTHON ?= python3
PY = .venv/bin/python
DEMO = data/demo

.PHONY: demo test clean-demo

demo: .venv/installed
	$(PY) -m data.phantom --out_dir $(DEMO) --n_subjects 32 --spacing 3 --seed 7
	$(PY) cross_validation.py --scans_dir $(DEMO)/Scans --masks_dir $(DEMO)/Masks \
		--model_prefix demo --rpn_model_prefix demo --k 2 --splits 40 10 50 --offline

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest

# Installs once; a change of the requirements installs again.
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean-demo:
	rm -rf $(DEMO) StrokeFormer/demo* RPN/demo* scores/demo* rpn_scores/demo*
