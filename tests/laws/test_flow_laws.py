"""The laws that every registered flow obeys.

A flow is tested by its line in ``FLOWS``. States lie in [-1, 1], where all flows are defined.
"""

import copy
import pickle

import pytest
import torch

from deltaflow.flows import FLOWS, TIME_EMBEDDINGS, Flow

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other

DIMS = (1, 2, 32)
DEPTHS = (1, 2, 3, 4)
DTYPES = (torch.float32, torch.float64)
TIMES = (0.0, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6)
SHAPES = [(3, 2), (4, 32)]  # (rows, dim) where the law does not depend on either


def make_flow(name: str, dim: int, dtype=torch.float64, **options) -> Flow:
    torch.manual_seed(0)
    return FLOWS[name](dim, **options).to(dtype)


def make_states(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=dtype) - 1


def times(*shape: int, dtype=torch.float64) -> torch.Tensor:
    """Times over the decades 0.01 to 100."""
    return 10 ** (4 * torch.rand(*shape, 1, dtype=dtype) - 2)


def magnify_weights(flow: Flow) -> None:
    """Make all weights ten times as large, as a long training might."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= 10


def jacobian(flow: Flow, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The Jacobian of each row, (N, D, D), by autograd."""
    step = torch.func.jacrev(flow.prepare(), argnums=1)
    return torch.func.vmap(step)(t.expand(len(x), 1), x).detach()


any_flow = pytest.mark.parametrize("name", FLOWS)
any_dim = pytest.mark.parametrize("dim", DIMS)
any_depth = pytest.mark.parametrize("depth", DEPTHS)
any_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
any_embedding = pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)


@any_flow
@any_dim
@any_depth
@any_dtype
@any_embedding
def test_no_time_changes_nothing(name, dim, depth, dtype, time_embedding):
    flow = make_flow(name, dim, dtype, num_layers=depth, time_embedding=time_embedding)
    magnify_weights(flow)
    x = make_states(16, dim, dtype=dtype)
    assert torch.equal(flow(torch.zeros(16, 1, dtype=dtype), x), x)


@any_flow
@any_dim
@any_embedding
def test_time_moves_every_dimension(name, dim, time_embedding):
    flow = make_flow(name, dim, num_layers=1, time_embedding=time_embedding)
    x = make_states(16, dim)
    moved = (flow(torch.ones(1), x) - x).abs().amax(0)
    assert (moved > 1e-5).all()


@any_flow
@any_dim
@any_depth
@any_dtype
@pytest.mark.parametrize("magnified", [False, True], ids=["initial", "magnified"])
def test_inverse_undoes_forward(name, dim, depth, dtype, magnified):
    """To within 200 roundings of the state, times the condition of the inverse.

    The condition is the exact norm of the inverse Jacobian. A fixed point stops at 32 roundings per
    layer; the largest multiple seen, over four layers and all embeddings, was 43.
    """
    flow = make_flow(name, dim, dtype, num_layers=depth)
    if magnified:
        magnify_weights(flow)
    x = make_states(8, dim, dtype=dtype)
    exact = copy.deepcopy(flow).double()
    for time in TIMES:
        t = torch.full((1,), time, dtype=dtype)
        with torch.no_grad():
            y = flow(t, x)
            error = (flow.inverse(t, y) - x).norm(dim=-1)
        smallest_stretch = torch.linalg.svdvals(jacobian(exact, t.double(), x.double()))[:, -1]
        condition = (1 / smallest_stretch).clamp(min=1)
        scale = 1 + x.norm(dim=-1) + y.norm(dim=-1)
        assert (error <= 200 * torch.finfo(dtype).eps * condition * scale).all()


