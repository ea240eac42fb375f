#!/bin/sh
# The environment variable MESHSTAGE_TEST_PYTHON names the interpreter, else the one CMake was given.
exec "${MESHSTAGE_TEST_PYTHON:-$DEFAULT_PYTHON}" "$@"
