"""How a job starts: configuration file and overrides in, a result out, and a user's mistake as one line."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from remembrandt.allocation import keep_freed_memory
from remembrandt.configuration import ConfigT, load_config
from remembrandt.distributed import plain_error
from remembrandt.errors import RemembrandtError


def run_job(
    cls: type[ConfigT] | Callable[[argparse.Namespace], type[ConfigT]],
    main: Callable[[ConfigT, argparse.Namespace], dict[str, Any]],
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parses the command line of a job, runs it, prints its result and exits.

    `--config FILE` names a YAML file; further arguments are `key.sub=value` overrides. `--json` prints the result as
    JSON on stdout; progress and messages go to stderr either way. A RemembrandtError ends the job with one line and
    its exit code.

    Args:
        cls: of the configuration, or what chooses it by the arguments.
        add_arguments: adds what only this job takes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="YAML configuration file")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and say what would be done, but do nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="configuration overrides, e.g. vectors.factory=Flat"
    )
    if add_arguments is not None:
        add_arguments(parser)
    arguments = parser.parse_intermixed_args()
    keep_freed_memory()
    with one_line_errors():
        chosen = cls if isinstance(cls, type) else cls(arguments)
        result = main(load_config(chosen, arguments.config, arguments.overrides), arguments)
        if arguments.json:
            print(json.dumps(result))


class one_line_errors:  # noqa: N801 - used like a function, as contextlib's own
    """Context manager: a RemembrandtError inside becomes `error: …` on stderr and the process's exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SystemExit):
            return
        if isinstance(error, KeyboardInterrupt):
            print("interrupted: run the same command again to continue", file=sys.stderr)
            sys.exit(130)
        plain = plain_error(error)
        if isinstance(plain, RemembrandtError):
            print(f"error: {' '.join(str(plain).split())}", file=sys.stderr)
            sys.exit(plain.exit_code)
