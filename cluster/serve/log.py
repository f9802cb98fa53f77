"""The server's log: a line of JSON for each event, on the standard error output."""

import logging
import sys
from typing import Any

import orjson

from cluster.serve.request_record import current


class JsonLines(logging.Formatter):
    """An event as one line of JSON: time, level, message, the id of the request, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        content |= {"message": record.getMessage(), "request_id": current().id or None}
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return orjson.dumps({key: value for key, value in content.items() if value is not None}).decode()


def write_log(with_requests: bool) -> None:
    """Writes events of the server, and a line for each request if asked, to the standard error output."""
    logger = logging.getLogger("scion.serve")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logging.getLogger("scion.serve.requests").setLevel(logging.INFO if with_requests else logging.WARNING)
