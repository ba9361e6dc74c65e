"""Trust: whose artifacts are loaded. They are machine code, so whoever can write one runs code here.

`own` trusts what this user (or root) wrote into a place that nobody else can write. `signed` trusts what carries an
ed25519 signature by a listed key, wherever it came from. See docs/security.md.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# So that a signature of something else can never pass for one of ours.
DOMAIN = b"aot-app signature v1\n"
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Trust:
    """Whose artifacts are loaded, and who signs the ones made here.

    Attributes:
        policy: `own`, `signed` or `none`.
        keys: Public keys, 64 hex digits each.
        signing_key: The file of the private key; its public half is trusted too.
    """

    policy: str = "own"
    keys: tuple[str, ...] = ()
    signing_key: Path | None = None

    @cached_property
    def trusted(self) -> frozenset[str]:
        """The public keys whose signatures count."""
        own = [public_key(self._private_key)] if self.signing_key else []
        return frozenset((*self.keys, *own))

    def sign(self, payload: bytes) -> dict[str, str]:
        """Signatures of a payload by public key; empty where there is no key to sign with."""
        if self.signing_key is None:
            return {}
        return {public_key(self._private_key): self._private_key.sign(DOMAIN + payload).hex()}

    def refuses(self, payload: bytes, signatures: Any) -> str | None:
        """Why no trusted key vouches for a payload, or None where one does, or none is needed."""
        if self.policy != "signed":
            return None
        if not isinstance(signatures, dict) or not signatures:
            return "it is not signed"
        known = self.trusted & signatures.keys()
        if not known:
            return f"it is signed by {min(map(str, signatures))[:12]}, which is not among cache.keys"
        if not any(_is_signature(key, signatures[key], payload) for key in known):
            return "its signature is wrong"
        return None

    def check_imports(self) -> None:
        """Raise ConfigError where nothing that was made elsewhere can be trusted."""
        if self.policy == "own":
            raise ConfigError("imports need cache.trust=signed with cache.keys=[...], or cache.trust=none")

    def refuses_owner(self, name: str, found: os.stat_result) -> str | None:
        """Why a file or folder may have been written by somebody else, or None."""
        if self.policy != "own":
            return None
        if found.st_uid not in _trusted_users():
            return f"{name} belongs to {_user(found.st_uid)}"
        if found.st_mode & WRITABLE_BY_OTHERS and not stat.S_ISLNK(found.st_mode):
            return f"{name} can be written by others"
        return None

    @cached_property
    def _private_key(self) -> Ed25519PrivateKey:
        assert self.signing_key is not None
        return read_key(self.signing_key)


def check_place(root: Path) -> None:
    """Raise StoreError where somebody else could write `root` or a folder on the way to it, with what mends it.

    A folder that only its entries' owners can delete from, such as /tmp, is no danger when it is root's.
    """
    for place in _way_to(root):
        found = place.lstat()
        if stat.S_ISLNK(found.st_mode):
            mode = 0  # whoever could write the link's folder could replace it; that folder is checked too
        elif found.st_mode & stat.S_ISVTX and found.st_uid == 0:
            mode = 0
        else:
            mode = found.st_mode & WRITABLE_BY_OTHERS
            if mode == stat.S_IWGRP and _is_alone_in(found.st_gid):
                mode = 0
        if found.st_uid not in _trusted_users():
            raise StoreError(
                f"cache: {place} belongs to {_user(found.st_uid)}, who could put code there; "
                f"sudo chown {_user(os.geteuid())} {place}, or set cache.dir to a place of your own"
            )
        if mode:
            raise StoreError(
                f"cache: {place} can be written by other users, who could put code there; "
                f"chmod go-w {place}, or set cache.dir to a private place"
            )


def _way_to(root: Path) -> Iterator[Path]:
    """`root`, and every folder that leads to it: by its name, and by where symbolic links on the way point."""
    seen: set[Path] = set()
    for path in (root.absolute(), root.resolve()):
        for place in (path, *path.parents):
            if place not in seen and os.path.lexists(place):
                seen.add(place)
                yield place


def _trusted_users() -> set[int]:
    return {0, os.geteuid()}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _is_alone_in(gid: int) -> bool:
    """Whether a group is this user's private one, as many systems give to each user with a umask of 002."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name} and group.gr_name == user.pw_name


def create_key(path: Path) -> str:
    """Make a new private key at `path`, readable by its owner only; returns the public key.

    Raises:
        ConfigError: there is a file already, or it can't be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"cache.signing_key={str(path)!r} is there already: a key is never overwritten") from error
    except OSError as error:
        raise ConfigError(f"cache.signing_key={str(path)!r} can't be written: {error.strerror}") from error
    return public_key(key)


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key at `path`.

    Raises:
        ConfigError: it isn't one, or others could read it.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ConfigError("signatures need the package cryptography: pip install 'aot-app[signing]'") from error
    name = f"cache.signing_key={str(path)!r}"
    try:
        found = path.stat()
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{name} can be read by others: chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        hint = f"; make one: python -m app task=cache.keygen cache.signing_key={path}"
        raise ConfigError(f"{name} can't be read: {error.strerror}{hint}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{name} is not an ed25519 key")
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """The public half, in hex."""
    return key.public_key().public_bytes_raw().hex()


def _is_signature(key: str, signature: Any, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), DOMAIN + payload)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def pack(content: Any, trust: Trust) -> bytes:
    """A small JSON document with signatures of its content."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return json.dumps({"content": text, "signatures": trust.sign(text.encode())}).encode()


def unpack(data: bytes, trust: Trust) -> Any:
    """The content of such a document.

    Raises:
        ValueError: it is malformed, or no trusted key vouches for it.
    """
    try:
        document = json.loads(data)
        text, signatures = document["content"], document["signatures"]
        why = trust.refuses(text.encode(), signatures)
        content = json.loads(text)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"not a signed document: {error}") from error
    if why is not None:
        raise ValueError(why)
    return content
