"""The canaries of the embedded test, with roles on Apache Kafka in exactly-once delivery and redis-server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.embedded.test_canary import (  # noqa: F401 a test and a fixture that pytest finds here by name
    site,
    test_no_canary_is_ever_said,
)
from worker.config import Config

pytestmark = pytest.mark.real


@pytest.fixture
def config(kafka_config: dict[str, Any], redis_url: str, tmp_path: Path) -> Config:
    alerts = {"data_dir": str(tmp_path / "alerts")}
    tree = {"kafka": kafka_config, "redis": {"url": redis_url}, "model": {"artifact": "null"}, "alerts": alerts}
    return msgspec.convert(tree, Config)
