"""Unusual networks: some engine gives each the loop's numbers, or refuses it by name."""

from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mechanisms.engines import ENGINES, Batch, BookKeepingEngine, LoopEngine, VmapEngine, choose_engine
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

from .conftest import clip_of, close, exact_sum

X, Y = torch.linspace(-1, 1, 24).view(6, 4), torch.arange(6) % 3


def engine_of(network, x=X, y=Y, loss_fn=None, name="auto"):
    return choose_engine(name, network, loss_fn or nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(x[:4], y[:4])).engine


def assert_loops_numbers(engine, network, x=X, y=Y, loss_fn=None, bound=0.5):
    loss_fn = loss_fn or nn.CrossEntropyLoss()
    expected = exact_sum(engine.unit, network, loss_fn, Batch(x, y), clip_of(bound=bound))
    found = engine.clipped_sum(network, loss_fn, Batch(x, y), clip_of(bound=bound))
    assert close(found.norms, expected.norms, 1e-5)
    assert close(found.flat_grad, expected.flat_grad, 1e-5)


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.net = nn.Sequential(self.one, nn.Tanh(), self.two)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.net(x) * self.scale


@pytest.mark.parametrize("engine", [BookKeepingEngine, VmapEngine])
def test_a_module_with_two_names_keeps_its_parameters(engine):
    network = TwoNames()
    before = dict(network.named_parameters())
    assert engine.refuses(network, nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(X, Y)) is None
    assert_loops_numbers(engine(ClippedUnit(1, 6)), network)
    after = dict(network.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    assert after.keys() == before.keys()


class TiedTables(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens).mean(1)))


@pytest.mark.parametrize("engine", [BookKeepingEngine, VmapEngine])
def test_tied_parameters_of_two_modules_are_one(engine):
    tokens = torch.arange(12).view(6, 2) % 5
    assert_loops_numbers(engine(ClippedUnit(1, 6)), TiedTables(), tokens, Y)


def test_a_single_number_is_trained_by_the_fast_engines():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.layer(x) * self.scale

    for name in ("auto", "vmap"):
        engine = engine_of(Scaled(), name=name)
        assert engine.name == {"auto": "bookkeeping"}.get(name, name)
        assert_loops_numbers(engine, Scaled())


class TimeFirst(nn.Module):
    """Blocks that training skips at random, with the examples in the second dimension."""

    def __init__(self, left_out):
        super().__init__()
        self.linear, self.head, self.left_out = nn.Linear(4, 4), nn.Linear(4, 3), left_out
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.taken = []

    def forward(self, x):
        h = self.linear(x.transpose(0, 1))
        self.taken = [not (self.training and torch.rand(()) < self.left_out) for _ in self.blocks]
        for block, taken in zip(self.blocks, self.taken, strict=True):
            h = h + torch.tanh(block(h)) if taken else h
        return self.head(h.mean(0))


def test_the_dimension_of_the_examples_is_found():
    x = torch.randn(6, 6, 4)  # as many positions as examples, so that sizes alone are ambiguous
    engine = engine_of(TimeFirst(0.0).eval(), x)
    assert engine.name == "bookkeeping"
    assert_loops_numbers(engine, TimeFirst(0.0).eval(), x)


def test_a_random_decision_for_the_whole_batch_runs_in_the_fast_engine():
    assert engine_of(TimeFirst(0.5), torch.randn(6, 6, 4)).name == "bookkeeping"


class Tokened(nn.Module):
    """A module with its own parameter, two levels deep; one weight may be used outside its layer."""

    def __init__(self, inner=None, shared=False):
        super().__init__()
        self.token, self.first = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 4)
        self.inner, self.shared = inner, shared

    def forward(self, x):
        x = torch.tanh(self.first(x * self.token))
        x = x if self.inner is None else self.inner(x)
        return F.linear(x, self.first.weight) if self.shared else x + self.token


@pytest.mark.parametrize("engine", ENGINES.names())
def test_submodules_beside_a_parameter_keep_their_rules(engine):
    network = nn.Sequential(Tokened(Tokened()), nn.Linear(4, 3))
    built = engine_of(network, name=engine)
    assert_loops_numbers(built, network)
    if engine == "bookkeeping":
        told = built.explain()
        assert "0 (Tokened): own parameters vectorised over examples" in told
        assert "0.inner.first (Linear): layer rule" in told


