"""Runs the common test suite of the installed transformers on our models: `make conformance`.

The suite is in the source distribution only, which is downloaded by name and unpacked into a cache folder. Its helper
packages are not in it; what our models need of them is in `stand_ins/`.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import transformers
from tiny_models import write_tiny_models

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".conformance"


def download(name: str) -> Path:
    """The source distribution of the installed version of `name`, from the package index or the cache."""
    requirement = f"{name}=={version(name)}"
    archive = CACHE / f"{name}-{version(name)}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(CACHE)]
        command = [*pip, "--no-deps", "--no-binary", ":all:", "--no-build-isolation", requirement]
        if subprocess.run(command).returncode:
            sys.exit(f"The source of {requirement} could not be downloaded from the package index.")
    return archive


def unpack(archive: Path) -> Path:
    """A folder with the suite as the package `tests`, completed, and the installed package in the place of `src`."""
    folder = CACHE / archive.name.removesuffix(".tar.gz")
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(f"{folder.name}/tests/")]
        tar.extractall(CACHE, members, filter="data")
    shutil.copytree(HERE / "stand_ins", folder / "tests", dirs_exist_ok=True)
    (folder / "tests" / "__init__.py").touch()
    mixin = (folder / "tests" / "test_pipeline_mixin.py").read_text()
    for module, name in re.findall(r"^from \.pipelines\.(\w+) import (\w+)", mixin, re.MULTILINE):
        test = folder / "tests" / "pipelines" / f"{module}.py"
        if not test.exists():  # older suites import the tests of all pipelines at once
            test.write_text(f"class {name}:\n    pass\n")
    (folder / "src").mkdir()
    (folder / "src" / "transformers").symlink_to(Path(transformers.__file__).parent)
    return folder


def main() -> int:
    CACHE.mkdir(exist_ok=True)
    folder = unpack(download("transformers"))
    write_tiny_models(folder / "tiny_models")
    paths = [str(folder), str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_TINY_MODEL_PATH": str(folder / "tiny_models"),
    }
    pytest = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(HERE / "suite.py"), *sys.argv[1:]]
    return subprocess.run(pytest, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
