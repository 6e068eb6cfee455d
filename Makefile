# SPDX-License-Identifier: Apache-2.0
# Everything a person types. Each target does its own set-up and may be run again at any time.

# Debian's own interpreter by default: wheels and C modules are then built for what servers run.
PYTHON ?= /usr/bin/python3
BIN := .venv/bin
C_FILES := $(wildcard ebpf/*.[ch] cext/*.[ch] cext/*/*.[ch] bench/*.[ch] tests/*/*.[ch] tests/native/shim/*/*.h)

.PHONY: demo test check setup clean help fuzz kernels mirror

help:
	@echo "make demo    three nodes, one virtual IP, on this machine: drain, kill, freeze (as root)"
	@echo "make test    all checks and all tests (as root)"
	@echo "make check   style and types only"
	@echo "make fuzz    the filter against its oracle, 10 million packets, and ten minutes of libFuzzer"
	@echo "make kernels the packet tests under Debian's own kernel, in QEMU (as root)"
	@echo "make mirror  all tests of the mirror: real processes, four databases, faults, kills (as root, twenty minutes)"
	@echo "make setup   packages, .venv, C and BPF; the others call it"
	@echo "make clean   remove what was built, .venv included"

demo: setup
	@$(BIN)/farmctl demo

# Every file stays in one worker, so that its tests may share a farm.
test: check
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

fuzz: setup
	@$(BIN)/python -m tests.native.mutants
	@$(BIN)/python -m tests.native.campaign
	@$(BIN)/python -m tests.native.fuzz

kernels: setup
	@$(BIN)/python -m tests.kernels.run

mirror: setup
	@PYTHON="$(PYTHON)" .ci/setup databases
	@FARMD_CHECKSUM_LONG=1 $(BIN)/pytest tests/sim/mirror tests/checksum tests/mirror

check: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(if $(C_FILES),clang-format --dry-run -Werror $(C_FILES))

setup:
	@PYTHON="$(PYTHON)" .ci/setup

clean:
	@rm -rf .venv .build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find farmd tests bench cext -name __pycache__ -type d -prune -exec rm -rf {} +
	@find farmd \( -name '*.so' -o -name '*.bpf.o' \) -delete
