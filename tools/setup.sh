# Sourced by tools/quickstart and tools/test: what the build needs on a fresh Debian 12 or Ubuntu 24.04.
# shellcheck shell=bash

# Distribution packages only. clang and its tools are needed by continuous integration alone.
MESHSTAGE_PACKAGES="g++ cmake ninja-build ccache pkg-config catch2 nlohmann-json3-dev libcli11-dev libfmt-dev \
libtomlplusplus-dev libxxhash-dev libgloo-dev libhiredis-dev libopenmpi-dev openmpi-bin"

root_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# say TEXT...: a heading; bold on a terminal.
say() {
  if [ -t 1 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

# install_packages PACKAGE...: prints the one apt line, and runs it unless everything is there already.
install_packages() {
  local sudo="" missing=()
  [ "$(id -u)" -eq 0 ] || sudo="sudo "
  say "packages: ${sudo}apt-get install -y --no-install-recommends $*"
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ "${#missing[@]}" -eq 0 ]; then
    echo "all installed"
    return
  fi
  ${sudo}apt-get update -qq -o Acquire::Retries=3
  DEBIAN_FRONTEND=noninteractive ${sudo}apt-get install -y -qq -o Acquire::Retries=3 --no-install-recommends \
    "${missing[@]}" >/dev/null
}

# pip_install PYTHON ARGUMENT...: pip tries a connection again, and no transfer that breaks in the middle.
pip_install() {
  local python=$1 attempt
  shift
  for attempt in 1 2 3; do
    timeout -k 30 300 "$python" -m pip install -q "$@" && return
    [ "$attempt" -eq 3 ] || sleep 5
  done
  return 1
}

# build PRESET [TARGET...]: configures and builds below build/PRESET, quietly unless it fails.
build() {
  local preset=$1 log
  shift
  log=$(mktemp)
  say "build: cmake --preset $preset && cmake --build --preset $preset"
  if ! (cd "$root_dir" && cmake --preset "$preset" >"$log" 2>&1); then
    cat "$log"; rm -f "$log"; return 1
  fi
  sed -n '/meshstage [0-9.]*:/,/Configuring done/p' "$log" | sed '$d'
  rm -f "$log"
  (cd "$root_dir" && cmake --build --preset "$preset" ${1:+--target "$@"})
}
