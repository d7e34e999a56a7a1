"""The laws that every registered flow obeys, and those that it claims to obey.

A flow is tested by its line in ``FLOWS``. States lie in [-1, 1], where all flows are defined.
"""

import contextlib
import copy
import inspect
import math
import pickle
from itertools import product

import pytest
import torch

from deltaflow.flows import FLOWS, TIME_EMBEDDINGS, Flow, FlowInversionError, FlowStack, LinearFlow
from deltaflow.flows.flow import MAX_JACOBIAN_DIM

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other

DIMS = (1, 2, 32)
DEPTHS = (1, 2, 3, 4)
DTYPES = (torch.float32, torch.float64)
TIMES = (0.0, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6)
SHAPES = [(3, 2), (4, 32)]  # (rows, dim) where the law does not depend on either


class Decay(Flow):
    """The solution of dx/dt = -x, which makes the claims that few flows can make."""

    semigroup = scannable = closed_inverse = True

    def prepare(self):
        return lambda t, x: x * torch.exp(-t)

    def inverse(self, t, y, *, tol=None, max_iter=1000):
        self.check_inputs(t, y)
        return y * torch.exp(t)


def linear_stack(dim: int) -> FlowStack:
    """Linear flows, which commute, so that their composition claims what each of them does."""
    return FlowStack([LinearFlow(dim), LinearFlow(dim, span=9.0)])


KNOWN = {**FLOWS, "decay": Decay, "linear_stack": linear_stack}


def make_flow(name: str, dim: int, dtype=torch.float64, **options) -> Flow:
    """A flow; options that it does not have are left out."""
    torch.manual_seed(0)
    return KNOWN[name](dim, **{k: v for k, v in options.items() if has_option(name, k)}).to(dtype)


def has_option(name: str, option: str) -> bool:
    return option in inspect.signature(KNOWN[name]).parameters


def any_flow_with(**axes):
    """Parametrise a test by every flow, and by all values of those options that the flow has."""
    cases = []
    for name in FLOWS:
        known = [option for option in axes if has_option(name, option)]
        for values in product(*(axes[option] for option in known)):
            label = "-".join(map(str, (name, *values)))
            cases.append(pytest.param(name, dict(zip(known, values, strict=True)), id=label))
    return pytest.mark.parametrize(("name", "options"), cases)


def flows_that(claim: str):
    """Parametrise a test by the flows with an attribute that is neither false nor infinite."""
    claims = {name: getattr(make_flow(name, 2), claim) for name in KNOWN}
    return pytest.mark.parametrize(
        "name", [name for name, value in claims.items() if value and value != math.inf]
    )


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
any_flow_of_any_depth = any_flow_with(num_layers=DEPTHS)
any_flow_of_any_embedding = any_flow_with(time_embedding=TIME_EMBEDDINGS)
any_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@any_flow_with(num_layers=DEPTHS, time_embedding=TIME_EMBEDDINGS)
@any_dim
@any_dtype
def test_no_time_changes_nothing(name, options, dim, dtype):
    flow = make_flow(name, dim, dtype, **options)
    magnify_weights(flow)
    x = make_states(16, dim, dtype=dtype)
    assert torch.equal(flow(torch.zeros(16, 1, dtype=dtype), x), x)


@any_flow_of_any_embedding
@any_dim
def test_time_moves_every_dimension(name, options, dim):
    flow = make_flow(name, dim, num_layers=1, **options)
    x = make_states(16, dim)
    moved = (flow(torch.ones(1), x) - x).abs().amax(0)
    assert (moved > 1e-5).all()


