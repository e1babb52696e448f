"""The public half and the secret half of a key, as different types.

A server's code takes a :class:`PublicContext`, which cannot hold a secret key: making one from bytes that
do is an error. So no argument passed by mistake gives the server the power to read.
"""

from __future__ import annotations

from typing import Any

from atoll.core.errors import AuthError, MissingExtra, WireError
from atoll.privacy.he.parameters import Parameters

__all__ = ["PublicContext", "SecretContext", "installed", "new_key"]


def _tenseal() -> Any:
    """TenSEAL, which is loaded when the first key is.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import tenseal
    except ImportError as error:
        raise MissingExtra(
            "encrypted aggregation needs TenSEAL", remedy="pip install 'atoll[he]'"
        ) from error
    return tenseal


def installed() -> None:
    """Find out before a run begins whether it can be encrypted here.

    Raises:
        MissingExtra: TenSEAL is not installed.
    """
    _tenseal()


def _read(raw: bytes) -> Any:
    tenseal = _tenseal()
    try:
        return tenseal.context_from(raw, n_threads=1)
    except (ValueError, RuntimeError) as error:
        raise WireError(f"{len(raw)} bytes that are no key: {error}") from error


class PublicContext:
    """What encrypts and adds, and opens nothing.

    Args:
        parameters: agreed on.
        raw: the public key, from :meth:`SecretContext.public`.

    Raises:
        AuthError: ``raw`` holds a secret key.
        WireError: it is no key.
        MissingExtra: TenSEAL is not installed.
    """

    def __init__(self, parameters: Parameters, raw: bytes) -> None:
        context = _read(raw)
        if context.is_private():
            raise AuthError(
                "a secret key where a public one belongs", remedy="send SecretContext.public()"
            )
        self.parameters = parameters
        self._context = context
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """The public key as bytes."""
        return self._raw

    def handle(self) -> Any:
        """TenSEAL's own object, for :mod:`atoll.privacy.he.sealed`."""
        return self._context


class SecretContext:
    """What opens sums; it lives at the sites.

    Args:
        parameters: agreed on.
        raw: the secret key, from :func:`new_key`.

    Raises:
        AuthError: ``raw`` holds no secret key.
        WireError: it is no key.
        MissingExtra: TenSEAL is not installed.
    """

    def __init__(self, parameters: Parameters, raw: bytes) -> None:
        context = _read(raw)
        if not context.is_private():
            raise AuthError("a public key opens nothing", remedy="hand this site the secret key")
        self.parameters = parameters
        self._context = context

    def public(self) -> PublicContext:
        """The half that the server may have."""
        raw = self._context.serialize(
            save_public_key=True,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=False,
        )
        return PublicContext(self.parameters, raw)

    def handle(self) -> Any:
        """TenSEAL's own object, for :mod:`atoll.privacy.he.opening`."""
        return self._context

    def __repr__(self) -> str:
        """Nothing of the key."""
        return f"SecretContext({self.parameters})"


def new_key(parameters: Parameters) -> bytes:
    """A fresh secret key from the operating system's randomness; whoever has it reads every update.

    Raises:
        MissingExtra: TenSEAL is not installed.
    """
    tenseal = _tenseal()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        parameters.degree,
        coeff_mod_bit_sizes=[parameters.modulus_bits] * 2,
        n_threads=1,
    )
    context.global_scale = 2.0**parameters.scale_bits
    raw: bytes = context.serialize(
        save_public_key=True,
        save_secret_key=True,
        save_galois_keys=False,
        save_relin_keys=False,
    )
    return raw
