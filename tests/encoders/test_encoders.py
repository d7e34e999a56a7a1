"""The registry of encoders, and what single encoders promise beyond the laws."""

import inspect

import pytest
import torch

from deltaflow import DeltaflowError, UnknownNameError
from deltaflow.encoders import ENCODERS, flow_encoder, make_encoder
from deltaflow.flows import TIME_EMBEDDINGS, CouplingFlow, Flow, GRUFlow, ResNetFlow


@pytest.mark.parametrize("name", ENCODERS)
def test_every_name_makes_an_encoder_of_the_size_asked_for(name):
    encoder = make_encoder(name, num_channels=2, num_features=1, hidden_size=5)
    assert (encoder.num_channels, encoder.num_features, encoder.hidden_size) == (2, 1, 5)
    assert encoder.initial_state(3).hidden.shape == (3, 5)
    assert encoder.initial_state(3).last.shape == (3, 2)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_without_any_observation_time_is_refused(name):
    encoder, nothing = make_encoder(name, 1, 0, 4), torch.zeros(2, 0, 1)
    with pytest.raises(DeltaflowError, match="the batch has no observation time"):
        encoder(nothing, nothing.bool(), nothing[..., 0], torch.zeros(2).long(), nothing[..., :0])


def test_an_unknown_name_is_refused_with_the_registered_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'gru_flow'") as caught:
        make_encoder("gru-flow", 1, 0, 8)
    for name in ENCODERS:
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_unknown_option_is_refused_by_the_name_of_the_encoder(name):
    with pytest.raises(DeltaflowError, match=f"encoder_kwargs of '{name}': .*num_leyers"):
        make_encoder(name, 1, 0, 8, num_leyers=2)


@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("name", ["gru_flow", "coupling_flow", "resnet_flow"])
def test_flow_encoders_take_depth_and_time_embedding(name, num_layers, time_embedding):
    options = {"num_layers": num_layers, "time_embedding": time_embedding}
    encoder = make_encoder(name, 1, 0, 4, **options)
    hidden = encoder.evolve(encoder.initial_state(2), torch.ones(2, 3))
    assert hidden.shape == (2, 3, 4)
    assert hidden.isfinite().all()


FLOW_CLASSES = {"gru_flow": GRUFlow, "coupling_flow": CouplingFlow, "resnet_flow": ResNetFlow}


@pytest.mark.parametrize("name", FLOW_CLASSES)
def test_every_option_of_a_flow_can_be_set(name):
    options = set(inspect.signature(FLOW_CLASSES[name]).parameters) - {"dim"}
    assert options <= set(inspect.signature(ENCODERS[name]).parameters)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("gru_flow", {"coefficient": 0.1}),
        ("resnet_flow", {"lipschitz": 0.1}),
        ("resnet_flow", {"hidden_dims": [7, 7]}),
        ("coupling_flow", {"max_log_scale": 0.01}),
        ("coupling_flow", {"hidden_dims": [7]}),
    ],
    ids=str,
)
def test_an_option_of_a_flow_reaches_it(name, option):
    def answer(**options):
        torch.manual_seed(0)
        encoder = make_encoder(name, 1, 0, 4, **options)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter *= 3
        state = encoder.initial_state(2)._replace(hidden=torch.linspace(-1, 1, 8).view(2, 4))
        return encoder.evolve(state, torch.ones(2, 3))

    assert not torch.allclose(answer(**option), answer())


@pytest.mark.parametrize(
    ("name", "option"), [("gru_flow", {"coefficient": 1.5}), ("coupling_flow", {"hidden_dims": []})]
)
def test_an_impossible_value_is_refused_by_the_name_of_the_encoder(name, option):
    with pytest.raises(DeltaflowError, match=f"encoder_kwargs of '{name}': "):
        make_encoder(name, 1, 0, 8, **option)


def test_a_flow_becomes_an_encoder_by_one_line(monkeypatch):
    class Fade(Flow):
        def __init__(self, dim, speed=1.0):
            super().__init__(dim)
            self.speed = torch.nn.Parameter(torch.tensor(speed))

        def prepare(self):
            return lambda t, x: x * torch.exp(-self.speed * t)

        def inverse(self, t, y, *, tol=None, max_iter=1000):
            return y * torch.exp(self.speed * t)

    monkeypatch.setitem(ENCODERS, "fade", flow_encoder(Fade))
    encoder = make_encoder("fade", 1, 0, 4, speed=2.0)
    state = encoder.initial_state(1)._replace(hidden=torch.ones(1, 4))
    torch.testing.assert_close(
        encoder.evolve(state, torch.ones(1, 1)), torch.full((1, 1, 4), 2.0).neg().exp()
    )
    with pytest.raises(DeltaflowError, match="encoder_kwargs of 'fade'"):
        make_encoder("fade", 1, 0, 4, sped=2.0)


def test_a_flow_may_ignore_the_time():
    class Rest(Flow):
        def prepare(self):
            return lambda t, x: x

        def inverse(self, t, y, *, tol=None, max_iter=1000):
            return y

    encoder = flow_encoder(Rest)(num_channels=1, num_features=0, hidden_size=4)
    state = encoder.initial_state(2)
    hidden = encoder.evolve(state, torch.ones(2, 3))
    torch.testing.assert_close(hidden, state.hidden.unsqueeze(1).expand(2, 3, 4))


def test_hidden_states_of_a_gru_flow_stay_in_the_unit_cube():
    # Theorem 1 needs states in [-1, 1]. Large weights, inputs and gaps drive them to the border;
    # a convex combination in float32 may pass it by its rounding, 1e-7.
    torch.manual_seed(0)
    encoder = make_encoder("gru_flow", num_channels=2, num_features=0, hidden_size=16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter *= 8
        state = encoder.initial_state(32)
        for _ in range(200):
            state = encoder.update(
                state,
                delta_t=10 ** (10 * torch.rand(32) - 4),
                values=20 * torch.rand(32, 2) - 10,
                observed=torch.rand(32, 2) < 0.5,
                features=torch.empty(32, 0),
            )
            assert state.hidden.abs().max() <= 1 + 1e-6
        asked = encoder.evolve(state, 10 ** (10 * torch.rand(32, 50) - 4))
    assert asked.abs().max() <= 1 + 1e-6
    assert state.hidden.abs().max() > 0.9


def test_a_plain_gru_rests_between_observations():
    encoder = make_encoder("gru", num_channels=1, num_features=0, hidden_size=4)
    state = encoder.initial_state(2)._replace(hidden=torch.rand(2, 4))
    evolved = encoder.evolve(state, torch.tensor([[0.0, 1.0, 1e6]] * 2))
    assert torch.equal(evolved, state.hidden.unsqueeze(1).expand(2, 3, 4))
