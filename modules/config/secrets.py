"""Secrets: kept apart from every config, and out of every file, message and notebook."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from modules.config.files import read_json
from modules.config.problems import Problem, error

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables that hold the hub's token, the first that is set counts."""


class _Closed:
    """Base of what can be used but neither shown, copied to a file nor sent to a process."""

    def __repr__(self) -> str:
        known = [item.name for item in fields(self) if getattr(self, item.name)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(known) or 'none'}; values hidden)"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("Secrets are not written anywhere. Load them again where they are needed.")


@dataclass(frozen=True, repr=False)
class CloudSecrets(_Closed):
    """Access to a remote machine."""

    api_key: str = ""
    id: str = ""
    host: str = ""
    port: str = "0"
    user: str = "root"
    key_file: str = ""
    password: str = ""


@dataclass(frozen=True, repr=False)
class Secrets(_Closed):
    """What must not be known: the hub's token and access to remote machines.

    A separate object on purpose: no config, event, trait or file contains it, it cannot be pickled,
    and its text names what is set without the value.
    """

    huggingface_token: str = ""
    cloud: CloudSecrets = field(default_factory=CloudSecrets)

    @classmethod
    def load(cls, path: Path | None = None) -> tuple[Secrets, list[Problem]]:
        """From a file, the environment and the hub's own login, in this order.

        Args:
            path: a secrets file of OneTrainer; None for `secrets.json` here, if there is one.

        Returns:
            The secrets, and a warning for each key that nothing knows.

        Raises:
            ConfigError: if the named file is missing, or no file of secrets. No value is shown.
        """
        warnings: list[Problem] = []
        found = path or Path("secrets.json")
        data = read_json(found, warnings) if path or found.is_file() else {}
        if not isinstance(data, Mapping):
            raise error("secrets", f"{found} holds no object of secrets.", "Name a secrets file.")
        token = _text(data, "huggingface_token", found) or hub_token()
        cloud = data.get("cloud") or {}
        if not isinstance(cloud, Mapping):
            raise error("secrets.cloud", "cloud must be an object.", "Mend the secrets file.")
        known = {item.name: _text(cloud, item.name, found) for item in fields(CloudSecrets)}
        access = CloudSecrets(**{name: text for name, text in known.items() if text})
        unknown = [n for n in data if n not in ("huggingface_token", "cloud", "__version")]
        unknown += [f"cloud.{name}" for name in cloud if name not in (*known, "__version")]
        for name in unknown:
            message = f"{name} is no secret that is known here."
            warnings.append(Problem(f"secrets.{name}", "warning", message, "It is passed over."))
        return cls(token, access), warnings


def hub_token() -> str:
    """The hub's token from the environment, else from the hub's own login, else empty."""
    for name in TOKEN_VARIABLES:
        if token := os.environ.get(name, "").strip():
            return token
    from huggingface_hub import get_token

    return get_token() or ""


def _text(data: Mapping[str, Any], name: str, path: Path) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise error(f"secrets.{name}", f"{name} in {path.name} must be text.", "Put it in quotes.")
    return str(value).strip()
