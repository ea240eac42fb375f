"""Fails on a line of a document that is longer than 100 columns (tables and code are as wide as they
are), and on a link to a file, a folder or a heading that is not there.

usage: check_documents.py ROOT, the source tree or the folder of the installed documents
"""
import os
import pathlib
import re
import sys

COLUMNS = 100
BUILT = ("build", ".git")
CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"[a-z]+:")


def documents_below(root):
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in BUILT)
        for name in sorted(files):
            if name.endswith(".md"):
                yield pathlib.Path(folder, name)


def prose(text):
    """(number, line, wraps) of each line that is not in a fenced block; code and tables do not wrap."""
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
        indented = line.startswith("    ") and not in_list
        if not fenced and not indented:
            yield number, line, not stripped.startswith("|")


def headings(text):
    """The fragments by which links name the headings of a document."""
    for _, line, _ in prose(text):
        if line.startswith("#"):
            words = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            yield words.replace(" ", "-")


def dead_link(root, document, link):
    """Why a link leads nowhere; None if it leads somewhere, or out of the documents by an address."""
    if ADDRESS.match(link):
        return None
    path, _, fragment = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.is_relative_to(root):
        return "leads out of the documents"
    if not target.exists():
        return "there is no such file"
    if fragment and fragment not in headings(target.read_text()):
        return "there is no such heading"
    return None


def faults(root, document):
    """(line number, what is wrong there)"""
    for number, line, wraps in prose(document.read_text()):
        # One word that cannot be broken: an address.
        if wraps and len(line) > COLUMNS and " " in line.lstrip():
            yield number, f"{len(line)} columns; documents wrap at {COLUMNS}"
        for link in LINK.findall(CODE.sub("", line)):
            if why := dead_link(root, document, link):
                yield number, f"a link to {link}: {why}"


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    documents = list(documents_below(root))
    found = [
        f"{document.relative_to(root).as_posix()}:{number}: {what}"
        for document in documents
        for number, what in faults(root, document)
    ]
    if not documents:
        found = [f"no documents below {root}"]
    print("\n".join(found) if found else f"{len(documents)} documents: lines and links are in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
