"""Create .venv with everything in it: `python3 tools/bootstrap.py`, or `make setup`. Standard library only.

This file has to parse on old Pythons (2.7), to be able to say that they are too old.
"""


import os
import shutil
import subprocess
import sys
import time

try:
    from pathlib import Path
except ImportError:
    sys.exit("This is Python 2; the course needs Python 3.10 or newer: make PYTHON=python3.12 setup")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
READY = VENV / "ready"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 10)


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(1)


def check_python():
    if sys.version_info < OLDEST:
        fail(
            "This is Python {}.{} ({}), and the course needs Python {}.{} or newer.\n"
            "Install one from python.org or your system, then: make PYTHON=python3.12 setup".format(
                sys.version_info[0], sys.version_info[1], sys.executable, *OLDEST
            )
        )


def usable():
    """Whether .venv has a Python that still runs, of the version that is asked for."""
    code = "import sys, pip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.stdout.decode().split() == [str(number) for number in sys.version_info[:2]]


def create():
    if VENV.exists():
        shutil.rmtree(str(VENV))
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        shutil.rmtree(str(VENV), ignore_errors=True)
        print(done.stdout.decode(errors="replace").strip(), file=sys.stderr)
        fail("Could not create .venv. On Debian and Ubuntu the package python3-venv is needed for that.")


def install(*options):
    """Whether pip could install the course and its tools; what it printed."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    command += list(options) + ["-e", ".[dev]"]
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode == 0, done.stdout.decode(errors="replace").strip()


def cause(output):
    """The lines in which pip says what is wrong: what conflicts with what, or else its first error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip said nothing"]
    if "The conflict is caused by:" in lines:
        start = lines.index("The conflict is caused by:") + 1
        return [line for line in lines[start : start + 4] if not line.startswith("To fix")]
    return [line for line in lines if line.startswith("ERROR")][:1] or lines[-1:]


def main():
    check_python()
    begun = time.time()
    again = usable()
    why = "again: the list of packages changed" if again else "5 to 10 minutes, once"
    print("Setting up (.venv), {}".format(why), flush=True)
    if READY.exists():
        READY.unlink()
    if not again:
        create()
    done, output = install("-c", "constraints.txt")
    if not done:
        print("The exact versions of constraints.txt cannot be installed here:")
        print("\n".join("  " + line[:200] for line in cause(output)))
        print("Installing the newest ones that fit instead.", flush=True)
        done, output = install()
    if not done:
        print(output, file=sys.stderr)
        fail("Setting up failed; pip's own words are above. Is there a connection, and 8 GB of free disk?")
    READY.write_text("{}.{}\n".format(*sys.version_info[:2]))
    print("Set up in {:.0f} s".format(time.time() - begun), flush=True)


if __name__ == "__main__":
    main()
