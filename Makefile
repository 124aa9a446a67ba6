# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later

# Thunderhead's own commands; `make help` lists them. Training itself is ansible-playbook: see README.md.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
NODES ?= 16
ROUNDS ?= 5
SEEDS ?= 100000
RUNS ?= 1000000
BYTES ?= 1000000000
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# uv does not read pip's variable for local wheel folders, and separates them by commas.
export UV_FIND_LINKS ?= $(shell tr ' ' ',' <<< "$(PIP_FIND_LINKS)")
# Nor for the certificates of a proxy.
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
export UV_PYTHON_DOWNLOADS := never
export MOLECULE_GLOB := tests/molecule/*/molecule.yml
UV_VERSION := $(shell sed -n 's/^ *"uv==\(.*\)",/\1/p' pyproject.toml)
CODE := plugins roles tests train
# Tools that are started again and again would be compiled again each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

# ----------------------------------------------------------------------------------------------------------- using it

.PHONY: tools
tools: $(VENV)/.controller ## Install ansible and the other tools of the controller into .venv

.PHONY: demo
demo: $(VENV)/.controller ## Train on two nodes on this machine, from nothing: no root, no Docker
	ansible-playbook setup.yml
	ansible-playbook run.yml -e script=train.py
	@echo "Go on with: . $(VENV)/bin/activate; ansible-playbook status.yml"

.PHONY: demo-failure
demo-failure: $(VENV)/.controller ## The same, but rank 1 is killed in the middle: the training goes on by itself
	ansible-playbook setup.yml
	python tests/demo/failure.py

# ------------------------------------------------------------------------------------------------------------- testing

.PHONY: test
test: lint unit unit-newest collection molecule chaos ## What CI runs: lint, unit tests, molecule and faults on real containers

.PHONY: test-all
test-all: test packets training preflight ## test, and what takes longer: each firewall, each defect of a preflight

.PHONY: lint
lint: $(VENV)/.test ## ruff, mypy --strict, yamllint, ansible-lint, changelog, ansible-test sanity
	ruff check $(CODE)
	ruff format --check $(CODE)
	MYPYPATH=collections:train mypy -p ansible_collections.thunderhead.cluster.plugins
	MYPYPATH=train mypy train
	MYPYPATH=tests/bench mypy tests/docker tests/bench
	MYPYPATH=tests/collection mypy tests/collection
	MYPYPATH=collections mypy tests/pictures
	yamllint --strict .
	ansible-lint --strict --offline
	antsibull-changelog lint
	$(MAKE) --no-print-directory sanity

.PHONY: sanity
sanity: $(VENV)/.test ## ansible-test sanity on the built collection, every test and no finding ignored; no Docker
	python tests/collection/sanity.py

.PHONY: unit
unit: $(VENV)/.test ## Unit tests of plugins/ and train/
	pytest --numprocesses 3 --dist loadfile tests/unit/plugins # most of a test is waiting
	pytest tests/unit/train tests/unit/companion # apart: Ansible replaces sys.intern, and torch cannot be imported after it

.PHONY: simulate
simulate: $(VENV)/.test ## The supervisors of a job in simulated time, with faults (SEEDS=100000)
	PYTHONPATH=collections python tests/unit/plugins/gang_simulator.py 0 $(SEEDS)

.PHONY: fuzz
fuzz: $(VENV)/.test ## Untrusted bytes that reach new code (RUNS=1000000 per target, ONLY=a target); keeps the corpus
	uv pip install --quiet --python $(VENV)/bin/python --group fuzz
	PYTHONPATH=collections python tests/fuzz/fuzz.py --runs $(RUNS) $(ONLY)

.PHONY: unit-newest
unit-newest: $(VENV)/.test ## Unit tests of what talks to Ansible, with the newest ansible-core; Python 3.12 or newer
	python tests/collection/newest.py

.PHONY: collection
collection: $(VENV)/.controller ## Build and install the collection elsewhere, and train with it on two nodes on this machine
	python tests/collection/user.py

.PHONY: molecule
molecule: $(VENV)/.test ## A training behind nftables, and on Debian 13 what has to fail, on containers with systemd and sshd
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	for scenario in default failure; do molecule test --scenario-name $$scenario; done

.PHONY: packets
packets: $(VENV)/.test ## Who gets through firewalld, ufw and iptables, by packets; for docs/network.md
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	for scenario in firewalld ufw iptables; do molecule test --scenario-name $$scenario; done

.PHONY: training
training: $(VENV)/.test ## A training on three containers behind firewalld, ufw and iptables; for docs/network.md
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	for scenario in firewalld ufw iptables; do \
		molecule converge --scenario-name $$scenario; \
		molecule side-effect --scenario-name $$scenario; \
		molecule destroy --scenario-name $$scenario; \
	done

.PHONY: chaos
chaos: $(VENV)/.test ## Faults on containers: machines that freeze, cables, Ctrl-C (ONLY=a test's name, MINUTES=60 of false alarms)
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	pytest tests/chaos --numprocesses 2 --dist loadgroup $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),-k '$(ONLY)')

.PHONY: security
security: $(VENV)/.test ## Secrets, modes, traps, host keys, locks on containers: a part of chaos; for docs/security.md
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	pytest tests/chaos/test_security.py tests/chaos/test_environments.py

.PHONY: preflight
preflight: $(VENV)/.test ## Defects that preflight.yml has to find, on containers with torch (ONLY=a defect's name)
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	pytest tests/preflight $(if $(ONLY),-k '$(ONLY)')

.PHONY: bench-launch
bench-launch: $(VENV)/.controller ## Time to start on NODES containers, against ssh, pdsh, mpirun and BEFORE, a commit (NODES=16 ROUNDS=5)
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	python tests/bench/launch.py --nodes $(NODES) --rounds $(ROUNDS) $(if $(BEFORE),--before $(BEFORE))

.PHONY: bench-follow
bench-follow: $(VENV)/.controller ## CPU time of following on NODES containers, also at commit BEFORE, and how fast logs of BYTES come home
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	python tests/bench/follow.py --nodes $(NODES) --bytes $(BYTES) $(if $(BEFORE),--before $(BEFORE))

.PHONY: bench-preflight
bench-preflight: $(VENV)/.controller ## Time of preflight.yml on NODES healthy containers, and what its short form costs a run
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	python tests/bench/preflight.py --nodes $(NODES)

.PHONY: bench-setup
bench-setup: $(VENV)/.controller ## Time of setup.yml on fresh containers and again, against ssh and uv by hand
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	python tests/bench/setup_nodes.py

.PHONY: bench-recovery
bench-recovery: $(VENV)/.controller ## Start skew, kill latency, time to run again and to go on by itself, on 2 to 32 containers
	trap 'python tests/docker/rig.py down' EXIT; \
	python tests/docker/rig.py up; \
	python tests/bench/recovery.py

# --------------------------------------------------------------------------------------------------------------- tools

$(BIN)/uv: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, but 3.11 or newer is needed; name one with: make PYTHON=python3.12 …" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/.controller: pyproject.toml $(BIN)/uv
	uv pip install --quiet --python $(BIN)/python --group controller
	@touch $@

$(VENV)/.test: pyproject.toml requirements.txt roles/python_env/files/tools.txt $(VENV)/.controller
	uv pip install --quiet --python $(BIN)/python --group test
	uv pip install --quiet --python $(BIN)/python --requirement roles/python_env/files/tools.txt
	uv pip install --quiet --python $(BIN)/python --requirement requirements.txt --group field \
		$(if $(UV_FIND_LINKS),,--torch-backend=cpu)
	@touch $@

.PHONY: changelog
changelog: $(VENV)/.test ## Put the fragments in changelogs/ into CHANGELOG.rst, under the version of galaxy.yml
	antsibull-changelog release --update-existing --reload-plugins

.PHONY: pictures
pictures: $(VENV)/.controller ## Draw the terminals that the README shows anew, from what the commands print now
	python tests/pictures/terminal.py

.PHONY: clean
clean: ## Remove what was built here: tools, local nodes, caches (not runs/)
	rm -rf $(VENV) .nodes .cache .ansible .mypy_cache .ruff_cache .pytest_cache
