"""A Grafana dashboard of the endpoint: `python -m cluster.serve.grafana > endpoint.json`, with `--ray` for Ray Serve.

Import the file in Grafana and choose the Prometheus data source that reads the server's /metrics, or Ray's agents.
"""

import json
import sys
from typing import Any

_WINDOW = "$__rate_interval"
_WIDTH, _HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""
_SHARES = (0.5, 0.95, 0.99)


def dashboard(prefix: str = "") -> dict[str, Any]:
    """The dashboard, as Grafana imports it.

    Args:
        prefix: of the names of metrics; `ray_` on Ray.
    """
    name = f"{prefix}scion"

    def quantiles(metric: str) -> dict[str, str]:
        rate = f"sum by (le) (rate({name}_{metric}_bucket[{_WINDOW}]))"
        return {f"p{100 * share:g}": f"histogram_quantile({share}, {rate})" for share in _SHARES}

    def mean(metric: str) -> str:
        return f"sum(rate({name}_{metric}_sum[{_WINDOW}])) / sum(rate({name}_{metric}_count[{_WINDOW}]))"

    def rate(metric: str, by: str = "") -> str:
        return f"sum {f'by ({by}) ' if by else ''}(rate({name}_{metric}[{_WINDOW}]))"

    phases = {phase: mean(f"{phase}_seconds") for phase in ("read", "tokenize", "queue", "encode")}
    in_flight = {"requests": f"sum({name}_requests_in_progress)", "texts": f"sum({name}_waiting_texts)"}
    padding, tokens = rate("padding_tokens_total"), rate("tokens_total")
    panels = [
        (
            "Requests by route, model and status",
            "reqps",
            {"{{route}} {{model}} {{status}}": rate("requests_total", "route, model, status")},
        ),
        ("Time of a request", "s", quantiles("request_seconds")),
        ("Where the time goes, on average", "s", phases),
        ("Wait for the first forward pass", "s", quantiles("queue_seconds")),
        ("Requests in progress, texts that wait", "short", in_flight),
        ("Tokens a second", "short", {"tokens": tokens}),
        ("Padding in forward passes", "percentunit", {"padding": f"{padding} / ({padding} + {tokens})"}),
        ("Time of a forward pass", "s", quantiles("pass_seconds")),
        ("Texts of a forward pass, on average", "short", {"texts": mean("pass_texts")}),
    ]
    return {
        "title": "Scion endpoint",
        "uid": f"{prefix}scion-endpoint".replace("_", "-"),
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    """A graph at its place, two in a row."""
    source = {"type": "prometheus", "uid": "${source}"}
    row, column = divmod(number, 2)
    targets = [
        {"refId": chr(ord("A") + n), "datasource": source, "expr": query, "legendFormat": legend}
        for n, (legend, query) in enumerate(queries.items())
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard("ray_" if "--ray" in sys.argv[1:] else ""), indent=2))
