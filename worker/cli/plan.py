"""The command that tells what a shop needs: ``millrace plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.cli.base import common, json_option

if TYPE_CHECKING:
    from worker.config import Config


@click.command()
@click.option(
    "--events-per-second", type=click.FloatRange(min=0, min_open=True), required=True, help="All three streams."
)
@click.option("--p99-ms", type=click.FloatRange(min=0, min_open=True), required=True, help="Produced to committed.")
@click.option("--tokens", type=click.FloatRange(min=1), default=25.0, show_default=True, help="Mean length of a text.")
@click.option(
    "--repeated", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Share of texts seen before."
)
@click.option("--users", type=click.IntRange(min=0), default=0, help="How many have a state in Redis.")
@click.option("--items", type=click.IntRange(min=0), default=0, help="The same for items.")
@click.option("--batch-ms", type=click.FloatRange(min=0), help="What a batch costs; else measured, here and now.")
@click.option("--token-us", type=click.FloatRange(min=0), help="What a token of it costs; else measured.")
@click.option(
    "--event-us", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="The rest."
)
@click.option("--gpu", is_flag=True, help="With given costs: batches as for a GPU's objectives.")
@json_option
@common
def plan(
    config: Config,
    batch_ms: float | None,
    token_us: float | None,
    event_us: float,
    gpu: bool,
    json_: bool,
    **demand: Any,
) -> None:
    """Tell how many workers, partitions and how much memory a shop needs.

    The costs of the model are measured on this machine in a few seconds, or given by --batch-ms and --token-us (then
    neither model nor device is touched).

    \b
    millrace plan --events-per-second 2000 --p99-ms 800
    millrace plan --events-per-second 50000 --p99-ms 250 --batch-ms 4 --token-us 1.5 --users 5000000 --json
    """
    import msgspec

    from worker.cli import tables
    from worker.tools.plan import Costs, Demand
    from worker.tools.plan import plan as work_out

    if batch_ms is None or token_us is None:
        from worker.tools.yardstick import costs_here

        costs, gpu = costs_here(config)
    else:
        costs = Costs(batch_ms=batch_ms, token_us=token_us)
    costs = msgspec.structs.replace(costs, event_us=event_us)
    objectives_s = tuple(config.worker.objectives_s(on_gpu=gpu).values())
    tables.show(work_out(Demand(**demand), costs, config, objectives_s), tables.plan_table, json_=json_)
