# Two commands do everything on a fresh machine: `make quickstart` and `make test`. `make check` is the quick part of the latter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
REWARD := runs/reward-demonstration
TEXT := runs/text-quickstart
FIT := $(BIN)/fdistill fit --config configs/trainer.yaml
STAMP := $(VENV)/.installed
# else every process compiles the package and the tests anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart text-quickstart demonstrations reward-demonstration service-demonstration check test this-half other-half coverage slow gpu lint types docs clean

# torch comes first and exactly: a range would pull another build. What is imported is compiled then, and not all of it here.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

# Killed at any moment, the same command continues from the last checkpoints. `rm -r runs/quickstart` starts afresh.
quickstart: $(STAMP)
	$(FIT) --config configs/quickstart/teacher.yaml --ckpt_path last
	$(FIT) --config configs/quickstart/student.yaml --ckpt_path last
	$(BIN)/fdistill evaluate --checkpoint $(RUN)/train-student/checkpoints/best.ckpt --out $(RUN)
	$(BIN)/fdistill export $(RUN)/train-teacher/checkpoints/last.ckpt $(RUN)/teacher --report $(RUN)/report.json
	$(BIN)/fdistill export $(RUN)/train-student/checkpoints/best.ckpt $(RUN)/student --report $(RUN)/report.json

# The same from prompts, the way of any stock text-to-image pipeline: docs/text_to_image.md. One thread is the fastest here.
text-quickstart: export OMP_NUM_THREADS = 1
text-quickstart: $(STAMP)
	$(FIT) --config configs/text_quickstart/teacher.yaml --ckpt_path last
	rm -rf $(TEXT)/pipeline
	$(BIN)/fdistill export $(TEXT)/train-teacher/checkpoints/last.ckpt $(TEXT)/pipeline
	$(BIN)/fdistill import $(TEXT)/pipeline $(TEXT)/teacher --num_steps 25 --guidance 2 --overwrite
	$(BIN)/python -c 'from fdistill.data.captioned_digits import captions; print(*captions(), sep="\n")' > $(TEXT)/captions.txt
	$(BIN)/fdistill encode-prompts $(TEXT)/captions.txt --pipeline $(TEXT)/pipeline --out $(TEXT)/prompts --numbers float32
	$(FIT) --config configs/text_quickstart/student.yaml --ckpt_path last
	$(BIN)/fdistill evaluate --checkpoint $(TEXT)/train-student/checkpoints/last.ckpt --out $(TEXT)
	$(BIN)/fdistill export $(TEXT)/train-student/checkpoints/last.ckpt $(TEXT)/student --dtype float16 --report $(TEXT)/report.json

demonstrations: $(STAMP)
	$(BIN)/python tools/demonstrate.py configs/quickstart/mixture.yaml --out runs/demonstrations/mixture
	$(FIT) --config configs/quickstart/teacher_unconditional.yaml --ckpt_path last
	$(BIN)/python tools/demonstrate.py configs/quickstart/mode_dropping.yaml --out runs/demonstrations/mode_dropping

# serves the shipped digits student, asks it by OpenAI's client, and stops it: docs/service.md
service-demonstration: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt openai --editable '.[serve]'
	$(BIN)/python tools/demonstrate_service.py --out runs/service-demonstration

# A teacher before and after 25 turns of reward tuning, and one-step students with the reward: docs/reward.md.
reward-demonstration: export OMP_NUM_THREADS = 1
reward-demonstration: $(STAMP)
	$(FIT) --config configs/quickstart/reward.yaml --trainer.default_root_dir $(REWARD)/teachers/25-seed0 \
		--trainer.limit_val_batches 0 --ckpt_path last
	$(BIN)/python tools/reward_gap.py digits-teacher $(REWARD)/teachers/25-seed0/checkpoints/last.ckpt
	$(BIN)/python tools/reward_tradeoff.py --out $(REWARD) --seeds 1 --demonstration

# All tests in two processes, since a small machine has two cores: those of some rooms, and those of all others, which
# begin when mypy is done. The unit tests take other times than the whole runs beside them, and are divided elsewhere.
HALF = tests/theory tests/models tests/objectives tests/training tests/evaluation/metrics
WHOLE_HALF = $(HALF) tests/core tests/sampling
CHECKS = --jobs 2 --keep-going --output-sync types lint this-half other-half

test: $(STAMP)
	$(MAKE) $(CHECKS) HALF='$(WHOLE_HALF)'

check: $(STAMP)
	$(MAKE) $(CHECKS) MARKED='-m "not slow and not gpu and not system"'

this-half: $(STAMP)
	$(BIN)/python -m pytest $(MARKED) $(HALF)

other-half: $(STAMP)
	$(BIN)/python -m pytest $(MARKED) tests $(HALF:%=--ignore=%)

# the same tests, and which lines they run; counting these takes a third more time
coverage: $(STAMP)
	$(BIN)/python -m pytest --cov=fdistill --cov-report=term --cov-fail-under=90

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# on a machine with a CUDA device; a part of it: make gpu PARTS='tests imagenet64-fast'
gpu: $(STAMP)
	$(BIN)/python tools/check_gpu.py --out runs/gpu $(if $(PARTS),--parts $(PARTS))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/python -m mypy

# the site, into build/site; a link, an anchor or a page that is missing stops it
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) runs build dist *.egg-info