@any_flow_of_any_depth
@any_dim
@any_dtype
@pytest.mark.parametrize("magnified", [False, True], ids=["initial", "magnified"])
def test_inverse_undoes_forward(name, options, dim, dtype, magnified):
    """To within 200 roundings of the state, times the condition of the inverse.

    The condition is the exact norm of the inverse Jacobian. A fixed point stops at 32 roundings per
    layer; the largest multiple seen, over four layers and all embeddings, was 43. What contracts to
    less than the smallest number may be refused.
    """
    flow = make_flow(name, dim, dtype, **options)
    if magnified:
        magnify_weights(flow)
    x = make_states(8, dim, dtype=dtype)
    exact = copy.deepcopy(flow).double()
    for time in TIMES:
        t = torch.full((1,), time, dtype=dtype)
        with torch.no_grad():
            y = flow(t, x)
            smallest_stretch = torch.linalg.svdvals(jacobian(exact, t.double(), x.double()))[:, -1]
            if (smallest_stretch < torch.finfo(dtype).tiny).all():
                with contextlib.suppress(FlowInversionError):
                    flow.inverse(t, y)
                continue
            error = (flow.inverse(t, y) - x).norm(dim=-1)
        condition = (1 / smallest_stretch).clamp(min=1)
        scale = 1 + x.norm(dim=-1) + y.norm(dim=-1)
        assert (error <= 200 * torch.finfo(dtype).eps * condition * scale).all()


@any_flow_of_any_embedding
@any_dim
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_inverse_is_accurate_after_ten_gaps(name, options, dim, dtype, tolerance):
    flow = make_flow(name, dim, dtype, num_layers=2, **options)
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


@any_flow_of_any_embedding
@any_dim
@any_dtype
@pytest.mark.parametrize("magnified", [False, True], ids=["initial", "magnified"])
def test_a_million_gaps_are_finite(name, options, dim, dtype, magnified):
    flow = make_flow(name, dim, dtype, num_layers=4, **options)
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


@any_flow_of_any_embedding
@any_dim
def test_vector_field_is_the_time_derivative(name, options, dim):
    """Central differences in float64: a step of 1e-5 leaves an error of about 1e-10."""
    flow = make_flow(name, dim, **options)
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
def test_semigroup_defect_is_two_steps_minus_one(name, rows, dim):
    flow, x = make_flow(name, dim, num_layers=2), make_states(rows, dim)
    s, t = times(rows), times(rows)
    expected = flow(t, flow(s, x)) - flow(s + t, x)
    torch.testing.assert_close(flow.semigroup_defect(s, t, x), expected, atol=1e-14, rtol=0)
    zero = torch.zeros_like(t)
    assert not flow.semigroup_defect(zero, t, x).any()
    assert not flow.semigroup_defect(s, zero, x).any()


