"""What the commands of the command line share: options, the telling of errors, order of help."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from worker.errors import InputError, KafkaError, MillraceError, ModelLoadError

if TYPE_CHECKING:
    from worker.config import Config

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


class Commands(click.Group):
    """Commands in the order in which one comes to need them, not by alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class ManyFiles(click.Command):
    """A command whose options ``--data`` and ``--history`` take one file or several: ``--data a.jsonl b.jsonl``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        taking: str | None = None
        for arg in args:
            if arg.startswith("-"):
                taking = arg if arg in ("--data", "--history") else None
                spread.append(arg)
            elif taking and spread[-1] != taking:
                spread += [taking, arg]
            else:
                spread.append(arg)
        return super().parse_args(ctx, spread)


class LoggedError(Exception):
    """Why a role ended, said in its log already; the cause is the error itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


@contextmanager
def told(debug: bool) -> Iterator[None]:
    """What goes wrong inside is told in one line, with the exit code of its kind; with ``debug`` as a traceback."""
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error, LoggedError):
            sys.exit(error.exit_code)
        ours = ours_of(error)
        if ours is None:
            click.echo(
                f"millrace: a defect, {type(error).__name__}: {error}. Run it again with --debug and report it",
                err=True,
            )
            sys.exit(1)
        click.echo(f"millrace: {sentence(ours)}", err=True)
        sys.exit(ours.exit_code)


def sentence(error: MillraceError) -> str:
    """The error and its notes, in one line."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def name_address(error: Exception, config: Config) -> None:
    """Note on an error of Kafka at which address it came, unless it says so."""
    if isinstance(error, KafkaError) and config.kafka.bootstrap not in sentence(error):
        error.add_note(f"kafka.bootstrap is {config.kafka.bootstrap}")


def ours_of(error: Exception) -> MillraceError | None:
    """The error as people are told it; None for a defect."""
    from model.errors import ArtifactError, ModelError

    if isinstance(error, MillraceError):
        return error
    if isinstance(error, ArtifactError):
        return ModelLoadError(str(error))
    return InputError(str(error)) if isinstance(error, ModelError) else None


def common(function: Callable[..., None]) -> Callable[..., None]:
    """The options of every command; the command is called with the checked configuration first.

    What a group that has them was given counts for its commands too; what the command itself is given is stronger.
    """

    @click.option("--config", "config_file", type=FILE, envvar="MILLRACE_CONFIG", help="Configuration, one YAML file.")
    @click.option("--set", "flags", multiple=True, metavar="KEY=VALUE", help="Override a key: --set kafka.bootstrap=…")
    @click.option("--debug", is_flag=True, help="Tracebacks, and the Kafka client's own log.")
    @wraps(function)
    def command(config_file: Path | None, flags: tuple[str, ...], debug: bool, **options: Any) -> None:
        context = click.get_current_context()
        outer = context.parent.params if context.parent is not None else {}
        if "config_file" in outer:
            if context.get_parameter_source("config_file") is not ParameterSource.COMMANDLINE:
                config_file = outer["config_file"]
            flags, debug = (*outer["flags"], *flags), debug or outer["debug"]
        with told(debug):
            from worker.config import load_config

            config = load_config(config_file, env=os.environ, flags=flags)
            # A tool tells its errors itself; the client's log of the same failure would only be noise.
            logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if debug else logging.ERROR)
            logging.getLogger("worker.kafka").setLevel(logging.DEBUG if debug else logging.CRITICAL)
            try:
                function(config, **options)
            except KafkaError as error:
                name_address(error, config)
                raise

    return command


json_option = click.option("--json", "json_", is_flag=True, help="JSON on standard output instead of a table.")
artifact_option = click.option("--artifact", help="Artifact folder; by default model.artifact of the configuration.")
