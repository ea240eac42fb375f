"""Fails on an include against the arrows between rooms, and on files that break the house rules.

usage: check_arrows.py SOURCE_DIR
"""
import pathlib
import re
import sys

CORE = ["error", "async", "os", "memory", "device", "tensor", "tree", "image"]
# What each room may include besides itself.
ALLOWED = {}
for position, room in enumerate(CORE):
    ALLOWED[room] = set(CORE[:position])
ALLOWED["interop"] = {"error", "tensor", "tree"}
upto_image = set(CORE)
ALLOWED["vault"] = upto_image
ALLOWED["files"] = upto_image
ALLOWED["stage"] = upto_image | {"vault", "files"}
ALLOWED["comm"] = set(CORE)
ALLOWED["protocol"] = {"error", "image"}
ALLOWED["transfer"] = upto_image | {"comm"}
ALLOWED["replicate"] = upto_image | {"vault", "files", "stage", "comm", "protocol", "transfer"}
ALLOWED["checkpoint"] = ALLOWED["replicate"] | {"replicate"}
core_rooms = {"core/" + room for room in ALLOWED}
TOP = {"mesh": core_rooms, "dtensor": core_rooms | {"mesh"}, "sharded": core_rooms | {"mesh"},
       "tools": core_rooms | {"mesh", "dtensor", "sharded"}}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]meshstage/([^">]+)[">]')


def room_of(path):
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "core" else parts[0]


def allowed_for(room):
    if room.startswith("core/"):
        return {"core/" + r for r in ALLOWED[room[5:]]}
    return TOP[room]


def violations(source):
    seen = 0
    for top in ("core", "mesh", "dtensor", "sharded", "tools"):
        for file in sorted((source / top).rglob("*")):
            if file.suffix not in (".hpp", ".cpp") or not file.is_file():
                continue
            seen += 1
            name = file.relative_to(source).as_posix()
            room = room_of(name)
            for number, line in enumerate(file.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = room_of(match.group(1))
                if target != room and target not in allowed_for(room):
                    yield f"{name}:{number}: {room} may not include {target}"
    if seen == 0:
        yield f"no sources below {source}"


def main():
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "the arrows between rooms hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
