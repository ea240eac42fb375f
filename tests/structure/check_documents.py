"""Fails on a line of a document that is longer than 100 columns. Tables and code are as wide as they are.

usage: check_documents.py SOURCE_DIR
"""
import pathlib
import sys

COLUMNS = 100
BUILT = ("build", ".git")


def long_lines(text):
    """(number, columns) of each line of prose that is too long."""
    fenced = False
    in_list = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.lstrip()
        if stripped.startswith("```"):
            fenced = not fenced
            continue
        if stripped.startswith(("- ", "* ")) or stripped[:2].rstrip(".").isdigit():
            in_list = True  # what is indented below it goes on in prose
        elif line and not line.startswith(" "):
            in_list = False
        code = fenced or stripped.startswith("|") or (line.startswith("    ") and not in_list)
        # One word that cannot be broken: an address.
        if len(line) > COLUMNS and not code and " " in stripped:
            yield number, len(line)


def main():
    source = pathlib.Path(sys.argv[1])
    documents = [file for file in sorted(source.rglob("*.md")) if not set(file.relative_to(source).parts) & set(BUILT)]
    found = [
        f"{file.relative_to(source).as_posix()}:{number}: {columns} columns; documents wrap at {COLUMNS}"
        for file in documents
        for number, columns in long_lines(file.read_text())
    ]
    if not documents:
        found = [f"no documents below {source}"]
    print("\n".join(found) if found else f"{len(documents)} documents, no line of prose beyond {COLUMNS} columns")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
