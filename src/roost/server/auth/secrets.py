"""Secrets that are made here, and how they are kept.

A signature can only be checked by who knows the secret key itself, so secret keys are encrypted rather than
hashed, with a key file that its owner alone may read. Tokens are compared, so their hash is enough.
"""

import hashlib
import os
import secrets
import string
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from roost.wire.errors import RoostError

_KEY_LETTERS = string.ascii_uppercase + string.digits


class SecretsLost(RoostError):
    """The stored secret keys cannot be decrypted."""

    code = "server-misconfigured"
    hint = "restore secrets.key from where the database came from"


class SecretBox:
    """Encrypts secret keys with the key in a file."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    @classmethod
    def of_file(cls, path: Path) -> "SecretBox":
        """The box of a key file; the file is made, mode 0600, where there is none."""
        return cls(secret_of_file(path))

    def lock(self, secret: str) -> bytes:
        return self._fernet.encrypt(secret.encode())

    def unlock(self, locked: bytes) -> str:
        """The secret that `lock` was given.

        Raises:
            SecretsLost: it was locked with another key.
        """
        try:
            return self._fernet.decrypt(locked).decode()
        except InvalidToken:
            raise SecretsLost from None


def secret_of_file(path: Path) -> bytes:
    """The random secret that a file holds, as text of one line; it is made, mode 0600, where there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes().strip()
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key())
        file.flush()
        os.fsync(file.fileno())
    return path.read_bytes()


def new_access_key() -> str:
    """20 capital letters and digits, beginning as access keys do."""
    return "AKIA" + "".join(secrets.choice(_KEY_LETTERS) for _ in range(16))


def new_secret_key() -> str:
    """40 characters that survive any shell."""
    return secrets.token_urlsafe(30)


def new_token() -> str:
    return f"roost_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """What is stored of a token; tokens are random, so a plain hash cannot be searched through."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
