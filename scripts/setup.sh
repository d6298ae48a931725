#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
set -euo pipefail
usage="usage: setup.sh [fuzz]
Installs the Debian 12 packages that the build needs (fuzz: and clang for the fuzzers); does nothing when they are
there."
source "$(dirname "$0")/options.sh"

packages=(g++ cmake ninja-build pkg-config python3 git libboost1.81-dev nlohmann-json3-dev libfmt-dev libpcre2-dev
          libutf8proc-dev libeigen3-dev libxxhash-dev libgtest-dev libbenchmark-dev
          libsimde-dev  # tests of the AVX-512 kernels
          g++-aarch64-linux-gnu qemu-user googletest)  # tests of the NEON kernels
if [[ $# -eq 1 && $1 == fuzz ]]; then
  packages+=(clang libclang-rt-14-dev)
else
  read_options "" "$@"
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ "$status" == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if ! command -v apt-get >/dev/null; then
  fail "this script installs Debian packages, and apt-get is not here; install by hand: ${missing[*]}"
fi
as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || fail "not root and no sudo; install as root: apt-get install ${missing[*]}"
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