@flows_that("semigroup")
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_two_steps_of_a_semigroup_are_one(name, rows, dim):
    """To within rounding, which in a phase of hundreds is hundreds of times that of 1."""
    flow, x = make_flow(name, dim), make_states(rows, dim)
    s, t = times(rows), times(rows)
    defect = flow.semigroup_defect(s, t, x)
    torch.testing.assert_close(defect, torch.zeros_like(x), rtol=0, atol=1e-12)
    short = t.clamp(max=1.0)
    torch.testing.assert_close(flow(-short, flow(short, x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow(-short, x), flow.inverse(short, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("method", ["forward", "inverse", "vector_field", "log_abs_det_jacobian"])
@pytest.mark.parametrize("time", [-2.0, -0.5, math.nan, math.inf])
def test_times_without_an_answer_are_refused(name, method, time):
    flow, t = make_flow(name, 3), torch.full((4, 1), 1.0, dtype=torch.float64)
    t[2] = time
    answer = getattr(flow, method)
    if flow.semigroup and math.isfinite(time):
        assert answer(t, make_states(4, 3)).isfinite().all()
        return
    with pytest.raises(ValueError, match=f"times must be finite.*got {time}"):
        answer(t, make_states(4, 3))


@any_flow
def test_a_flow_can_be_vectorised_and_differentiated(name):
    """By `torch.func`, inside which no time can be checked."""
    flow = make_flow(name, 3)
    t, x = times(4), make_states(4, 3)
    torch.testing.assert_close(torch.func.vmap(flow)(t, x), flow(t, x), atol=1e-14, rtol=1e-12)
    by_rows = torch.func.vmap(torch.func.jacrev(flow, argnums=1))(t, x)
    torch.testing.assert_close(by_rows.detach(), jacobian(flow, t, x), atol=1e-14, rtol=1e-12)
    gradient = torch.func.grad(lambda x: flow(t, x).sum())(x)
    torch.testing.assert_close(gradient, by_rows.detach().sum(1), atol=1e-14, rtol=1e-12)


@flows_that("bound")
@any_dim
@any_dtype
def test_states_stay_within_their_bound(name, dim, dtype):
    flow = make_flow(name, dim, dtype, num_layers=4)
    magnify_weights(flow)
    x = (1e3 * make_states(32, dim, dtype=dtype)).clamp(-1, 1) * flow.bound
    for time in TIMES:
        assert (flow(torch.full((1,), time, dtype=dtype), x).abs() <= flow.bound).all()


@flows_that("scannable")
@any_dim
def test_a_scannable_flow_is_linear(name, dim):
    flow, t = make_flow(name, dim), times(4)
    x, y = make_states(4, dim), make_states(4, dim)
    torch.testing.assert_close(
        flow(t, 2 * x - 3 * y), 2 * flow(t, x) - 3 * flow(t, y), atol=1e-12, rtol=0
    )


@flows_that("closed_inverse")
@any_dim
def test_a_closed_inverse_needs_no_iterations(name, dim):
    flow, t, x = make_flow(name, dim), times(4).clamp(max=1.0), make_states(4, dim)
    y = flow(t, x)
    found = flow.inverse(t, y, max_iter=0, tol=math.inf)
    torch.testing.assert_close(found, x)
    assert torch.equal(found, flow.inverse(t, y))


@any_flow
def test_a_closed_log_determinant_knows_no_largest_dimension(name):
    flow = make_flow(name, MAX_JACOBIAN_DIM + 2)
    t, x = times(2), make_states(2, flow.dim)
    if flow.closed_log_det:
        expected = torch.linalg.slogdet(jacobian(flow, t, x)).logabsdet
        torch.testing.assert_close(flow.log_abs_det_jacobian(t, x), expected)
    else:
        with pytest.raises(ValueError, match=f"dim={flow.dim}"):
            flow.log_abs_det_jacobian(t, x)


@any_flow_of_any_depth
@any_dim
def test_log_determinant_is_that_of_the_jacobian(name, options, dim):
    """The log-determinant of a product of D x D matrices in float64: about D roundings."""
    flow = make_flow(name, dim, **options)
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


@any_flow_of_any_embedding
@any_dim
def test_all_queries_in_one_call_equal_one_call_per_query(name, options, dim):
    """The same sums in another order: equal to within float64 rounding."""
    flow = make_flow(name, dim, **options)
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
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_does_not_change_the_initial_weights(name, dtype):
    """They are drawn in float32; what is computed from them there rounds in float32."""
    expected = make_flow(name, 6, torch.float32).state_dict()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        found = FLOWS[name](6).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    for label, weight in found.items():
        torch.testing.assert_close(
            weight, expected[label].to(dtype), rtol=max(1e-6, 2 * torch.finfo(dtype).eps), atol=1e-7
        )


@any_flow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_and_no_more(name, dtype):
    """Over four layers, to within 16 roundings of a state of size 1."""
    exact = make_flow(name, 6, torch.float32, num_layers=4)
    flow = copy.deepcopy(exact).to(dtype)
    t, x = times(8, dtype=torch.float32).to(dtype), make_states(8, 6, dtype=torch.float32).to(dtype)
    x.requires_grad_()
    y = flow(t, x)
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())
    expected = exact(t.float(), x.float())
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


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
    if not all(has_option(name, option) for option in options):
        pytest.skip("the flow has no such option")
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
