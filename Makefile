# make demo: a synthetic cohort, cross-validated by the real scripts; make test: lint and tests.
PYTHON ?= python3
PY = .venv/bin/python
COHORT = data/demo

.PHONY: demo test clean-demo

# 3 mm makes a fold a matter of minutes on two cores. The RoI of 24 voxels is 72 mm, about the default 64 at 1 mm.
demo: .venv/installed
	$(PY) -m data.phantom --out_dir $(COHORT) --n_subjects 48 --spacing 3 --seed 7 --num_workers 2
	$(PY) cross_validation.py --scans_dir $(COHORT)/Scans --masks_dir $(COHORT)/Masks \
		--model_prefix demo --rpn_model_prefix demo --k 2 --splits 40 10 50 --offline \
		--scan_dim 1 63 66 78 --roi_size 24 24 24 --transforms flip affine contrast --dataset_anchors auto \
		--rpn_image_size 128 --rpn_batch_size 16 --rpn_lr 1e-3 --rpn_max_epochs 16 --rpn_ema_decay 0.97 \
		--batch_size 4 --max_lr 2e-3 --max_epochs 42 --log_every_n_val_epochs 14 --target_layers decoders.1 \
		--default_root_dir demo/StrokeFormer --rpn_default_root_dir demo/RPN \
		--scores_dir demo/scores --rpn_scores_dir demo/rpn_scores

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
	rm -rf demo $(COHORT)
