# Plain `make` lists what there is. Environments: .venv (serving), .venv-dev (tests, checks,
# benchmark), .venv-train (training), .venv-label-studio (Label Studio itself, for the tests that
# click in it).

HOST  ?= 127.0.0.1
PORT  ?= 9090
MODEL ?= default

# The first Python that is new enough; PYTHON=/path/to/python overrides it.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then echo $$p; break; fi; done)

DEV    = .venv-dev/bin
PYTEST = $(DEV)/python -m pytest -rs

export HOST PORT MODEL

# glibc on Linux: large arrays on huge pages, and memory is kept for the next one. On a virtual machine
# with slow memory a training step took 2.6 s with the first and 4.6 s without, and five small steps
# 23 s with both and 35 s with the first. Where glibc is older or absent nothing happens. Runs that a
# server or trainer starts have it from backend/stage_process.py.
KEEP = mmap_threshold=33554432:glibc.malloc.trim_threshold=1000000000:glibc.malloc.top_pad=67108864
GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.$(KEEP)
train test test-quick: export GLIBC_TUNABLES := $(GLIBC_TUNABLES)

.DEFAULT_GOAL := help
.PHONY: help setup setup-train setup-label-studio serve worker trainer train test test-quick check format bench \
	soak demo-train audit python

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: .venv/ready .venv-dev/ready ## install the environments for serving and for development

serve: .venv/ready ## answer Label Studio on HOST:PORT (127.0.0.1:9090) with MODEL (default)
	.venv/bin/gunicorn _wsgi:app

worker: .venv/ready ## encode images for the servers that share REDIS_URL and the cache folder
	.venv/bin/python -m backend.worker

trainer: .venv/ready .venv-train/ready ## train projects for the servers that share REDIS_URL and the data folder
	.venv/bin/python -m backend.trainer

setup-train: .venv-train/ready ## install the environment for training

train: .venv-train/ready ## train RECIPE on DATA into RUN, or go on; OPTIONS="--init W --threads N"
	@test -n "$(RECIPE)" -a -n "$(DATA)" -a -n "$(RUN)" || { echo "Say what to train:" \
		"make train RECIPE=distillation/recipes/default_1.yaml DATA=folder RUN=folder"; exit 1; }
	.venv-train/bin/python -m distillation.prompt_stage $(RECIPE) $(DATA) $(RUN) $(OPTIONS)

test: .venv-dev/ready ## run every test that this machine has the parts for
	$(PYTEST)

test-quick: .venv-dev/ready ## run the tests that need no other program and little time
	$(PYTEST) -m "not (slow or redis or browser or labelstudio or gpu)"

check: .venv-dev/ready ## lint, format, types, import directions, spelling, large files, keys
	$(DEV)/ruff check
	$(DEV)/ruff format --check
	$(DEV)/mypy
	$(DEV)/lint-imports
	$(DEV)/codespell
	git ls-files -z ':!models/default' | xargs -0 $(DEV)/check-added-large-files --enforce-all --maxkb=2000
	git ls-files -z | xargs -0 $(DEV)/detect-private-key

format: .venv-dev/ready ## format the code and mend what ruff can mend
	$(DEV)/ruff check --fix
	$(DEV)/ruff format

bench: .venv-dev/ready ## measure every stage beside its peer; the last line is JSON
	$(DEV)/python -m bench

soak: .venv-dev/ready ## many annotators at once, 10 minutes or 10,000 clicks; OPTIONS="--minutes 1"
	$(DEV)/python -m bench.soak $(OPTIONS)

demo-train: .venv-dev/ready .venv-label-studio/ready ## label 60 tasks in Label Studio itself, train on them, click again: 5 to 15 minutes
	$(DEV)/python -m bench.demo_train $(OPTIONS)

audit: .venv-dev/ready ## ask an advisory service about every pinned version; a skipped one fails
	$(DEV)/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		-r requirements.txt -r requirements-no-deps.txt \
		-r requirements-train.txt -r requirements-dev.txt

setup-label-studio: .venv-label-studio/ready ## install Label Studio for the tests that click in it

python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed. Install it, or name it:" \
		"make serve PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11." \
		"Name a newer one: make serve PYTHON=/path/to/python3"; exit 1; }

.venv/ready: requirements.txt requirements-no-deps.txt | python
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet -r requirements.txt
	.venv/bin/pip install --quiet --no-deps -r requirements-no-deps.txt
	@touch $@

.venv-train/ready: requirements-train.txt | python
	$(PYTHON) -m venv --clear .venv-train
	.venv-train/bin/pip install --quiet -r requirements-train.txt
	@touch $@

.venv-dev/ready: requirements.txt requirements-no-deps.txt requirements-train.txt \
		requirements-dev.txt | python
	$(PYTHON) -m venv --clear .venv-dev
	$(DEV)/pip install --quiet -r requirements-train.txt
	$(DEV)/pip install --quiet --no-deps -r requirements.txt \
		-r requirements-no-deps.txt -r requirements-dev.txt
	@touch $@

.venv-label-studio/ready: | python
	$(PYTHON) -m venv --clear .venv-label-studio
	.venv-label-studio/bin/pip install --quiet label-studio==1.23.2
	@touch $@