def test_a_weight_used_outside_its_layer_makes_the_module_one_site():
    network = nn.Sequential(Tokened(shared=True), nn.Linear(4, 3))
    built = engine_of(network)
    assert built.name == "bookkeeping"
    assert_loops_numbers(built, network)
    assert "0 (Tokened): vectorised over examples" in built.explain()


def test_own_parameters_are_restored_after_a_failed_pass():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("of the user's own")

    network = Tokened(Failing())
    token, names = network.token, list(network._parameters)
    with pytest.raises(ValueError, match="of the user's own"):
        assert_loops_numbers(ENGINES.create("bookkeeping", ClippedUnit(1, len(X))), network)
    assert network.token is token
    assert list(network._parameters) == names


class Gated(nn.Module):
    """Mixes rows after a layer whose weights start at zero."""

    def __init__(self):
        super().__init__()
        self.inner, self.out, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        b, t, d = x.shape
        folded = torch.tanh(self.inner(x.transpose(0, 1).reshape(t * b, d))).view(t, b, d).transpose(0, 1)
        return self.head((x + self.out(folded)).mean(1))


def test_rows_that_a_batch_would_mix_stay_separate_in_an_isolated_pass():
    network, x = Gated(), torch.randn(6, 3, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = engine_of(network, x)
    assert_loops_numbers(engine, network, x)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_with_a_parameter_gradient_hook_uses_the_loop():
    network = nn.Sequential(nn.Linear(4, 3))
    network[0].weight.register_hook(lambda grad: grad * 0)
    engine = engine_of(network)
    assert engine.name == "loop"
    found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(X, Y), clip_of())
    assert not found.flat_grad[:12].any()
    assert found.flat_grad[12:].any()


def test_a_network_with_an_output_gradient_hook_uses_an_engine_that_runs_it():
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x)
            if h.requires_grad:
                h.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
            return self.b(h)

    network = Clamped()
    assert engine_of(network).name in ("vmap", "loop")
    assert_loops_numbers(engine_of(network), network)


def test_a_reentrant_checkpoint_is_refused_and_a_non_reentrant_one_is_not():
    class Saving(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.a, self.b, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 3), reentrant

        def forward(self, x):
            x = x.detach().requires_grad_()
            return self.b(checkpoint(self.a, x, use_reentrant=self.reentrant))

    def branching(outputs, y):  # not supported by vmap
        return outputs.sum() if float(outputs.detach().abs().max()) > 1e9 else F.cross_entropy(outputs, y)

    for loss_fn in (None, branching):
        with pytest.raises(UnsupportedModuleError, match="use use_reentrant=False"):
            engine_of(Saving(True), loss_fn=loss_fn)
    network = Saving(False)
    assert_loops_numbers(engine_of(network), network)


@pytest.mark.parametrize("name", ["bookkeeping", "vmap", "loop"])
def test_gradients_are_computed_even_if_the_caller_has_disabled_them(name):
    network = nn.Linear(4, 3)
    with torch.no_grad():
        assert_loops_numbers(engine_of(network, name=name), network)


def test_complex_parameters_are_refused_by_name():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

        def forward(self, x):
            return (x.to(torch.cfloat) @ self.weight).abs()

    with pytest.raises(UnsupportedModuleError, match="parameter 'weight' is complex"):
        engine_of(Fourier())


def test_sparse_gradients_of_a_table_equal_dense_ones():
    network = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    tokens = torch.arange(12).view(6, 2) % 9
    for name in ("auto", "loop"):
        engine = engine_of(network, tokens, name=name)
        sums = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(tokens, Y), clip_of()).flat_grad
        network[0].sparse = False
        assert close(
            sums,
            LoopEngine(engine.unit).clipped_sum(network, nn.CrossEntropyLoss(), Batch(tokens, Y), clip_of()).flat_grad,
            1e-5,
        )
        network[0].sparse = True


def test_outputs_in_a_named_tuple_are_accepted():
    Scores = namedtuple("Scores", "scores hidden")

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = torch.tanh(self.a(x))
            return Scores(self.b(hidden), hidden)

    def loss(outputs, y):
        return F.cross_entropy(outputs.scores, y)

    network = Named()
    for name in ("vmap", "loop", "auto"):
        assert_loops_numbers(engine_of(network, loss_fn=loss, name=name), network, loss_fn=loss)


