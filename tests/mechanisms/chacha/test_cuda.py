"""Properties that only a GPU can show: graph replays, concurrent streams, and no synchronisation."""

import gc

import numpy as np
import pytest
import torch

from mechanisms import ClippedUnit, SecureGenerator
from mechanisms.chacha import backends, tensor_ops
from mechanisms.chacha import stream as stream_module
from mechanisms.chacha.stream import DeviceStream
from mechanisms.engines.base import ClippedSum
from mechanisms.noise import Gaussian
from mechanisms.noise_check import require_sound_noise

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
#: Sizes: a bias, a small network, and one beyond the switch to larger programs.
SIZES = [7, 61_684, 3_000_001]


@pytest.fixture
def cuda():
    return torch.device("cuda", torch.cuda.current_device())


def captured(work):
    graph = torch.cuda.CUDAGraph()
    work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph


def assert_equal(what, found, expected):
    difference = backends.difference_in(what, found.cpu().numpy(), expected.cpu().numpy())
    assert not difference, difference


def test_triton_is_used_if_installed(cuda):
    pytest.importorskip("triton")
    assert backends.backend_for(cuda)[0] == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_is_added_in_place_without_synchronisation(cuda, dtype, without_waiting):
    generator, target = SecureGenerator(), torch.full((200_000,), 5.0, dtype=dtype, device=cuda)
    generator.add_normal_(target.clone(), 2.0)
    with without_waiting():
        assert generator.add_normal_(target, 2.0) is target
    numbers = target.double() - 5.0
    assert abs(float(numbers.mean())) < 6 * 2 / 200_000**0.5
    assert abs(float(numbers.std()) / 2 - 1) < 6 / 400_000**0.5


@pytest.mark.parametrize("size", SIZES)
def test_each_replay_of_a_graph_draws_the_next_numbers_of_the_stream(cuda, size):
    generator, eager = SecureGenerator(3), SecureGenerator(3)
    target = torch.zeros(size, device=cuda)
    graph = captured(lambda: generator.add_normal_(target.zero_(), 1.5))
    for replay in range(-1, 4):
        expected = eager.add_normal_(torch.zeros(size, device=cuda), 1.5)
        if replay >= 0:
            graph.replay()
            assert_equal(f"replay {replay}, number", target, expected)
    assert generator.position == eager.position


def test_graphs_of_noise_and_coins_and_eager_draws_share_one_stream(cuda):
    generator, eager = SecureGenerator(4), SecureGenerator(4)
    target, mask = torch.zeros(1000, device=cuda), torch.zeros(777, dtype=torch.bool, device=cuda)
    noise = captured(lambda: generator.add_normal_(target.zero_()))
    coins = captured(lambda: mask.copy_(generator.bernoulli_mask(777, 0.3, cuda)))
    eager.add_normal_(torch.zeros(1000, device=cuda)), eager.bernoulli_mask(777, 0.3, cuda)
    for turn in range(3):
        noise.replay(), coins.replay()
        assert_equal(f"turn {turn}, number", target, eager.add_normal_(torch.zeros(1000, device=cuda)))
        assert_equal(f"turn {turn}, coin", mask, eager.bernoulli_mask(777, 0.3, cuda))
        assert_equal(
            f"turn {turn}, eager number",
            generator.add_normal_(torch.zeros(55, device=cuda)),
            eager.add_normal_(torch.zeros(55, device=cuda)),
        )


def test_a_graph_reads_its_scale_again_at_each_replay(cuda):
    generator, target = SecureGenerator(), torch.zeros(100_000, device=cuda)
    scale = torch.ones((), device=cuda)
    graph = captured(lambda: generator.add_normal_(target.zero_(), scale))
    for stated in (1.0, 0.25, 8.0):
        scale.fill_(stated)
        graph.replay()
        assert abs(float(target.std()) / stated - 1) < 6 / 200_000**0.5


@pytest.mark.parametrize(
    "work", [lambda made, at: made.add_normal_(torch.zeros(9, device=at)), lambda made, at: made.seek(0)]
)
def test_a_stream_cannot_be_started_or_moved_during_a_capture(cuda, work):
    generator = SecureGenerator(6)
    if "seek" in work.__code__.co_names:
        generator.add_normal_(torch.zeros(9, device=cuda))
    with pytest.raises(RuntimeError, match="secure stream while a CUDA graph is captured"):  # noqa: SIM117
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            work(generator, cuda)


def test_a_captured_stream_outlives_its_generator(cuda):
    eager, target = SecureGenerator(7), torch.zeros(1000, device=cuda)

    def graph_of_a_generator_that_is_gone():
        generator = SecureGenerator(7)
        return captured(lambda: generator.add_normal_(target.zero_()))

    graph = graph_of_a_generator_that_is_gone()
    eager.add_normal_(torch.zeros(1000, device=cuda))
    gc.collect()
    junk = [torch.full((14,), number, dtype=torch.int32, device=cuda) for number in range(2000)]
    graph.replay()
    assert len(junk) == 2000
    assert_equal("number", target, eager.add_normal_(torch.zeros(1000, device=cuda)))


