"""The commands that are roles: each runs until it is asked to stop. (``millrace alerts`` has commands of its own.)"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import signal
import threading
from typing import TYPE_CHECKING, Literal

import click

from worker.cli.base import common
from worker.errors import DeviceError, MillraceError

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
    """Run a role until it is asked to stop. Its errors are logged, and raised."""
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
    except DeviceError:
        # A driver that hangs may keep the interpreter from ending, and the supervisor from starting anew.
        faulthandler.dump_traceback_later(EXIT_GRACE_S, exit=True)
        raise
    except Exception as error:
        if not isinstance(error, MillraceError):
            logging.getLogger(__name__).exception("%s ended on a defect", role)
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
