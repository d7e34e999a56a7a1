"""Neural flows: invertible maps of time and state that replace an ODE solver."""

from __future__ import annotations

from collections.abc import Callable

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.contractive import ContractiveMLP, spectral_normalise
from deltaflow.flows.coupling import CouplingFlow, CouplingLayer
from deltaflow.flows.flow import Flow, FlowInversionError, FlowMap
from deltaflow.flows.gru import GRUFlow, GRULayer
from deltaflow.flows.linear import LinearFlow
from deltaflow.flows.resnet import ResNetFlow, ResNetLayer
from deltaflow.flows.time_embedding import (
    BOUNDED_TIME_EMBEDDINGS,
    TIME_EMBEDDINGS,
    FourierTime,
    LinearTime,
    LogTime,
    Saturating,
    TanhTime,
    TimeEmbedding,
)

__all__ = [
    "BOUNDED_TIME_EMBEDDINGS",
    "FLOWS",
    "TIME_EMBEDDINGS",
    "ContractiveMLP",
    "CouplingFlow",
    "CouplingLayer",
    "Flow",
    "FlowInversionError",
    "FlowMap",
    "FlowStack",
    "FourierTime",
    "GRUFlow",
    "GRULayer",
    "LinearFlow",
    "LinearTime",
    "LogTime",
    "ResNetFlow",
    "ResNetLayer",
    "Saturating",
    "TanhTime",
    "TimeEmbedding",
    "spectral_normalise",
]

FLOWS: dict[str, Callable[..., Flow]] = {
    "resnet": ResNetFlow,
    "gru": GRUFlow,
    "coupling": CouplingFlow,
    "linear": LinearFlow,
}
"""Every flow by its name: a function of the dimension, and options."""
