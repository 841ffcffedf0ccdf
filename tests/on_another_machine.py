"""Starts a script; on the second process with folders of its own, as on another machine.

    on_another_machine.py TARGET=SOURCE[,TARGET=SOURCE...] SCRIPT [--option value]

There each TARGET is what lies in SOURCE. It needs the right to mount, which the tests ask for.
"""

import os
import shlex
import sys


def main(mounts, *command):
    command = [sys.executable, *command]
    if os.environ.get("LOCAL_RANK") == "1":
        pairs = [pair.split("=") for pair in mounts.split(",")]
        steps = [shlex.join(["mount", "--bind", source, target]) for target, source in pairs]
        command = ["unshare", "-m", "sh", "-c", " && ".join([*steps, f"exec {shlex.join(command)}"])]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
