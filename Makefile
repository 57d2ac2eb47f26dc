# SPDX-License-Identifier: Apache-2.0
# The commands of a newcomer. Everything else is `cargo xtask --help`.

NODES ?= 1

.PHONY: up down test bench

# Installs what is missing, builds, starts a node (or NODES=2) and shows what it can do.
up:
	@ci/preflight
	@ci/setup
	@ci/build --package plinth-cli --package plinth-service --package plinth-switchd --package plinth-stored --package xtask
	@cargo xtask up --nodes $(NODES)

# Ends every process, namespace and link of `make up`; what is on the disks stays.
down:
	@cargo xtask down

# Installs what tests need, and runs every test that this machine can run.
test:
	@ci/setup
	@cargo xtask ci

# Measures ours and the peers that are installed; writes perf/REPORT.md.
bench:
	@ci/setup bench
	@cargo xtask bench
