"""Fails where core/VERSIONS.md and the constants it names differ, and on a version constant that it lacks.

usage: check_versions.py SOURCE_DIR
"""
import pathlib
import re
import sys

CONSTANT = re.compile(r"constexpr\s+[\w:]+\s+(k\w*(?:Version|Abi)|kFormat)\s*(?:=\s*(\d+)\s*;|\{\s*\w+\s*,\s*(\d+)\s*,)")
OF_PYTHON = re.compile(r"^(\w*VERSION) = (\d+)$", re.MULTILINE)
ROW = re.compile(r"^\| (?P<what>[^|]+) \| (?P<written>[^|]+) \| (?P<read>[^|]+) \| `(?P<file>[^`]+)`: (?P<names>[^|]+) \|")
NUMBERED = re.compile(r"magic\w*\s*\{[^}]*'\d'", re.IGNORECASE)  # a version that hides in a magic
FOREIGN = {"core/tensor/dlpack.hpp"}  # DLPack's own numbers


def constants_of(source):
    found = {}
    for file in sorted((source / "core").rglob("*")):
        name = file.relative_to(source).as_posix()
        if file.suffix in (".hpp", ".cpp") and name not in FOREIGN:
            for match in CONSTANT.finditer(file.read_text()):
                found[(name, match.group(1))] = int(match.group(2) or match.group(3))
    for file in sorted((source / "tools/python").rglob("*.py")):
        for name, value in OF_PYTHON.findall(file.read_text()):
            found[(file.relative_to(source).as_posix(), name)] = int(value)
    return found


def faults(source):
    constants, named = constants_of(source), set()
    rows = [match for line in (source / "core/VERSIONS.md").read_text().splitlines() if (match := ROW.match(line))]
    for row in rows:
        what, values = row["what"], []
        for name in re.findall(r"`(\w+)`", row["names"]):
            key = (row["file"], name)
            named.add(key)
            if key not in constants:
                yield f"{what}: there is no constant {name} in {row['file']}"
            else:
                values.append(constants[key])
        read = [int(number) for number in re.findall(r"\d+", row["read"])]
        written = [int(number) for number in re.findall(r"(?:^|; )(\d+)", row["written"])]
        if read != sorted(values):
            yield f"{what}: the table reads {read}, the constants say {sorted(values)}"
        if not written or max(written) != max(values, default=-1) or not set(written) <= set(read):
            yield f"{what}: the table writes {written}, the constants say {sorted(values)}"
    for file in sorted((source / "core").rglob("*.[ch]pp")):
        if NUMBERED.search(file.read_text()):
            yield f"{file.relative_to(source)}: a magic with a number in it; a version is a constant"
    for file, name in sorted(set(constants) - named):
        yield f"{file}: {name} is not in core/VERSIONS.md"
    if not rows:
        yield "core/VERSIONS.md has no table"


def main():
    found = list(faults(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "core/VERSIONS.md says what the constants say")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