def test_torch_operations_can_be_captured_and_give_the_same_words(cuda, monkeypatch):
    expected = SecureGenerator(8)
    monkeypatch.setattr(stream_module, "backend_for", lambda device: ("torch", tensor_ops))
    generator, target = SecureGenerator(8), torch.zeros(5001, device=cuda)
    graph = captured(lambda: generator.add_normal_(target.zero_()))
    monkeypatch.undo()
    expected.add_normal_(torch.zeros(5001, device=cuda))
    for replay in range(3):
        graph.replay()
        found, wanted = target.cpu().numpy(), expected.add_normal_(torch.zeros(5001, device=cuda)).cpu().numpy()
        assert backends.difference_in(f"replay {replay}, number", found, wanted, 2e-5) == ""


def test_concurrent_draws_on_several_cuda_streams_share_no_block(cuda):
    pytest.importorskip("triton")
    made = DeviceStream(bytes(range(40)), cuda)
    made.coins(5, 2**63), made.add_normal_(torch.zeros(5, device=cuda))
    torch.cuda.synchronize()
    before, sides, found = made.blocks, [torch.cuda.Stream() for _ in range(4)], []
    for _ in range(100):
        for side in sides:
            with torch.cuda.stream(side):
                found.append(made.add_normal_(torch.zeros(50, device=cuda)))
    torch.cuda.synchronize()
    rows = torch.stack(found).cpu().numpy()
    assert made.blocks - before == 400 * 5
    repeated = 400 - len(np.unique(rows, axis=0))
    assert repeated == 0, f"{repeated} of 400 draws repeat another one"
    # The first pair of each block of each draw: overlapping draws would share some of them.
    pairs = np.stack([rows[:, :5].ravel(), rows[:, 5:10].ravel()], axis=1)
    assert len(np.unique(pairs, axis=0)) == 2000


def test_a_draw_of_millions_has_the_stated_scale_everywhere(cuda):
    numbers = SecureGenerator().add_normal_(torch.zeros(50_000_003, device=cuda), 3.0)
    parts = numbers[:50_000_000].view(500, -1).double()
    assert float((parts.std(dim=1) / 3 - 1).abs().max()) < 6.5 / 200_000**0.5
    assert float((parts.mean(dim=1) / 3).abs().max()) < 6.5 / 100_000**0.5
    assert 5.0 < float(numbers.abs().max()) / 3 < 9.5


@pytest.mark.parametrize("rate", [0.001, 0.3, 1 - 2.0**-40])
def test_coins_have_the_stated_rate_and_need_no_synchronisation(cuda, rate, without_waiting):
    generator = SecureGenerator()
    generator.bernoulli_mask(10, rate, cuda)
    with without_waiting():
        mask = generator.bernoulli_mask(2_000_003, rate, cuda)
    expected, spread = 2_000_003 * rate, (2_000_003 * rate * (1 - rate)) ** 0.5
    assert abs(int(mask.sum()) - expected) < 6.5 * spread + 1
    assert bool(generator.bernoulli_mask(10, 1.0, cuda).all())


def test_a_position_restores_the_stream_of_the_device(cuda):
    original, resumed = SecureGenerator(9), SecureGenerator(9)
    original.add_normal_(torch.zeros(1234, device=cuda)), original.words(3)
    resumed.seek(original.position)
    assert resumed.position == original.position > 2**64
    assert_equal("number", resumed.normal(99, device=cuda), original.normal(99, device=cuda))
    assert resumed.words(2).tolist() == original.words(2).tolist()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_have_different_keys():
    generator = SecureGenerator(10)
    first, second = (generator.normal(1000, torch.float32, device=f"cuda:{number}").cpu() for number in (0, 1))
    assert not torch.isin(first, second).any()


def test_the_noise_mechanism_passes_its_trial_on_the_device(cuda, without_waiting):
    noise, unit = Gaussian(initial_noise_multiplier=1.3), ClippedUnit(1, 16)
    assert require_sound_noise(noise, unit, range(100), like=torch.zeros(5000, device=cuda)) == ()
    grad = torch.full((200_000,), 2.0, device=cuda)
    summed = ClippedSum(grad, torch.zeros(0, 1, device=cuda), 0.5, 0.5)
    noise.add(summed, 0)  # the first use on a device creates its stream
    grad.fill_(2.0)
    with without_waiting():
        released = noise.add(summed, 0)
    assert released.data_ptr() == grad.data_ptr()
    assert abs(float((released - 2.0).std()) / 0.65 - 1) < 6 / 400_000**0.5
