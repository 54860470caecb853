# Everything from a fresh clone: the first target that needs it creates .venv.
# PYTHON=... chooses the interpreter (3.11 or later).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait as much as they compute.
WORKERS = $(shell expr $$(nproc) \* 2)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo reference test lint bench profile run clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo       see a site move under load without a failed request (40 s)'
	@echo 'make reference  the reference run: requests of 3 s, a migration every 15 s (3 min)'
	@echo 'make test       run the tests; ARGS="-k gate" for some of them'
	@echo 'make lint       look for mistakes without running anything'
	@echo 'make bench      measure, and compare with other proxies; ARGS=--quick for less'
	@echo 'make profile    draw where the time goes: out/profile.svg'
	@echo 'make run        run the daemon here, on port 8080, with its files in out/run'
	@echo 'make clean      remove all that the others made, .venv too'

demo: $(VENV)/.load
	@$(BIN)/awesomeproxy demo --picture out/demo.png $(ARGS)

reference: $(VENV)/.load
	@$(BIN)/awesomeproxy demo --reference --picture out/reference.png $(ARGS)

test: $(VENV)/.test
	@.ci/packages pebble:pebble slowhttptest:slowhttptest h2load:nghttp2-client \
	    rsync:rsync sshd:openssh-server setfacl:acl zfs:zfs-fuse mkfs.btrfs:btrfs-progs \
	    unshare:util-linux mount:mount mkfs.ext4:e2fsprogs \
	    /usr/lib/postgresql/15/bin/postgres:postgresql-15 mariadbd:mariadb-server \
	    pgbouncer:pgbouncer openssl:openssl \
	    redis-server:redis-server redis-sentinel:redis-sentinel ip:iproute2 \
	    apache2:apache2 php-fpm8.2:php8.2-fpm /usr/share/php8.2-mysql:php8.2-mysql
	@temporary=$$(mktemp -d); \
	$(BIN)/python -m pytest --basetemp=$$temporary/t \
	    --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS); \
	status=$$?; \
	awk -v begin=$$temporary/ 'index($$5, begin) == 1 { print $$5 }' /proc/self/mountinfo | tac | \
	    xargs --no-run-if-empty --max-args=1 umount --lazy; \
	rm -rf $$temporary; exit $$status

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy awesomeproxy bench twisted
	MYPYPATH=tests $(BIN)/mypy --allow-untyped-decorators tests

bench: $(VENV)/.bench
	@.ci/packages haproxy:haproxy caddy:caddy nginx:nginx-light wrk:wrk h2load:nghttp2-client \
	    rsync:rsync sshd:openssh-server zfs-fuse:zfs-fuse unshare:util-linux mount:mount \
	    redis-server:redis-server redis-cli:redis-tools ip:iproute2
	@mkdir -p out
	$(BIN)/python -m bench --json out/bench.json $(ARGS)

profile: $(VENV)/.bench
	@.ci/packages nginx:nginx-light wrk:wrk dot:graphviz
	$(BIN)/python -m bench.profile --out out/profile.svg $(ARGS)

run: $(VENV)/.load out/run/awesomeproxy.toml
	@echo 'Talk to it with: $(BIN)/awesomeproxy --control $(CURDIR)/out/run/control.sock status'
	$(BIN)/twistd -n --pidfile= awesomeproxy --config out/run/awesomeproxy.toml

out/run/awesomeproxy.toml: etc/awesomeproxy.toml
	@mkdir -p out/run/state
	@sed -e 's|^#state_dir = .*|state_dir = "$(CURDIR)/out/run/state"|' \
	     -e 's|^#control = .*|control = "$(CURDIR)/out/run/control.sock"|' \
	     -e 's|^#access_log = .*|access_log = "-"|' \
	     -e 's|^endpoint = .*|endpoint = "tcp:8080:interface=127.0.0.1"|' \
	     -e 's|^hosts = .*|hosts = ["localhost"]|' $< >$@

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# .venv/.NAME says that the extra NAME of pyproject.toml is installed.
$(VENV)/.%: pyproject.toml $(VENV)/.made
	@echo 'Installing awesomeproxy[$*] into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'AwesomeProxy needs Python 3.11 or later; name one: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/packages :python3-venv
	@$(PYTHON) -m venv $(VENV)
	@touch $@
