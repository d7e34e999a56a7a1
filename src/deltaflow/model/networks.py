"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gluonts.torch.distributions import Output

from deltaflow.data import WindowSpec
from deltaflow.errors import DeltaflowError, UnknownNameError
from deltaflow.model.channelwise import ChannelwiseNetwork
from deltaflow.model.joint import JointNetwork
from deltaflow.model.module import ForecastNetwork


def make_network(
    spec: WindowSpec,
    output: Output,
    *,
    network: str = "joint",
    network_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> ForecastNetwork[Any]:
    """Build a registered network.

    Parameters
    ----------
    spec, output
        What the windows hold, and the GluonTS output.
    network, network_kwargs
        Name of a registered network, and its own options.
    options
        What all networks are told: see `JointNetwork`.

    Raises
    ------
    UnknownNameError
        If no network of this name is registered.
    DeltaflowError
        If the network does not know one of the options.
    """
    if network not in NETWORKS:
        raise UnknownNameError("network", network, NETWORKS)
    try:
        made = NETWORKS[network](spec, output, **options, **(network_kwargs or {}))
    except TypeError as error:
        raise DeltaflowError(f"network_kwargs of {network!r}: {error}") from error
    return made.float()  # as windows are, whatever torch's default is


NETWORKS: dict[str, Callable[..., ForecastNetwork[Any]]] = {
    "joint": JointNetwork,
    "channelwise": ChannelwiseNetwork,
}
"""Every network by its name: one state per series, or one per channel."""
