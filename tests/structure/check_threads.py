"""Fails if a file of the engine (core/replicate) has more than one thread, or not the one that the README's table says.

usage: check_threads.py SOURCE_DIR

A header's comments outside its classes say `Threads: DOMAIN`: the loop's, the trainer's, ms-NAME (a worker's) or any.
(A function inside a class may add that more threads may call it.) A file of the loop must use neither the vault nor a
Store, whose calls may block; a file of a worker must not use what Engine has for the loop alone.
"""
import pathlib
import re
import sys

ROOM = "core/replicate"
DOMAIN = re.compile(r"\bThreads: (the loop's|the trainer's|ms-[a-z]+|any|[^.;:,]+)")
KNOWN = re.compile(r"the loop's|the trainer's|ms-[a-z]+|any")
# Without a thread of their own, and why.
EXEMPT = {
    "engine": "each member says which threads may use it",
    "stage_job": "a step goes from thread to thread; each member says which thread has it",
    "borrowed_tensors": "values of the user's",
    "observer": "values of the user's",
    "options": "values of the user's",
    "results": "what stage() and recover() return: it is the user's",
}
# What a domain must not use.
FORBIDDEN = {
    "the loop's": re.compile(r"\bengine_?\.(vault|fs)\b|\bStore&"),
    "ms-": re.compile(r"\bengine_?\.(state|present|feed|lose|lose_store|lose_vault|lose_in_transfer)\b"),
}


def domains_of(text):
    """The domains that the comments outside classes name."""
    comments = re.sub(r"\n(?!///)[^\n]*", "\n\n", "\n" + text)  # other lines end a comment
    return set(DOMAIN.findall(re.sub(r"\n/// ?", " ", comments)))


def table_of(readme):
    """The third column of the table of parts, by part."""
    column = {}
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            for part in re.findall(r"`(\w+)`", cells[0]):
                column[part] = cells[2].replace("`", "")
    return column


def violations(source):
    column = table_of((source / ROOM / "README.md").read_text())
    headers = sorted((source / ROOM).glob("*.hpp"))
    for header in headers:
        name, part = header.relative_to(source).as_posix(), header.stem
        if part in EXEMPT:
            continue
        domains = domains_of(header.read_text())
        if len(domains) != 1 or not KNOWN.fullmatch(*domains):
            yield f"{name}: it must say one of `Threads: the loop's`, the trainer's, ms-NAME, any; it says {sorted(domains)}"
            continue
        (domain,) = domains
        if part not in column:
            yield f"{name}: the table of {ROOM}/README.md does not name {part}"
        elif not re.match(re.escape(domain) + r"\b", column[part]):
            yield f"{name}: its thread is {domain}, but \"{column[part]}\" in the table of {ROOM}/README.md"
        forbidden = FORBIDDEN.get("ms-" if domain.startswith("ms-") else domain)
        for file in (header, header.with_suffix(".cpp")):
            if forbidden is None or not file.exists():
                continue
            for number, line in enumerate(file.read_text().splitlines(), 1):
                found = forbidden.search(line.split("//")[0])
                if found:
                    yield f"{file.relative_to(source).as_posix()}:{number}: {found.group(0)} is not for {domain}"
    stems = {header.stem for header in headers}
    for part in sorted((set(column) | set(EXEMPT)) - stems):
        yield f"{ROOM}/{part}.hpp is named, but is not there"


def main():
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "each file of the engine has one thread")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
