"""A missing package is told with a command that brings it, wherever this package was installed from."""

import shlex
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from training_runs import ENVIRONMENT

from energy_transformer.utils.extras import explain_missing, extras, install_command, requirements

MISSING = """
import sys
from energy_transformer.utils.command_line import run_script

def main(words):
    sys.modules[words[0].partition(".")[0]] = None
    __import__(words[0])

run_script(main)
"""


def names(extra):
    return [each.name for each in requirements(extra)]


def test_extras_are_those_of_the_metadata():
    assert {"convert", "train", "dev"} <= set(extras())
    assert "torch" in names("") and "torch" not in names("train")
    assert "msgpack" in names("convert") and "datasets" in names("train")
    assert names("no_such_extra") == []


def test_the_command_names_packages_and_bounds_that_pip_reads():
    program, verb, *wanted = shlex.split(install_command("train"))
    assert (program, verb) == ("pip", "install")
    assert [Requirement(each).name for each in wanted] == names("train")  # all are here: all are named
    assert all(Requirement(each).specifier for each in wanted)


@pytest.mark.parametrize("module", ["skimage.data", "msgpack"])
def test_a_module_of_an_extra_is_told_with_the_rest_of_it(module):
    done = subprocess.run([sys.executable, "-c", MISSING, module], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stderr == f"error: {explain_missing(module)}\n"
    extra = "convert" if module == "msgpack" else "train"
    assert done.stderr.endswith(f" is missing: {install_command(extra)}\n")


def test_another_module_is_told_by_its_own_name():
    assert explain_missing("no_such_module.part") == "no_such_module is missing: pip install no-such-module"


def test_a_module_of_the_package_itself_is_a_fault_of_the_package():
    command = [sys.executable, "-c", MISSING, "energy_transformer.no_such_module"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and "Traceback" in done.stderr
