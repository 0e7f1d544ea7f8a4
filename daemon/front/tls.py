"""TLS for the TCP listeners, with a certificate that can be renewed by a reload."""

from __future__ import annotations

import ssl

from ..config.settings import ConfigError
from . import rights


def context(certificate: str, key: str) -> ssl.SSLContext | None:
    """A context for servers (``ConfigError``); None without a certificate."""
    if not certificate:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.set_alpn_protocols(["http/1.1"])
    load(made, certificate, key)
    return made


def load(into: ssl.SSLContext, certificate: str, key: str) -> None:
    """Read the certificate and its key (``ConfigError``). Connections made from now on get them."""
    try:
        into.load_cert_chain(certificate, key or None, password=_no_password)
    except ssl.SSLError as error:
        what = error.reason or str(error)
        raise ConfigError(
            f"http.tls_certificate: {certificate}{f' with http.tls_key {key}' if key else ''} cannot be used: {what}"
        ) from error
    except OSError as error:
        raise ConfigError(f"http.tls_certificate: {certificate}, http.tls_key: {key}: {error.strerror}") from error
    setting = "http.tls_key" if key else "http.tls_certificate"
    rights.warn(setting, key or certificate, rights.READ, "all users of this host can read the key")


def _no_password() -> str:
    """A key with a passphrase would ask for it on the terminal, which a service does not have."""
    return ""
