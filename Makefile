# make demo: a synthetic cohort, cross-validated by the real scripts; make test: lint and tests; make pretrained-dwi (or
# -t1w, -flair): the model in pretrained/dwi; its lesions have the shapes of real ones if LESION_MASKS is their folder.
# make pretrained-brain: the network that finds the brain, trained anew.
PYTHON ?= python3
PY = .venv/bin/python
COHORT = data/demo
HEADS = --spacing 2 --stripped --oblique --ext .nii.gz --num_workers 2 $(if $(LESION_MASKS),--lesion_masks $(LESION_MASKS))
PRETRAINED = pretrained-t1w pretrained-dwi pretrained-flair

.PHONY: demo test pretrained-brain clean-demo $(PRETRAINED)

demo: .venv/installed
	$(PY) -m data.phantom --out_dir $(COHORT) --n_subjects 60 --modality dwi --spacing 3 --seed 7 --num_workers 2
	$(PY) cross_validation.py @recipes/demo.args --scans_dir $(COHORT)/Scans --masks_dir $(COHORT)/Masks \
		--model_prefix demo --rpn_model_prefix demo \
		--default_root_dir demo/StrokeFormer --rpn_default_root_dir demo/RPN \
		--scores_dir demo/scores --rpn_scores_dir demo/rpn_scores

$(PRETRAINED): pretrained-%: .venv/installed
	$(PY) -m data.phantom --out_dir runs/$@/cohort --modality $* --n_subjects 480 $(HEADS) --seed 71
	$(PY) cross_validation.py @recipes/pretrained.args --k 10 --splits 90 5 5 --folds_to_run 0 --seed 71 --offline \
		--scans_dir runs/$@/cohort/Scans --masks_dir runs/$@/cohort/Masks --ext .nii.gz \
		--model_prefix $* --rpn_model_prefix $* --default_root_dir runs/$@/StrokeFormer \
		--rpn_default_root_dir runs/$@/RPN --scores_dir runs/$@/scores --rpn_scores_dir runs/$@/rpn_scores
	$(PY) -m data.phantom --out_dir runs/$@/alike --modality $* --n_subjects 24 $(HEADS) --seed 401
	$(PY) -m data.phantom --out_dir runs/$@/shifted --modality $* --n_subjects 24 $(HEADS) --seed 400 \
		--variety 1 --lesion_contrast 0.8 --warp_mm 5
	mkdir -p runs/$@/renamed/Scans runs/$@/renamed/Masks
	cd runs/$@/shifted && for f in Scans/* Masks/*; do \
		ln -sf $$PWD/$$f ../renamed/$$(echo $$f | sed s/sub-/sub-shifted/); done
	$(PY) calibrate.py --scans runs/$@/alike/Scans runs/$@/renamed/Scans --masks runs/$@/alike/Masks \
		runs/$@/renamed/Masks --rpn_ckpt_path runs/$@/RPN/$*_fold-0/checkpoints/best.ckpt \
		--ckpt_path runs/$@/StrokeFormer/$*_fold-0/checkpoints/best.ckpt --out_dir runs/$@/calibrated
	$(PY) -m models.export --fp16 --rpn_ckpt_path runs/$@/calibrated/stage1.ckpt \
		--ckpt_path runs/$@/calibrated/stage2.ckpt --out_dir pretrained/$*

test: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

pretrained-brain: .venv/installed
	$(PY) -m models.brain

# Installs once; a change of the requirements installs again.
.venv/installed: requirements.txt
	@echo "Installing requirements.txt into .venv: 6 GB, 2 to 5 minutes, once"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean-demo:
	rm -rf demo $(COHORT)
