"""The commands that are roles: each runs until it is asked to stop. (``millrace alerts`` has commands of its own.)"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import signal
import threading
from typing import TYPE_CHECKING, Literal

import click

from worker.cli.base import LoggedError, common, name_address, ours_of, sentence
from worker.errors import DeviceError

if TYPE_CHECKING:
    from worker.config import Config

EXIT_GRACE_S = 20
Role = Literal["worker", "profiles", "alerts", "notify"]
_ROLES: dict[Role, str] = {
    "worker": "worker.scoring.pipeline",
    "profiles": "worker.profiles.role",
    "alerts": "worker.alerts.role",
    "notify": "worker.notify.role",
}
ROLE_NAMES = (*_ROLES, "operator")


def run_role(config: Config, role: Role) -> None:
    """Run a role until it is asked to stop. Its errors are raised; where the log is for machines they are in it, and
    `LoggedError` is raised. A defect is logged in any case, for its traceback."""
    import structlog

    from worker import logs

    logs.configure(config.observe)
    logging.getLogger("worker.kafka").setLevel(logging.NOTSET)  # a role has a log; the tools are quiet
    stop = threading.Event()

    def ask_to_stop(number: int, frame: object) -> None:
        stop.set()
        # A second signal ends it at once: whoever sends it has waited long enough.
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    try:
        # Imported with the handlers in place: torch takes seconds, and a signal may come in them.
        importlib.import_module(_ROLES[role]).run(config, stop)
    except Exception as error:
        if isinstance(error, DeviceError):
            # A driver that hangs may keep the interpreter from ending, and the supervisor from starting anew.
            faulthandler.dump_traceback_later(EXIT_GRACE_S, exit=True)
        ours, json = ours_of(error), config.observe.log_format == "json"
        exit_code = 1 if ours is None else ours.exit_code
        log = structlog.get_logger(__name__)
        if ours is None:
            log.exception(f"{role} ended on a defect", exit_code=exit_code)
        elif json:
            name_address(ours, config)
            log.error(f"{role} ended: {sentence(ours)}", exit_code=exit_code)  # noqa: TRY400 no traceback for what people mend
        if json:
            raise LoggedError(exit_code) from error
        raise


@click.command()
@common
def worker(config: Config) -> None:
    """Score events, one process per GPU.

    Reads events.*, writes scores.*, opinions, folds.* and events.dead.

    Ends on SIGTERM or Ctrl-C: finishes what is in flight, commits, hands over. Add processes to go faster, up to
    the partitions of events.*.

    \b
    millrace worker --config millrace.yaml
    millrace worker --set model.artifact=/models/mine --set worker.max_batch_tokens=16384
    """
    run_role(config, "worker")


@click.command()
@common
def profiles(config: Config) -> None:
    """Fold user and item state into Redis.

    Every event counts exactly once; states are published on features.* for recommenders.

    Waits while Redis is away; rebuilds an empty one. Add processes to go faster, up to kafka.fold_shards.
    """
    run_role(config, "profiles")


@click.command()
@common
def notify(config: Config) -> None:
    """Tell people of alerts: chat, webhook, mail.

    Reads alerts.opinion and sends what the sinks under notify.sinks want, at least once; tries again while a sink
    fails, and puts what none would take on events.dead. Honours `millrace mute` and `millrace ack`.

    \b
    millrace notify --config millrace.yaml
    """
    run_role(config, "notify")
