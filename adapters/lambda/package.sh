#!/bin/bash
# Makes lambda-event-publisher.zip for the runtime provided.al2023, of the architecture of this machine.
#
#   adapters/lambda/package.sh [FOLDER]         builds the release program, checks it, and writes the zip into the folder
#                                               (default: target/lambda)
#   adapters/lambda/package.sh --check PROGRAM  only checks that a program runs on provided.al2023
#
# Needs Rust, a C compiler, make and Perl (for OpenSSL, which is compiled too), binutils and Python 3 (for the zip).
set -euo pipefail

# Amazon Linux 2023 has this version of glibc. Its image for Lambda has these libraries, and few others.
readonly GLIBC=2.34
readonly LIBRARIES='linux-vdso.so.1 libc.so.6 libm.so.6 libgcc_s.so.1 libpthread.so.0 libdl.so.2 librt.so.1 ld-linux-x86-64.so.2 ld-linux-aarch64.so.1'

fail() {
  echo "package: $*" >&2
  exit 1
}

# Fails if the program needs a newer glibc, or a library that is not there. A second argument names more libraries.
check() { # program libraries
  local versions newest library needed
  versions=$(objdump -T "$1" | grep -o 'GLIBC_[0-9][0-9.]*' | sed 's/^GLIBC_//' | sort -Vu)
  [ -n "$versions" ] || fail "$1 is no program that is linked to glibc"
  newest=$(tail -n 1 <<<"$versions")
  if [ "$(printf '%s\n' "$newest" "$GLIBC" | sort -V | tail -n 1)" != "$GLIBC" ]; then
    objdump -T "$1" | grep -F "GLIBC_$newest" >&2
    fail "$1 needs glibc $newest, and provided.al2023 has $GLIBC: build it on an older system"
  fi
  needed=$(objdump -p "$1" | sed -n 's/^ *NEEDED *//p')
  for library in $needed; do
    [[ " $LIBRARIES ${2:-} " == *" $library "* ]] || fail "$1 needs $library, which provided.al2023 may lack: build with the feature 'package'"
  done
  echo "package: $1 needs glibc $newest, of at most $GLIBC, and $(echo "$needed" | tr '\n' ' ')"
}

main() {
  local root folder target
  if [ "${1:-}" = --check ]; then
    check "${2:?name the program}" "${3:-}"
    return
  fi
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  target=$(cargo metadata --manifest-path "$root/Cargo.toml" --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
  folder=${1:-$target/lambda}
  cargo build --manifest-path "$root/Cargo.toml" --release --locked --package foldstream-lambda --features package --bin bootstrap
  check "$target/release/bootstrap"
  mkdir -p "$folder"
  strip --strip-debug -o "$folder/bootstrap" "$target/release/bootstrap"
  # With a fixed time, so that the same program makes the same zip.
  python3 - "$folder/bootstrap" "$folder/lambda-event-publisher.zip" <<'PYTHON'
import sys, zipfile
program, path = sys.argv[1:]
with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    entry = zipfile.ZipInfo("bootstrap", (1980, 1, 1, 0, 0, 0))
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o755 << 16
    archive.writestr(entry, open(program, "rb").read())
PYTHON
  rm "$folder/bootstrap"
  echo "package: $folder/lambda-event-publisher.zip, $(stat -c %s "$folder/lambda-event-publisher.zip") bytes, $(uname -m)"
}
main "$@"; exit
