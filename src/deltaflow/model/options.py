"""The options of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gluonts.torch.distributions import Output

from deltaflow.encoders import ENCODERS
from deltaflow.errors import check_at_least, check_between, check_registered, check_whole
from deltaflow.heads import describe_output
from deltaflow.model.networks import NETWORKS


@dataclass(frozen=True)
class ModelOptions:
    """The options of the network and its loss.

    Attributes
    ----------
    encoder
        Name of a registered encoder.
    encoder_kwargs
        Options of the encoder.
    network
        ``"joint"``: one hidden state per series; ``"channelwise"``: one per channel, with an
        exchange between them, for many channels observed at different times.
    network_kwargs
        Options of the network, see `ChannelwiseNetwork`.
    hidden_size
        Width of the network.
    dropout
        Share of the head's inner features that is dropped in training.
    balance
        The weight of rare channels in the loss: with 0 all values count the same, with 1 all
        channels.
    channel_weights
        Further weights of the target channels in the loss; all equal if None.
    distr_output
        The name of a registered head, such as ``"student_t"``, or a GluonTS output.

    Raises
    ------
    DeltaflowError
        If a value is out of range, or a name is not registered.
    """

    encoder: str = "gru_flow"
    encoder_kwargs: Mapping[str, Any] = field(default_factory=dict)
    network: str = "joint"
    network_kwargs: Mapping[str, Any] = field(default_factory=dict)
    hidden_size: int = 32
    dropout: float = 0.0
    balance: float = 0.0
    channel_weights: list[float] | None = None
    distr_output: str | Mapping[str, Any] | Output = "student_t"

    def __post_init__(self) -> None:
        check_whole(1, hidden_size=self.hidden_size)
        check_between(0, 1, dropout=self.dropout)
        check_at_least(0, balance=self.balance)
        check_registered("encoder", self.encoder, ENCODERS)
        check_registered("network", self.network, NETWORKS)
        describe_output(self.distr_output)  # raises an error if it cannot be stored

    @property
    def network_arguments(self) -> dict[str, Any]:
        """The arguments of `make_network`, as plain values that can be stored with the weights."""
        plain = {**vars(self), "encoder_kwargs": dict(self.encoder_kwargs)}
        plain["network_kwargs"] = dict(self.network_kwargs)
        del plain["distr_output"]
        return plain
