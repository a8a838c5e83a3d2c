"""The configuration: its schema, which the host gets from Describe, and the decoding of what Configure brings."""

import json
import os
import re
from dataclasses import dataclass, field

import grpc

from berth.provider.v1 import provider_pb2 as pb
from errors import ProviderError

ATTRIBUTES = [
    pb.Attribute(
        name="root", type=pb.ATTRIBUTE_TYPE_STRING, env=["BERTH_PYTHON_ROOT"],
        doc="The directory that holds the sandboxes. Default: berth/python in $XDG_STATE_HOME, or in ~/.local/state."),
    pb.Attribute(
        name="path", type=pb.ATTRIBUTE_TYPE_STRING_LIST, default_json="[]",
        doc="Directories in which a server's command is looked for before PATH."),
    pb.Attribute(
        name="stop_grace", type=pb.ATTRIBUTE_TYPE_DURATION, default_json='"5s"',
        doc="How long a server may take to end by itself when its sandbox is suspended or destroyed."),
]


@dataclass
class Config:
    root: str = ""
    path: list[str] = field(default_factory=list)
    stop_grace: float = 5.0  # seconds


def decode(config_json: bytes) -> Config:
    """Refuses everything that is wrong at once, by field, and never quotes a value."""
    try:
        values = json.loads(config_json or b"{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ProviderError(grpc.StatusCode.INVALID_ARGUMENT, "the configuration is not a JSON object")
    config, refused = Config(), {}
    for a in ATTRIBUTES:
        value = values.pop(a.name, None)
        if value is None and a.default_json:
            value = json.loads(a.default_json)
        if value is None:
            if a.required:
                refused[a.name] = "is required"
            continue
        read, wanted = READERS[a.type]
        try:
            setattr(config, a.name, read(value))
        except ValueError:
            refused[a.name] = f"must be {wanted}"
        else:
            if a.one_of and value not in a.one_of:
                refused[a.name] = "must be one of " + ", ".join(a.one_of)
    refused.update({name: "is not known to this provider" for name in values})
    if not refused:
        refused = complete(config)
    if refused:
        raise ProviderError(grpc.StatusCode.INVALID_ARGUMENT, "the configuration was refused", fields=refused)
    return config


def complete(config: Config) -> dict[str, str]:
    """Fills in what depends on the machine, and checks what only the machine can tell."""
    if not config.root:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        config.root = os.path.join(state, "berth", "python")
    config.root = os.path.expanduser(config.root)
    refused = {}
    if not os.path.isabs(config.root):
        refused["root"] = "must be an absolute path"
    elif os.path.exists(config.root) and not os.path.isdir(config.root):
        refused["root"] = "is not a directory"
    if any(not os.path.isdir(place) for place in config.path):
        refused["path"] = "must name directories that exist"
    return refused


def duration(value: object) -> float:
    """Seconds, from text such as "90s" or "1h30m"."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    part = r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)"
    if value == "0":
        return 0.0
    if not isinstance(value, str) or not re.fullmatch(f"(?:{part})+", value):
        raise ValueError
    return sum(float(number) * units[unit] for number, unit in re.findall(part, value))


def of_type(*types: type):
    def read(value: object):
        if type(value) not in types:  # and not isinstance: True is an int
            raise ValueError
        return value
    return read


def string_list(value: object) -> list[str]:
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise ValueError
    return value


def string_map(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or any(not isinstance(item, str) for item in value.values()):
        raise ValueError
    return value


READERS = {
    pb.ATTRIBUTE_TYPE_STRING: (of_type(str), "text"),
    pb.ATTRIBUTE_TYPE_BOOL: (of_type(bool), "true or false"),
    pb.ATTRIBUTE_TYPE_INTEGER: (of_type(int), "a whole number"),
    pb.ATTRIBUTE_TYPE_NUMBER: (of_type(int, float), "a number"),
    pb.ATTRIBUTE_TYPE_DURATION: (duration, 'a duration such as "90s" or "1h30m"'),
    pb.ATTRIBUTE_TYPE_STRING_LIST: (string_list, "a list of texts"),
    pb.ATTRIBUTE_TYPE_STRING_MAP: (string_map, "a map of texts"),
}
