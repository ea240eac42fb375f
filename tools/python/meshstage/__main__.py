"""``python -m meshstage ...``: the meshstage command, which is a program beside this file."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes the command: its exit status, signals and output are this process'."""
    package = Path(__file__).parent
    program = package / "bin" / "meshstage"
    if not program.exists():  # the build tree
        program = package.parent.parent / "bin" / "meshstage"
    if not program.exists():
        sys.exit(f"the meshstage command is not in this package: {package / 'bin' / 'meshstage'}")
    # Its modules (Gloo) lie in the package, not beside the program.
    folders = [*filter(None, [os.environ.get("MESHSTAGE_MODULE_PATH")]), str(package)]
    os.environ["MESHSTAGE_MODULE_PATH"] = ":".join(folders)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, ["meshstage", *sys.argv[1:]])


if __name__ == "__main__":
    main()
