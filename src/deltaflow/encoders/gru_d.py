"""GRU-D: missing values decay towards the mean, and the hidden state towards zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State, known_before, steps_of
from deltaflow.flows.initial import in_default_dtype
from deltaflow.flows.time_embedding import spread_rates


class GRUDEncoder(Encoder):
    r"""GRU with trainable decays of its input and of its state.

    With :math:`\delta` the age of each channel's last value,

    .. math::
        \gamma(\delta) &= \exp(-\max(0, W \delta + b)) \\
        \hat x &= m \odot x + (1 - m) \odot \gamma_x \odot x' \\
        h &\leftarrow \mathrm{GRU}([\hat x, m, u], \; \gamma_h \odot h)

    for the values :math:`x`, their mask :math:`m`, the last values :math:`x'` and the features
    :math:`u`. :math:`W_x` is diagonal. Missing values decay to the mean, which is 0 in scaled
    units. A channel that has never been observed is 0 too.

    The paper has no queries between observations. Here the state continues from the last
    observation and decays as :math:`-\log \gamma_h` grows:

    .. math:: h(\Delta t) = \exp\left(-\max\left(0, \;
              \log \gamma_h(\delta) - \log \gamma_h(\delta + \Delta t)\right)\right) \odot h.

    Initial decay rates are spread over orders of magnitude, like those of the time embeddings.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`.

    References
    ----------
    Che et al., *Recurrent Neural Networks for Multivariate Time Series with Missing Values*, 2018,
    Scientific Reports 8, arXiv:1606.01865, equations 10 to 17.
    """

    def __init__(self, num_channels: int, num_features: int, hidden_size: int) -> None:
        super().__init__(num_channels, num_features, hidden_size)
        self.input_rate = nn.Parameter(in_default_dtype(spread_rates(num_channels)))
        self.input_bias = nn.Parameter(torch.zeros(num_channels))
        self.hidden_rate = nn.Linear(num_channels, hidden_size)
        with torch.no_grad():
            # With equal weights, a state feature initially decays by the mean age of the channels.
            self.hidden_rate.weight.copy_(spread_rates(hidden_size).unsqueeze(-1) / num_channels)
            self.hidden_rate.bias.zero_()
        self.cell = nn.GRUCell(2 * num_channels + num_features, hidden_size)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch; see `Encoder.read`."""
        last, age = known_before(values, observed, delta_t)
        inputs = self._inputs(values, observed, last, age, features)
        hidden = values.new_zeros(len(values), self.hidden_size)
        decays = torch.exp(-self._exponent(age))
        for x, decay, active in steps_of(inputs, decays, running.unsqueeze(-1)):
            hidden = torch.where(active, self.cell(x, decay * hidden), hidden)
        return hidden

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        age = state.age + delta_t.unsqueeze(-1)
        inputs = self._inputs(values, observed, state.last, age, features)
        return self.cell(inputs, torch.exp(-self._exponent(age)) * state.hidden)

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Let the state decay up to the queries; see `Encoder.evolve`."""
        age = state.age.unsqueeze(1)
        grown = self._exponent(age + delta_t.unsqueeze(-1)) - self._exponent(age)  # (B, Q, H)
        return torch.exp(-torch.relu(grown)) * state.hidden.unsqueeze(1)

    def _inputs(
        self, values: Tensor, observed: Tensor, last: Tensor, age: Tensor, features: Tensor
    ) -> Tensor:
        decay = torch.exp(-torch.relu(self.input_rate * age + self.input_bias))
        filled = torch.where(observed, values, decay * last)
        return torch.cat([filled, observed.to(values.dtype), features], dim=-1)

    def _exponent(self, age: Tensor) -> Tensor:
        return torch.relu(self.hidden_rate(age))
