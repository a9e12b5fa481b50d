"""A Ray to work on: one of this machine's own, started and ended here, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import ray
import torch
from ray._private import ray_constants
from ray.data import ActorPoolStrategy

from penchant.errors import InputError, PenchantError
from penchant.workers import shares

FEEDING = 2
"""Fewest tasks at once beside the actors: one that reads, and may have to wait until its rows are taken, and one that
takes them. On a local Ray they share the actors' cores, as they have little to do."""
STORE_BYTES = 512 << 20
"""Shared memory of a local Ray: texts and ids on their way, never latents."""
ANSWER_SECONDS = 60
"""How long a cluster may take to say that it is there; half of it goes into importing Ray on a busy machine."""
ASK = "import ray, sys; ray.init(address=sys.argv[1])"


@dataclass(frozen=True)
class Pool:
    """The actors that run the LLM."""

    actors: int
    cores: int
    """Of each."""
    gpus: float
    """Of each; 0 runs on the cores."""
    readers: int
    """Reading tasks at once."""

    @property
    def threads(self) -> tuple[int, int]:
        """How many batches an actor works on at once, and the torch threads of each; see `workers.shares`."""
        return (1, self.cores) if self.gpus else shares(cores=self.cores)

    def strategy(self, at_once: int = 1) -> ActorPoolStrategy:
        """The pool as Ray Data wants it, each actor on `at_once` calls at a time."""
        return ActorPoolStrategy(
            size=self.actors, max_concurrent_calls_per_actor=at_once, enable_true_multi_threading=at_once > 1
        )

    @property
    def remote(self) -> dict[str, Any]:
        """Resources of an actor. Ray Data starts a lost one again, and its work with it, as often as need be.

        No limit to that: work for a machine that is lost fails many times a second until Ray knows that it is.
        """
        return {"num_cpus": self.cores, "num_gpus": self.gpus}


@contextmanager
def connected(address: str | None, actors: int | None, gpus_per_actor: float | None) -> Iterator[Pool]:
    """Ray within it, and the actors there is room for; a Ray that the caller runs already is used and left running.

    Args:
        address: "auto" or host:port of a cluster; without one a Ray on this machine's loopback alone.
        actors: how many; by default one a GPU or, without GPUs, one a machine.
        gpus_per_actor: GPUs of each, also a part of one; by default 1 where there are any, else 0.

    Raises InputError if Ray is not installed, the address does not answer, or there is no room for the actors.
    """
    if actors is not None and actors < 1:
        raise InputError(f"actors is {actors}; use at least 1.")
    if gpus_per_actor is not None and gpus_per_actor < 0:
        raise InputError(f"gpus_per_actor is {gpus_per_actor}; use 0 for the CPU, 1, or a part of one.")
    ours = not ray.is_initialized()
    if not ours and address is not None:
        raise InputError("Ray runs in this process already; leave the address out, or call ray.shutdown() first.")
    if ours and address is None:
        _start(actors or 1)
    elif ours and address is not None:
        _join(address)
    try:
        yield _room(actors, gpus_per_actor, local=ours and address is None)
    finally:
        if ours:
            ray.shutdown()


def _start(actors: int) -> None:
    cores = max(1, torch.get_num_threads() // actors) * actors
    # On Linux Ray would take 127.0.0.1 for the machine's address in the network and listen there, for others to join.
    with patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        _init(
            address="local",
            num_cpus=cores + FEEDING,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )


def _join(address: str) -> None:
    """Ask the cluster first: `ray.init` itself waits for minutes where nothing answers."""
    cure = "start one with `ray start --head`, or leave the address out for a Ray of this machine's own"
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit() or "/" in address:
            raise InputError(f"address {address!r} is neither auto nor host:port, for example 10.0.0.1:6379.")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"nothing answers at {address} ({error}); {cure}.") from error
    try:
        subprocess.run([sys.executable, "-c", ASK, address], capture_output=True, timeout=ANSWER_SECONDS, check=True)
        _init(address=address)
    except (subprocess.SubprocessError, ConnectionError, RuntimeError, ValueError) as error:
        if b"AuthenticationError" in (said := getattr(error, "stderr", None) or b"") or b"InvalidAuthToken" in said:
            raise InputError(
                f"the Ray cluster at address {address} asks for a token: set RAY_AUTH_MODE=token, with the cluster's "
                "token in ~/.ray/auth_token or RAY_AUTH_TOKEN."
            ) from error
        raise InputError(f"there is no Ray cluster at address {address}; {cure}.") from error


def _init(**options: Any) -> None:
    """`ray.init` without a word: the notes of its C++ part go around Python, to the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _room(actors: int | None, gpus: float | None, *, local: bool) -> Pool:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus, all_gpus = (sum(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU"))
    gpus = min(1.0, all_gpus) if gpus is None else gpus
    actors = actors or (max(1, int(all_gpus // gpus)) if gpus else len(machines))
    if gpus * actors > all_gpus:
        raise InputError(f"{actors} actors of {gpus:g} GPUs need more than the {all_gpus:g} there are; ask for fewer.")
    if local and not gpus:
        return Pool(actors, max(1, torch.get_num_threads() // actors), gpus, 1)
    # Some are left to read and tokenise with, or nothing would ever reach the actors.
    most = min(machine.get("CPU", 0.0) for machine in machines) if actors >= len(machines) else cpus
    cores = 1 if gpus else max(1, min(int(most), int((cpus - FEEDING) // actors)))
    free = int(cpus) - actors * cores
    if free < FEEDING:
        raise InputError(
            f"{actors} actors need a core each, and {FEEDING} more to feed them; the cluster has {cpus:g}."
        )
    return Pool(actors, cores, gpus, free // 2)


def get(ref: Any) -> Any:
    """What a task gives; the error it ended in is raised as it would be here."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PenchantError):
            raise error.cause from None
        raise