def test_outputs_of_a_custom_type_are_accepted_with_a_loss_that_supports_it():
    @dataclass
    class Scores:
        logits: torch.Tensor
        cache: None = None

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return Scores(self.layer(x))

    def loss(outputs, y):
        return F.cross_entropy(outputs.logits, y)

    network = Own()
    for name in ("auto", "vmap", "loop"):
        assert_loops_numbers(engine_of(network, loss_fn=loss, name=name), network, loss_fn=loss)


@pytest.mark.parametrize("engine", [BookKeepingEngine, VmapEngine, LoopEngine])
@pytest.mark.parametrize(
    ("network", "x", "scale"),
    [
        (nn.Linear(1000, 1, bias=False), torch.full((1, 1000), 2e-23), -9e18),
        (nn.Conv2d(1000, 1, 1, bias=False), torch.full((1, 1000, 1, 1), 2e-23), -9e18),
        (nn.Linear(4, 1, bias=False), torch.full((1, 4), 1e19), 1e-24),
    ],
)
def test_squares_that_underflow_do_not_hide_a_gradient_from_clipping(engine, network, x, scale):
    nn.init.zeros_(network.weight)
    bound = 1e-6
    clip = clip_of(bound=bound)
    found = engine(ClippedUnit(1, 1)).clipped_sum(
        network, lambda out, y: (out * y).sum(), Batch(x, torch.full((1, 1), scale)), clip
    )
    assert found.flat_grad.double().norm() <= bound


def test_an_input_that_the_network_overwrites_is_preserved():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.mul_(2))

    x = X.clone()
    engine_of(Doubling(), x)
    assert torch.equal(x, X)


def test_the_choice_of_an_engine_draws_nothing_from_the_public_generator():
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    before = torch.get_rng_state()
    for name in ("auto", "vmap"):
        engine_of(network, name=name)
    assert torch.equal(before, torch.get_rng_state())


def test_an_activation_that_the_network_keeps_does_not_outlive_the_pass():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)
            self.kept = None

        def forward(self, x):
            self.kept = torch.relu(self.conv(x))
            return self.head(F.max_pool2d(self.kept, 2).flatten(1))

    network, x = Keeping(), torch.randn(6, 1, 6, 6)
    engine = engine_of(network, x)
    found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, Y), clip_of())
    assert network.kept is None
    expected = LoopEngine(engine.unit).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, Y), clip_of())
    assert close(found.flat_grad, expected.flat_grad, 1e-5)


def test_ignored_positions_do_not_scale_an_example():
    network = nn.Conv1d(4, 3, 1)
    x, y = torch.randn(2, 4, 5), torch.tensor([[0, 1, 2, 0, 1], [2, 1, -100, -100, -100]])
    for loss_fn in (nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy, ignore_index=-100)):
        unit = ClippedUnit(1, 2)
        whole = LoopEngine(unit).clipped_sum(network, loss_fn, Batch(x, y), clip_of(bound=1e9))
        short = LoopEngine(unit).clipped_sum(network, loss_fn, Batch(x[1:, :, :2], y[1:, :2]), clip_of(bound=1e9))
        assert whole.norms[1].item() == pytest.approx(short.norms[0].item(), rel=1e-5)
        assert_loops_numbers(BookKeepingEngine(unit), network, x, y, loss_fn)
        assert_loops_numbers(VmapEngine(unit), network, x, y, loss_fn)


class Adapted(nn.Module):
    """A low-rank adapter with dropout whose second factor starts at zero."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 3), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.base(x) + self.up(self.dropout(self.down(x)))


def test_dropout_before_zero_weights_is_recognised():
    for _ in range(4):
        assert engine_of(Adapted()).name == "bookkeeping"


def test_weights_with_a_restricted_domain_are_not_perturbed():
    class Metric(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.head = nn.Parameter(torch.eye(4) * 0.05 + 1.0), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x @ torch.linalg.cholesky(self.matrix))

    network = Metric()
    assert_loops_numbers(engine_of(network), network)


def test_attention_whose_dropout_needs_evaluation_mode_to_be_compared_keeps_the_fast_engine():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.block(x).mean(1))

    fast = torch.backends.mha.get_fastpath_enabled()
    assert engine_of(Encoder(), torch.randn(6, 5, 4)).name == "bookkeeping"
    assert torch.backends.mha.get_fastpath_enabled() is fast


def test_code_that_runs_only_in_evaluation_mode_does_not_affect_the_choice():
    class TwoWays(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            if not self.training:
                raise RuntimeError("only for training")
            return self.layer(x)

    assert engine_of(TwoWays()).name == "bookkeeping"
