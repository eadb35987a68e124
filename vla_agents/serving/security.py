"""Who may talk to the server: tokens, TLS, and which addresses may be opened without them."""

from __future__ import annotations

import hmac
import ipaddress
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vla_agents.errors import ConfigError

TOKEN_VARIABLE = "VLA_AGENTS_TOKEN"
MIN_TOKEN = 16  # characters


def find_token(file: str | Path | None = None) -> str | None:
    """The token from a file, else from the environment variable VLA_AGENTS_TOKEN, else None.

    A token is never given on the command line, where every user of the machine could read it.

    Raises:
        ConfigError: The file cannot be read, others may read it, or the token is too short.
    """
    if file is None:
        token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if token is None:
            return None
    else:
        where = str(file)
        try:
            mode = Path(file).stat().st_mode
            token = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"token file {file}: cannot be read ({error})") from None
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            raise ConfigError(f"token file {file}: other users can read it", f"chmod 600 {file}")
    return check_token(token.strip(), where)


def check_token(token: str, where: str = "token") -> str:
    """The token, if it is long enough and can stand in a header."""
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: a token has at least {MIN_TOKEN} printable ASCII characters and no space",
            "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return token


def is_authorized(token: str | None, headers: Mapping[str, str], path: str) -> bool:
    """Whether a request carries the token; compared in constant time, before anything of it is parsed.

    It stands in `Authorization: Bearer TOKEN` (openpi's and StarVLA's clients say `Api-Key`), or, for clients that can set
    no header, in the query of the URL: `?token=TOKEN`.
    """
    if token is None:
        return True
    scheme, _, given = headers.get("Authorization", "").partition(" ")
    if scheme.lower() not in ("bearer", "api-key"):
        given = (parse_qs(urlsplit(path).query).get("token") or [""])[0]
    return matches(token, given)


def matches(token: str, given: str) -> bool:
    """Whether the given text is the token, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(token.encode(), given.strip().encode())


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None, tls: bool) -> str:
    """A warning where what is sent can be read on the way, else an empty string.

    Raises:
        ConfigError: The address can be reached from other machines and no token is set.
    """
    if is_loopback(host):
        return ""
    if token is None:
        raise ConfigError(
            f"{host} can be reached from other machines, and no token is set",
            f"set {TOKEN_VARIABLE} or give --token-file; or stay on 127.0.0.1 and use ssh -L",
        )
    if tls:
        return ""
    return f"{host} without TLS: whoever is on the way can read token, pictures and actions (docs/serving.md)"


def server_tls(certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    """The server's side of TLS, None where no certificate is given."""
    if certificate is None:
        if key is not None:
            raise ConfigError("a TLS key without a certificate", "give --tls-cert too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS certificate {certificate}: cannot be loaded ({error})") from None
    return context


def client_tls(ca_file: str | Path | None) -> ssl.SSLContext:
    """The client's side: the server's certificate is checked against the system's authorities, or those of a file."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"CA file {ca_file}: cannot be loaded ({error})") from None