@any_flow
@any_dim
@any_embedding
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_inverse_is_accurate_after_ten_gaps(name, dim, time_embedding, dtype, tolerance):
    flow = make_flow(name, dim, dtype, num_layers=2, time_embedding=time_embedding)
    x = make_states(8, dim, dtype=dtype)
    t = torch.full((1,), 10.0, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(flow.inverse(t, flow(t, x)), x, atol=tolerance, rtol=0)


@any_flow
def test_inverse_is_differentiable(name):
    flow = make_flow(name, 2)
    t, x = times(1), make_states(3, 2)
    y = flow(t, x).detach()
    backward = torch.autograd.functional.jacobian(lambda y: flow.inverse(t, y).sum(0), y)
    product = backward.transpose(0, 1) @ jacobian(flow, t, x)
    torch.testing.assert_close(product, torch.eye(2).double().expand(3, 2, 2), atol=1e-9, rtol=0)


@any_flow
@any_dim
@any_embedding
@any_dtype
@pytest.mark.parametrize("magnified", [False, True], ids=["initial", "magnified"])
def test_a_million_gaps_are_finite(name, dim, time_embedding, dtype, magnified):
    flow = make_flow(name, dim, dtype, num_layers=4, time_embedding=time_embedding)
    if magnified:
        magnify_weights(flow)
    t = torch.tensor(TIMES, dtype=dtype).reshape(-1, 1, 1)
    x = make_states(8, dim, dtype=dtype).requires_grad_()
    y = flow(t, x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for label, parameter in flow.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


@any_flow
@any_dim
@any_embedding
def test_vector_field_is_the_time_derivative(name, dim, time_embedding):
    """Central differences in float64: a step of 1e-5 leaves an error of about 1e-10."""
    flow = make_flow(name, dim, time_embedding=time_embedding)
    t, x, step = times(8), make_states(8, dim), 1e-5
    difference = (flow(t + step, x) - flow(t - step, x)) / (2 * step)
    torch.testing.assert_close(flow.vector_field(t, x), difference, atol=1e-7, rtol=1e-7)


@any_flow
def test_vector_field_has_gradients(name):
    flow = make_flow(name, 2)
    flow.vector_field(times(3), make_states(3, 2)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


@any_flow
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_two_steps_differ_from_one_by_their_product(name, rows, dim):
    """Of second order: nothing where one step is 0, and a quarter where both are halved."""
    flow, x = make_flow(name, dim, num_layers=2), make_states(rows, dim)
    s, t = (0.5 + torch.rand(rows, 1, dtype=x.dtype) for _ in range(2))
    zero = torch.zeros_like(t)
    assert not flow.semigroup_defect(zero, t, x).any()
    assert not flow.semigroup_defect(s, zero, x).any()
    small = [flow.semigroup_defect(s * size, t * size, x).detach() for size in (2e-4, 1e-4)]
    largest = small[0].abs().max().item()
    assert largest > 1e-12
    torch.testing.assert_close(small[0], 4 * small[1], rtol=0, atol=1e-2 * largest)


def test_two_steps_along_a_linear_ode_are_one():
    class Decay(Flow):
        def prepare(self):
            return lambda t, x: x * torch.exp(-t)

        def inverse(self, t, y, *, tol=None, max_iter=1000):
            return y * torch.exp(t)

    x = make_states(5, 3)
    defect = Decay(3).semigroup_defect(times(5), times(5), x)
    torch.testing.assert_close(defect, torch.zeros_like(x), rtol=0, atol=1e-15)


@any_flow
@any_dim
@any_depth
def test_log_determinant_is_that_of_the_jacobian(name, dim, depth):
    """The log-determinant of a product of D x D matrices in float64: about D roundings."""
    flow = make_flow(name, dim, num_layers=depth)
    t, x = times(4), make_states(4, dim)
    expected = torch.linalg.slogdet(jacobian(flow, t, x)).logabsdet
    torch.testing.assert_close(flow.log_abs_det_jacobian(t, x), expected, atol=1e-10, rtol=1e-10)


@any_flow
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_log_determinant_broadcasts(name, rows, dim):
    flow = make_flow(name, dim)
    t, x = times(rows, 5), make_states(rows, 1, dim)
    log_det = flow.log_abs_det_jacobian(t, x)
    assert log_det.shape == (rows, 5)
    torch.testing.assert_close(log_det[:, 2], flow.log_abs_det_jacobian(t[:, 2], x[:, 0]))


@any_flow
@any_dim
@any_embedding
def test_all_queries_in_one_call_equal_one_call_per_query(name, dim, time_embedding):
    """The same sums in another order: equal to within float64 rounding."""
    flow = make_flow(name, dim, time_embedding=time_embedding)
    t, x = times(6, 5), make_states(6, dim)
    together = flow(t, x.unsqueeze(1))
    assert together.shape == (6, 5, dim)
    one_by_one = torch.stack([flow(t[:, q], x) for q in range(5)], 1)
    torch.testing.assert_close(together, one_by_one, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        flow.inverse(t, together), x.unsqueeze(1).expand(6, 5, dim), atol=1e-9, rtol=0
    )


@any_flow
def test_a_row_does_not_depend_on_its_batch_mates(name):
    flow = make_flow(name, 32)
    t, x = times(6), make_states(6, 32)
    torch.testing.assert_close(flow(t, x)[2:3], flow(t[2:3], x[2:3]), atol=1e-12, rtol=1e-12)


@any_flow
@any_dtype
def test_prepared_map_equals_the_flow(name, dtype):
    flow = make_flow(name, 32, dtype)
    t, x = times(6, dtype=dtype), make_states(6, 32, dtype=dtype)
    step = flow.prepare()
    for _ in range(3):
        y = step(t, x)
        assert torch.equal(y, flow(t, x))
        x = y


def through_state_dict(flow: Flow, name: str) -> Flow:
    restored = FLOWS[name](flow.dim)
    restored.load_state_dict(flow.state_dict())
    return restored


@any_flow
@pytest.mark.parametrize(
    "copied",
    [
        lambda flow, _: pickle.loads(pickle.dumps(flow)),
        lambda flow, _: copy.deepcopy(flow),
        through_state_dict,
    ],
    ids=["pickle", "deepcopy", "state_dict"],
)
def test_a_copy_is_the_same_flow(name, copied):
    flow = make_flow(name, 32, torch.float32)
    t, x = times(6, dtype=torch.float32), make_states(6, 32, dtype=torch.float32)
    before = flow(t, x)
    before.sum().backward()  # a used flow can be copied, too
    assert torch.equal(copied(flow, name)(t, x), before)


@any_flow
def test_gradients_accumulate(name):
    flow = make_flow(name, 2)
    t, x = times(6), make_states(6, 2)
    flow(t, x).sum().backward()
    once = [parameter.grad.clone() for parameter in flow.parameters()]
    flow(t, x).sum().backward()
    for parameter, gradient in zip(flow.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@any_flow
def test_gradients_are_right(name):
    """Also those through the spectral norms, which the weights exceed.

    The noise parts singular values that start equal: the largest one has no derivative there.
    """
    flow = make_flow(name, 2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    t, x = times(3), make_states(3, 2)
    names = [label for label, _ in flow.named_parameters()]

    def call(t, x, *parameters):
        return torch.func.functional_call(flow, dict(zip(names, parameters, strict=True)), (t, x))

    inputs = [t, x, *(parameter.detach() for parameter in flow.parameters())]
    for each in inputs:
        each.requires_grad_()
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@any_flow
@pytest.mark.parametrize("method", ["forward", "inverse", "vector_field", "log_abs_det_jacobian"])
@pytest.mark.parametrize(
    ("t_shape", "x_shape"),
    [((6, 1), (6, 4)), ((6,), (6, 3)), ((5, 1), (6, 3)), ((6, 3), (6, 3)), ((6, 1), ())],
    ids=str,
)
def test_misfitting_shapes_are_named(name, method, t_shape, x_shape):
    flow = make_flow(name, 3)
    with pytest.raises(ValueError, match="shape") as caught:
        getattr(flow, method)(torch.rand(t_shape), torch.rand(x_shape))
    assert any(str(shape) in str(caught.value) for shape in (t_shape, x_shape))


@any_flow
@pytest.mark.parametrize(
    ("dim", "options"),
    [(0, {}), (3, {"num_layers": 0}), (3, {"time_embedding": "tahn"})],
    ids=["dim", "num_layers", "time_embedding"],
)
def test_impossible_flows_are_refused(name, dim, options):
    with pytest.raises(ValueError, match=r"dimension|flow|tanh"):
        FLOWS[name](dim, **options)


@any_flow
def test_an_empty_batch_stays_empty(name):
    flow = make_flow(name, 3)
    assert flow(times(0), make_states(0, 3)).shape == (0, 3)
    assert flow.inverse(times(0), make_states(0, 3)).shape == (0, 3)


@any_flow
def test_its_size_is_printed(name):
    assert "dim=7" in repr(FLOWS[name](7))
