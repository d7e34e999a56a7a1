"""Encoders: from observations to a state that can be queried at any time."""

from collections.abc import Callable

from deltaflow.encoders.encoder import Encoder, State
from deltaflow.encoders.evolution import Evolution, FlowEvolution, NoEvolution, VectorField
from deltaflow.encoders.gru_d import GRUDEncoder
from deltaflow.encoders.gru_ode import GRUField, gru_ode
from deltaflow.encoders.linear_flow import LinearFlowEncoder
from deltaflow.encoders.neural_cde import NeuralCDEEncoder
from deltaflow.encoders.neural_ode import MLPField, ODEEvolution, Solver, ode_rnn
from deltaflow.encoders.recurrent import RecurrentEncoder, flow_encoder, gru
from deltaflow.errors import DeltaflowError, check_registered
from deltaflow.flows import CouplingFlow, GRUFlow, ResNetFlow

__all__ = [
    "ENCODERS",
    "Encoder",
    "Evolution",
    "FlowEvolution",
    "GRUDEncoder",
    "GRUField",
    "LinearFlowEncoder",
    "MLPField",
    "NeuralCDEEncoder",
    "NoEvolution",
    "ODEEvolution",
    "RecurrentEncoder",
    "Solver",
    "State",
    "VectorField",
    "flow_encoder",
    "make_encoder",
]


def make_encoder(
    name: str, num_channels: int, num_features: int, hidden_size: int, **options: object
) -> Encoder:
    """Build a registered encoder.

    Raises
    ------
    UnknownNameError
        If no encoder of this name is registered.
    DeltaflowError
        If the encoder has no such option, or rejects its value.

    Examples
    --------
    >>> make_encoder("gru_flow", num_channels=2, num_features=0, hidden_size=8).hidden_size
    8
    """
    check_registered("encoder", name, ENCODERS)
    try:
        return ENCODERS[name](num_channels, num_features, hidden_size, **options)
    except DeltaflowError:
        raise
    except (TypeError, ValueError) as error:
        raise DeltaflowError(f"encoder_kwargs of {name!r}: {error}") from error


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "gru_flow": flow_encoder(GRUFlow),
    # A coupling layer is a pair of affine steps, as deep as two layers of the other flows.
    "coupling_flow": flow_encoder(CouplingFlow, num_layers=1, hidden_dims=None),
    "resnet_flow": flow_encoder(ResNetFlow, hidden_dims=None),
    "linear_flow": LinearFlowEncoder,
    "gru": gru,
    "gru_d": GRUDEncoder,
    "ode_rnn": ode_rnn,
    "gru_ode": gru_ode,
    "neural_cde": NeuralCDEEncoder,
}
"""Every encoder by name: a function of num_channels, num_features, hidden_size and options."""
