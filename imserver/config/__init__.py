"""The configuration: one typed tree, read once from a TOML file and the environment.

`load` gives a `Config` or raises `ConfigError`, which names every mistake at once, each with its key and what would
do.  The environment overrides the file: ``IM_REDIS__URL`` sets ``[redis] url``.  There are no default secrets: what
has to be secret has no default, and its absence is a mistake.
"""

from imserver.config.hours import OpeningHours
from imserver.config.reading import PREFIX, ConfigError, load, parse, read
from imserver.config.template import default_toml
from imserver.config.tree import (
    BODY_MAX,
    Assignment,
    Business,
    Channel,
    Cluster,
    Config,
    Connection,
    Database,
    Delivery,
    Dispatcher,
    Key,
    Messages,
    Moderation,
    Redis,
    Suspension,
    Tokens,
    WebhookEvent,
    Webhooks,
    Worker,
)

__all__ = [
    "BODY_MAX",
    "PREFIX",
    "Assignment",
    "Business",
    "Channel",
    "Cluster",
    "Config",
    "ConfigError",
    "Connection",
    "Database",
    "Delivery",
    "Dispatcher",
    "Key",
    "Messages",
    "Moderation",
    "OpeningHours",
    "Redis",
    "Suspension",
    "Tokens",
    "WebhookEvent",
    "Webhooks",
    "Worker",
    "default_toml",
    "load",
    "parse",
    "read",
]
