"""What the parts of the package need beside its base install, as its own metadata say, and how to get it."""

import shlex
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PACKAGE = "energy-transformer"
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}  # by the name that is imported


def extras() -> list[str]:
    """The names of the extras; none where the package is on the path without being installed."""
    try:
        return metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def requirements(extra: str = "") -> list[Requirement]:
    """What an extra adds to the base install on this platform, or, for "", what that needs."""
    try:
        lines = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    of_base = [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return of_base
    return [each for each in parsed if each not in of_base and each.marker.evaluate({"extra": extra})]


def install_command(extra: str) -> str:
    """The `pip install` that brings what is missing of an extra; it names the packages, so that it works wherever this
    one came from."""
    wanted = requirements(extra)
    if not wanted:  # a clone that is not installed
        return f"pip install '.[{extra}]' in a clone of {_PACKAGE}"
    missing = [each for each in wanted if not _is_satisfied(each)] or wanted
    return f"pip install {' '.join(shlex.quote(f'{each.name}{each.specifier}') for each in missing)}"


def explain_missing(module: str) -> str:
    """One line about a module that cannot be imported: the command that brings it, with the rest of the smallest extra
    that has it; another may hold that whole extra."""
    top = module.partition(".")[0]
    name = canonicalize_name(_DISTRIBUTIONS.get(top, top))
    for extra in sorted(extras(), key=lambda extra: len(requirements(extra))):
        if name in [canonicalize_name(each.name) for each in requirements(extra)]:
            return f"{top} is missing: {install_command(extra)}"
    return f"{top} is missing: pip install {name}"


def _is_satisfied(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
