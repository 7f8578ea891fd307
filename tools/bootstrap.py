"""Make a virtual environment with the package and its development tools: `python tools/bootstrap.py
DIR`.

The only tool that runs outside of that environment. It needs nothing but the standard library, and
it is written so that a Python of many years ago still reaches the line that says it is too old.
"""

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = "python{}.{}".format(*sys.version_info[:2])


def check_version():
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(os.path.join(ROOT, "settings.ini"), encoding="utf-8")
    needed = settings["DEFAULT"]["min_python"]
    if sys.version_info < tuple(int(part) for part in needed.split(".")):
        stop(f"{PYTHON} is too old, {needed} or newer is needed: make ... PYTHON=python3.12")


def check_ensurepip():
    """Debian keeps `ensurepip`, which puts pip into a new environment, in a package of its own."""
    if importlib.util.find_spec("ensurepip"):
        return
    package = f"{PYTHON}-venv"
    if not shutil.which("apt-get"):
        stop(f"{sys.executable} lacks the module `ensurepip`; install what holds it")
    if os.geteuid() != 0:
        stop(f"{PYTHON} lacks the module `ensurepip`. Run: sudo apt-get install {package}")
    say(f"{PYTHON} lacks the module `ensurepip`; installing {package} with apt-get")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("apt-get", "-qq", "update", stdout=subprocess.DEVNULL)
    run("apt-get", "-qq", "install", "--yes", package, stdout=subprocess.DEVNULL)


def make_environment(directory):
    """A new environment, unless there is one with a pip that works."""
    pip = [os.path.join(directory, "bin", "python"), "-m", "pip"]
    if not (os.path.exists(pip[0]) and succeeds(*pip, "--version")):
        run(sys.executable, "-m", "venv", "--clear", directory)
    return pip


def succeeds(*command):
    nowhere = subprocess.DEVNULL
    return subprocess.call(command, stdin=nowhere, stdout=nowhere, stderr=nowhere) == 0


def run(*command, stdout=None):
    if subprocess.call(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout):
        stop("this failed: " + " ".join(command))


def say(message):
    print("setup:", message, flush=True)


def stop(message):
    sys.exit("setup: " + message)


def main(directory):
    check_version()
    check_ensurepip()
    say(f"installing into {directory} (a few minutes the first time)")
    pip = [*make_environment(directory), "--disable-pip-version-check", "--no-input"]
    run(*pip, "install", "--quiet", "--editable", ".[dev]")


if __name__ == "__main__":
    main(sys.argv[1])
