# What a developer runs, in the environment of `pip install -c constraints.txt -e '.[dev]'`.
CPP := $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh')
SANITIZED := build/sanitized

.PHONY: build test lint format stubs sanitize bench gpu clean

build:  ## the extension, in place: only what changed
	python setup.py -q build_ext --inplace

test: build
	python -m pytest --slow

lint: build
	ruff check .
	ruff format --check .
	mypy
	@clang-format --dry-run -Werror $(CPP)
	python tools/stubs.py --check
	python -m benchmarks.report --check

format:
	ruff check --fix-only --quiet .
	ruff format .
	clang-format -i $(CPP)

stubs: build  ## glm_ext/_C.pyi from the built module
	python tools/stubs.py

# The extension and its tests in a folder of their own, so that the usual build stays. Leaks are those of the
# interpreter; libstdc++ comes first because the sanitizer must find its exceptions before the module is loaded.
sanitize:
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r glm_ext python_tests pyproject.toml $(SANITIZED)
	GLM_SANITIZE=address,undefined python setup.py -q build_ext --build-lib $(SANITIZED)
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$(for lib in libasan.so libubsan.so libstdc++.so; do $${CXX:-g++} -print-file-name=$$lib; done | tr '\n' ' ')" \
	  python -m pytest -q -n 2 -m "not any_isa" python_tests/ops

bench: build
	python -m pytest benchmarks --benchmark-only

gpu:  ## on a machine with a GPU: build for it, test, sanitize, benchmark; within 8 minutes, offline
	python tools/gpu_check.py

clean:
	rm -rf build dist glm_ext/_C*.so
