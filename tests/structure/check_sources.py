"""Fails on a bare lock of the standard library, which clang's thread-safety analysis does not follow, and on a file of
more than 500 lines.

usage: check_sources.py SOURCE_DIR
"""
import pathlib
import re
import sys

# Tests may use what they like: most of their locks guard a local variable.
OWN = ("core", "mesh", "dtensor", "sharded", "tools")
BARE = re.compile(r"std::(\w*mutex|condition_variable\w*|lock_guard|unique_lock|scoped_lock|shared_lock)\b"
                  r"|#\s*include\s*<(mutex|shared_mutex|condition_variable)>")
LOCKS = "core/async/mutex.hpp"  # what all others use
# What has bare locks all the same, and why.
BARE_LOCKS = {
    "core/comm/gloo/guarded_pair_impl.hpp": "locks the mutex of Gloo's own pair",
}
MOST_LINES = 500
# Longer, and why.
LONGER = {}


def files(source, tops, suffixes):
    for top in tops:
        for file in sorted((source / top).rglob("*")):
            if file.suffix in suffixes and file.is_file():
                yield file.relative_to(source).as_posix(), file.read_text().splitlines()


def violations(source):
    seen = 0
    unused = dict(BARE_LOCKS)
    for name, lines in files(source, OWN, (".hpp", ".cpp")):
        if name == LOCKS:
            continue
        for number, line in enumerate(lines, 1):
            found = BARE.search(line.split("//")[0])
            if found and name in BARE_LOCKS:
                unused.pop(name, None)
            elif found:
                yield f"{name}:{number}: {found.group(0)}: use Mutex, MutexLock and CondVar of {LOCKS}, and annotate"
    for name in unused:
        yield f"{name} is named in {pathlib.Path(__file__).name}, but has no bare lock"
    unused = dict(LONGER)
    for name, lines in files(source, (*OWN, "tests"), (".hpp", ".cpp", ".cu", ".py")):
        seen += 1
        if len(lines) > MOST_LINES and unused.pop(name, None) is None:
            yield f"{name}: {len(lines)} lines; split it where a concept ends, at most {MOST_LINES} are wanted"
    for name in unused:
        yield f"{name} is named in {pathlib.Path(__file__).name}, but has at most {MOST_LINES} lines"
    if seen == 0:
        yield f"no sources below {source}"


def main():
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "no bare locks, no file of more than 500 lines")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
