"""Code that a README quotes stands in a file that is compiled and tested.

A fenced block behind a line `<!-- from PATH -->` must be lines of the file PATH, one behind the
other; how far the whole block is indented does not matter. usage: check_quotes.py REPOSITORY
"""
import re
import sys
import textwrap
from pathlib import Path

BLOCK = re.compile(r"^<!-- from (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def occurs(quote: str, source: str) -> bool:
    wanted = textwrap.dedent(quote).splitlines()
    lines = source.splitlines()
    return any(
        textwrap.dedent("\n".join(lines[at : at + len(wanted)])).splitlines() == wanted
        for at in range(len(lines) - len(wanted) + 1)
    )


def main() -> int:
    root = Path(sys.argv[1])
    wrong = 0
    quotes = 0
    for document in [root / "README.md", *root.glob("tools/*/README.md")]:
        for path, quote in BLOCK.findall(document.read_text()):
            quotes += 1
            if not occurs(quote, (root / path).read_text()):
                print(f"{document.relative_to(root)} quotes {path}, but these lines are not there:")
                print(quote)
                wrong += 1
    if quotes == 0:
        print("no document quotes anything: is the comment still '<!-- from PATH -->'?")
        wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
