"""Fails on an include against the arrows between rooms, on another room's private header, and on files that no
CMakeLists.txt names.

usage: check_arrows.py SOURCE_DIR ROOMS_FILE

ROOMS_FILE is written by CMake (tools/cmake/Rooms.cmake): the rooms in their order with what each NEEDS, and the kind
of each header.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')
LIBRARY = ("core", "mesh", "dtensor", "sharded")
# tests/NAME may use the private headers of the room NAME; these tests are about more than the room they are named after.
TESTS_OF = {"network": {"comm"}, "safetensors": {"image"}}
EVERY_ROOM = {"fuzz"}
# What is compiled as an outside program would be: installed headers alone.
OUTSIDE = ("tools/trainer/", "tools/examples/", "tests/consumer/")
# Built by hand or by a build of their own.
UNLISTED = ("tests/consumer/",)


class Rooms:
    def __init__(self, file):
        self.needs, self.kind = {}, {}
        for line in file.read_text().splitlines():
            words = line.split()
            if words[0] == "room":
                self.needs[words[1]] = set(words[2:])
            else:
                self.kind[words[1]] = words[0]

    @staticmethod
    def of(path):
        """The folder of the room that has `path`: core/comm for core/comm/gloo/group.hpp."""
        parts = path.split("/")
        return "/".join(parts[:2]) if parts[0] in ("core", "tools", "tests") else parts[0]

    @staticmethod
    def name(room):
        return room.split("/")[-1]


def include_of(line, file, source):
    """The repository path that a line includes: None if it is no include, or of something outside."""
    match = INCLUDE.match(line)
    if not match:
        return None
    quote, path = match.groups()
    if path.startswith("meshstage/"):
        return path[len("meshstage/"):]
    if quote == "<":
        return None
    if path.split("/")[0] in ("tools", "tests"):
        return path
    beside = file.parent / path
    return beside.relative_to(source).as_posix() if beside.exists() else None


def fault_of(name, included, rooms):
    """Why the file `name` may not include `included`; None if it may."""
    room, target = Rooms.of(name), Rooms.of(included)
    top, target_top = name.split("/")[0], included.split("/")[0]
    kind = rooms.kind.get(included)
    if target_top in ("tools", "tests"):
        support = room == "tools/bench" and target == "tests/support"  # built on demand, beside the tests
        if top in LIBRARY or (top == "tools" and target_top == "tests" and not support):
            return f"{room} may not include {target_top}/"
        return None
    if target not in rooms.needs:
        return f"{included} is in no room"
    if kind is None:
        return f"{included} is named by no CMakeLists.txt"
    if top in LIBRARY and room != target and Rooms.name(target) not in rooms.needs[room]:
        return f"{room} includes {target}, which {room}/CMakeLists.txt does not name under NEEDS"
    if rooms.kind.get(name) == "HEADERS" and kind != "HEADERS":
        return f"it is installed, {included} is not"
    if name.startswith(OUTSIDE) and kind != "HEADERS":
        return f"it is an outside program, {included} is not installed"
    if kind == "PRIVATE_HEADERS" and room != target:
        mirrored = TESTS_OF.get(Rooms.name(room), {Rooms.name(room)})
        if top != "tests" or (Rooms.name(target) not in mirrored and Rooms.name(room) not in EVERY_ROOM):
            return f"{included} is private to {target}"
    return None


def listed_in(file, source):
    """Whether a CMakeLists.txt names the file, with or without its suffix: one of its folder or of a folder above; for
    what tests share, one of any test's folder."""
    folders = [folder for folder in file.parents if folder == source or source in folder.parents]
    if file.relative_to(source).as_posix().startswith("tests/support/"):
        folders += [folder for folder in (source / "tests").iterdir() if folder.is_dir()]
    names = re.compile(rf"(?<!\w){re.escape(file.stem)}(?:{re.escape(file.suffix)})?(?!\w)")
    return any(names.search(lists.read_text()) for folder in folders if (lists := folder / "CMakeLists.txt").exists())


def violations(source, rooms):
    seen = 0
    for top in (*LIBRARY, "tools", "tests"):
        for file in sorted((source / top).rglob("*")):
            if file.suffix not in (".hpp", ".cpp") or not file.is_file():
                continue
            seen += 1
            name = file.relative_to(source).as_posix()
            if file.suffix == ".cpp" and not name.startswith(UNLISTED) and not listed_in(file, source):
                yield f"{name}: no CMakeLists.txt names it"
            if file.suffix == ".hpp" and top in LIBRARY:
                if name not in rooms.kind and "/gloo/compat/" not in name:
                    yield f"{name}: no CMakeLists.txt names it"
                if name.endswith("_impl.hpp") != (rooms.kind.get(name) == "PRIVATE_HEADERS"):
                    yield f"{name}: headers that are private to their room, and only they, end in _impl.hpp"
            for number, line in enumerate(file.read_text().splitlines(), 1):
                included = include_of(line, file, source)
                fault = included and fault_of(name, included, rooms)
                if fault:
                    yield f"{name}:{number}: {fault}"
    if seen == 0 or not rooms.needs:
        yield f"no sources below {source}, or no rooms"


def main():
    found = list(violations(pathlib.Path(sys.argv[1]), Rooms(pathlib.Path(sys.argv[2]))))
    print("\n".join(found) if found else "the arrows between rooms hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
