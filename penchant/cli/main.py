"""The command line: one function a verb, help from its docstring, `--config FILE` and `--print_config` for all.

Exit codes: 0 done, 2 wrong input (one sentence on stderr), 130 interrupted (and how to resume).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from penchant.errors import PenchantError

Verb = Callable[..., None]


def verbs() -> dict[str, Verb]:
    """Imported here, so that `penchant --help` does not wait for torch twice over."""
    from penchant.cli.cache import cache
    from penchant.cli.demo import demo
    from penchant.cli.encode import encode
    from penchant.cli.evaluate import evaluate
    from penchant.cli.export import export
    from penchant.cli.report import report
    from penchant.cli.score import score
    from penchant.cli.train import train

    return {f.__name__: f for f in (encode, train, evaluate, score, export, report, cache, demo)}


class Parser(ArgumentParser):
    """Wrong arguments end in one sentence, like every other wrong input."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        verb = self.prog.replace(" [options]", "")
        raise PenchantError(" ".join(message.split()) + f" (see {verb} --help)")


def parser() -> tuple[ArgumentParser, dict[str, Verb]]:
    """The whole parser and the functions behind its verbs."""
    known = verbs()
    top = Parser(prog="penchant", description="Preference learning in the latent space of a frozen LLM.")
    commands = top.add_subcommands(required=True, dest="verb")
    for name, function in known.items():
        one = Parser(description=(function.__doc__ or "").split("\n\n")[0])
        one.add_argument("--config", action="config", help="YAML file with any of the arguments")
        one.add_function_arguments(function, as_positional=True)
        commands.add_subcommand(name, one, help=(function.__doc__ or "").splitlines()[0])
    return top, known


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        top, known = parser()
        parsed = top.parse_args(list(arguments) if arguments is not None else None)
        values = parsed[parsed.verb].as_dict()
        values.pop("config", None)
        known[parsed.verb](**values)
    except (PenchantError, argparse.ArgumentError) as error:
        print(f"penchant: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("penchant: interrupted; what was encoded is kept: run the same command to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
