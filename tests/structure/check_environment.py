"""Fails on an environment variable MESHSTAGE_* that the sources read past the table in core/os/environment.cpp, and on
one of the table that nothing reads.

usage: check_environment.py SOURCE_DIR
"""
import pathlib
import re
import sys

TABLE = "core/os/environment.cpp"
# Looks up variables by a name that it is given; none is ours.
BY_NAME = {"core/files/persisted.cpp"}
NAMES = re.compile(r'"(MESHSTAGE_[A-Z_]*[A-Z])=?"')
# A literal of another name ("HOME") may be read anywhere.
CALL = re.compile(r'\b(?:secure_)?getenv\s*\(\s*(?!"(?!MESHSTAGE_))')


def faults(source):
    table = set(re.findall(r'EnvironmentVariable\{"(MESHSTAGE_\w+)"', (source / TABLE).read_text()))
    read = set()
    for top in ("core", "mesh", "dtensor", "sharded", "tools"):
        for file in sorted((source / top).rglob("*")):
            name = file.relative_to(source).as_posix()
            if file.suffix not in (".cpp", ".hpp") or name == TABLE:
                continue
            for number, line in enumerate(file.read_text().splitlines(), 1):
                if CALL.search(line) and name not in BY_NAME:
                    yield f"{name}:{number}: getenv; read it by environment_variable()"
                for variable in NAMES.findall(line):
                    read.add(variable)
                    if variable not in table:
                        yield f"{name}:{number}: {variable} is not in the table of {TABLE}"
    for variable in sorted(table - read):
        yield f"{TABLE}: nothing reads {variable}"
    if not table:
        yield f"{TABLE} has no table"


def main():
    found = list(faults(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "every MESHSTAGE_ variable is in the table, and read")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
