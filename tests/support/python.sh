#!/bin/sh
# Runs a test's Python script: by the interpreter that the environment variable MESHSTAGE_TEST_PYTHON names, else by
# the one CMake was given (DEFAULT_PYTHON). Exit status 77 (skipped) where the latter does not exist; one that the
# variable names has to.
if [ -z "${MESHSTAGE_TEST_PYTHON:-}" ] && ! command -v "$DEFAULT_PYTHON" >/dev/null; then
  echo "skipped: there is no $DEFAULT_PYTHON here"
  exit 77
fi
exec "${MESHSTAGE_TEST_PYTHON:-$DEFAULT_PYTHON}" "$@"
