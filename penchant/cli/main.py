"""The command line: one function a verb, help from its docstring, `--config FILE` and `--print_config` for all.

Exit codes: 0 done, 2 wrong input (one sentence on stderr), 130 interrupted (and how to resume).
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from penchant.errors import PenchantError
from penchant.processes import is_main, rank, world

Verb = Callable[..., None]
Verbs = dict[str, Verb | dict[str, Verb]]
ACTION = "action"
SHARED = ("align", "pretrain")
"""What several processes do together."""
DISK = "make room, or check its permissions and disk, then run the same command again"


def verbs() -> Verbs:
    """Imported here, so that `penchant --help` does not wait for torch twice over."""
    from penchant.cli.align import align
    from penchant.cli.best_of_n import best_of_n
    from penchant.cli.cache import cache
    from penchant.cli.codes import codes
    from penchant.cli.demo import demo
    from penchant.cli.encode import encode
    from penchant.cli.evaluate import evaluate
    from penchant.cli.explain import explain
    from penchant.cli.export import export
    from penchant.cli.filter import filter
    from penchant.cli.personal import VERBS as PERSONAL_VERBS
    from penchant.cli.report import report
    from penchant.cli.sae import VERBS as SAE_VERBS
    from penchant.cli.score import score
    from penchant.cli.serve import KEY_VERBS, serve
    from penchant.cli.train import train

    models: tuple[Verb, ...] = (encode, train, evaluate, explain, score, filter, best_of_n, align, codes)
    alone: tuple[Verb, ...] = (*models, export, report, cache, serve, demo)
    groups = {"sae": SAE_VERBS, "personal": PERSONAL_VERBS, "keys": KEY_VERBS}
    return {**{f.__name__.replace("_", "-"): f for f in alone}, **groups}


class Parser(ArgumentParser):
    """Wrong arguments end in one sentence, like every other wrong input."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        verb = self.prog.replace(" [options]", "")
        raise PenchantError(" ".join(message.split()) + f" (see {verb} --help)")


def parser() -> tuple[ArgumentParser, Verbs]:
    """The whole parser and the functions behind its verbs."""
    known = verbs()
    top = Parser(prog="penchant", description="Preference learning in the latent space of a frozen LLM.")
    add_verbs(top, known, "verb")
    return top, known


def add_verbs(parent: ArgumentParser, known: Mapping[str, Verb | dict[str, Verb]], dest: str) -> None:
    commands = parent.add_subcommands(required=True, dest=dest)
    for name, verb in known.items():
        if isinstance(verb, dict):
            one = Parser(description=f"One of: {', '.join(verb)}.")
            commands.add_subcommand(name, one, help=" ".join(first_line(each) for each in verb.values()))
            add_verbs(one, verb, ACTION)  # the parser wants the levels in this order
        else:
            one = Parser(description=(verb.__doc__ or "").split("\n\n")[0])
            one.add_argument("--config", action="config", help="YAML file with any of the arguments")
            one.add_function_arguments(verb, as_positional=True)
            for argument in positionals(verb)[-1:]:  # `evaluate MODEL --data FILE`; others would leave a gap
                one.add_argument(f"--{argument}", default=argparse.SUPPRESS, help="the last argument by its name")
            commands.add_subcommand(name, one, help=first_line(verb))


def positionals(verb: Verb) -> list[str]:
    """The arguments that stand without a name on the command line."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, each in inspect.signature(verb).parameters.items() if each.kind is kind]


def first_line(verb: Verb) -> str:
    return (verb.__doc__ or "").splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        top, known = parser()
        parsed = top.parse_args(list(argv) if argv is not None else None)
        verb, values = known[parsed.verb], parsed[parsed.verb]
        if isinstance(verb, dict):
            verb, values = verb[values[ACTION]], values[values[ACTION]]
        arguments = values.as_dict()
        arguments.pop("config", None)
        if world() > 1 and verb.__name__ not in SHARED:
            raise PenchantError("this command is for one process; start it without accelerate launch or torchrun.")
        verb(**arguments)
    except (PenchantError, argparse.ArgumentError) as error:
        where = f" (process {rank()})" if not is_main() else ""
        print(f"penchant{where}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, for example `| head`
            sys.stderr.close()
            return 0
        from penchant.writing import refusal

        if error.filename is None or (reason := refusal(error)) is None:
            raise
        print(f"penchant: {error.filename} cannot be used ({reason}): {DISK}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("penchant: interrupted; what the cache holds is kept: run the same command to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
