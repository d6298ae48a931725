# The whole surface for a newcomer: `make run`, `make test`. Everything else is for developers.
PORT ?= 8080
MODEL ?= models/scribe.gguf
FUZZERS = $(basename $(notdir $(wildcard fuzz/*_fuzz.cpp)))

.PHONY: run test build setup asan fuzz bench clean

run: setup            ## build and start the server with the bundled model
	cmake --preset release
	cmake --build --preset release --target shorthand
	./build/release/shorthand serve -m $(MODEL) --port $(PORT) --endpoint-compact $(ARGS)

test: build           ## build and run all tests
	ctest --preset release -j 2

build: setup
	cmake --preset release
	cmake --build --preset release

setup:                ## install what the build needs (Debian 12; nothing happens if it is there)
	@scripts/setup.sh

asan: setup           ## all tests under AddressSanitizer and UBSan
	cmake --preset asan && cmake --build --preset asan && ctest --preset asan -j 2

fuzz:                 ## 60 s of each fuzzer (needs clang)
	@scripts/setup.sh fuzz
	cmake --preset fuzz && cmake --build --preset fuzz --target $(FUZZERS) && scripts/fuzz_smoke.sh 60

bench: setup          ## the benchmarks, into build/bench/bench (scripts/long_run.sh runs one of them)
	cmake --preset bench && cmake --build --preset bench

clean:
	rm -rf build
