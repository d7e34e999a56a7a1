"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from gluonts.torch.distributions import Output

from deltaflow.data import Reader
from deltaflow.encoders import ENCODERS
from deltaflow.errors import DeltaflowError, check_registered
from deltaflow.model.channelwise import ChannelwiseNetwork
from deltaflow.model.joint import JointNetwork
from deltaflow.model.module import ForecastNetwork


def make_network(
    reader: Reader,
    output: Output,
    *,
    network: str = "joint",
    network_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> ForecastNetwork[Any]:
    """Build a registered network.

    Parameters
    ----------
    reader, output
        How series are read, and the GluonTS output.
    network, network_kwargs
        Name of a registered network, and its own options.
    options
        The options of all networks, see `JointNetwork`.

    Raises
    ------
    UnknownNameError
        If no network of this name is registered.
    DeltaflowError
        If the network has no such option.
    """
    check_registered("network", network, NETWORKS)
    try:
        with _float32_by_default():
            return NETWORKS[network](reader, output, **options, **(network_kwargs or {}))
    except TypeError as error:
        raise DeltaflowError(f"network_kwargs of {network!r}: {error}") from error


def with_time_scales(arguments: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """Add the time scales of the data to the encoder's options, if it has such options.

    Given options are kept. The result is stored with the weights, so that a loaded network does not
    depend on the data.

    Parameters
    ----------
    arguments
        The arguments of :func:`make_network`.
    reader
        The reader of the data, see `Reader.span` and `Reader.cycles`.
    """
    known = signature(ENCODERS[arguments["encoder"]]).parameters
    scales = {"span": reader.span, "cycles": reader.cycles}
    suited = {name: value for name, value in scales.items() if name in known}
    return {**arguments, "encoder_kwargs": {**suited, **arguments["encoder_kwargs"]}}


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Make float32 torch's default dtype, so that initial weights depend only on the seed."""
    default = torch.get_default_dtype()
    if default == torch.float32:  # all threads share the setting, so leave it unchanged
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


NETWORKS: dict[str, Callable[..., ForecastNetwork[Any]]] = {
    "joint": JointNetwork,
    "channelwise": ChannelwiseNetwork,
}
"""Every network by its name: one state per series, or one per channel."""
