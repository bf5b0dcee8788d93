"""The border: every kind of gradients goes in and comes back as it came; what cannot be read is named."""

import numpy as np
import pytest
import torch

from fa import aggregate, make_rule, models
from fa.gradients import read, read_groups
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.inputs import lower_median

G = np.random.default_rng(0).standard_normal((4, 6))
MEAN = G.mean(axis=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_gives_an_array_of_its_dtype(dtype):
    d = aggregate(G.astype(dtype), "mean")
    assert isinstance(d, np.ndarray)
    assert d.dtype == dtype
    np.testing.assert_allclose(d, MEAN, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_gives_a_tensor_of_its_dtype(dtype):
    d = aggregate(torch.tensor(G, dtype=dtype, requires_grad=True), "mean")
    assert d.dtype == dtype
    assert not d.requires_grad
    np.testing.assert_allclose(d.double().numpy(), MEAN, atol=2e-2)


def test_a_contiguous_matrix_is_not_copied():
    tensor = torch.from_numpy(G)
    assert read(tensor).G.data_ptr() == tensor.data_ptr()
    assert read(G).G.data_ptr() == tensor.data_ptr()
    rows = torch.zeros(4, 10)[:, :6]
    assert read(rows).G.data_ptr() == rows.data_ptr()


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray(G),
        G[:, ::-1],
        G[::-1],
        np.repeat(G, 2, axis=1)[:, ::2],
        G.astype(">f8"),
        torch.from_numpy(G.T.copy()).T,
        torch.from_numpy(G).to_sparse().to_dense(),
    ],
)
def test_any_layout_is_read_by_its_values(layout):
    values = torch.as_tensor(np.ascontiguousarray(layout).astype("f8"))
    np.testing.assert_array_equal(read(layout).G, values)


@pytest.mark.parametrize("layout", [G[:1][::-1], G[:, :1][:, ::-1], G[:1, :1][::-1, ::-1]])
def test_a_negative_stride_along_a_dimension_of_one_is_read(layout):
    """numpy calls these contiguous, and torch refuses them."""
    np.testing.assert_allclose(aggregate(layout, "mean"), layout.mean(axis=0))


def test_a_read_only_array_is_read_without_a_warning():
    frozen = G.copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(aggregate(frozen, "mean"), MEAN)


def test_a_list_of_vectors_gives_a_vector():
    np.testing.assert_allclose(aggregate(list(G), "mean"), MEAN)
    np.testing.assert_allclose(aggregate(G.tolist(), "mean"), MEAN)


def test_lists_of_layers_give_a_list_of_layers():
    workers = [[torch.tensor(row[:4]).view(2, 2).float(), torch.tensor(row[4:])] for row in G]
    weight, bias = aggregate(workers, "mean")
    assert weight.shape == (2, 2)
    assert weight.dtype == torch.float32
    assert bias.dtype == torch.float64
    np.testing.assert_allclose(torch.cat([weight.double().flatten(), bias]).numpy(), MEAN, atol=1e-6)


def test_one_layer_in_a_list_stays_in_a_list():
    (layer,) = aggregate([[row.reshape(2, 3)] for row in G], "mean")
    np.testing.assert_allclose(layer, MEAN.reshape(2, 3))


def test_state_dicts_give_a_state_dict():
    weight, bias = torch.arange(6.0).view(2, 3), torch.ones(2)
    mean = aggregate([{"weight": weight + i, "bias": bias * i} for i in range(4)], "mean")
    assert list(mean) == ["weight", "bias"]
    torch.testing.assert_close(mean["weight"], weight + 1.5)
    torch.testing.assert_close(mean["bias"], bias * 1.5)


def test_a_models_state_dicts_are_averaged_and_their_batch_counts_are_the_median():
    """One worker that lies about its count moves nothing."""
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(3)]
    for worker, state in enumerate(states):
        state["conv1.weight"] += worker
        state["bn1.num_batches_tracked"] += (5, 6, 10**9)[worker]
    mean = aggregate(states, "mean")
    assert mean["bn1.num_batches_tracked"] == 6
    torch.testing.assert_close(mean["conv1.weight"], states[1]["conv1.weight"])
    model.load_state_dict(mean)


def test_blocks_of_any_layout_have_the_direction_of_the_matrix():
    wide = torch.from_numpy(np.random.default_rng(1).standard_normal((100, 5)))
    for name in ("mean", "median", "fa"):
        rule = make_rule(name)
        (d,), _ = rule.aggregate_blocks(ColumnBlocks((wide.T,)))
        torch.testing.assert_close(d, rule(wide.T.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_median_is_of_the_entries_and_keeps_no_more_memory(dtype, shape):
    tensors = [torch.full(shape, value, dtype=dtype) for value in (4, 1, 9, 2)]
    median = lower_median(tensors)
    assert torch.equal(median, tensors[3])
    assert median.dtype == dtype
    assert median.untyped_storage().nbytes() == tensors[3].untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("second", "pattern"),
    [
        (np.ones((2, 3, 1)), r"2 dimensions.*\(2, 3, 1\)"),
        (np.ones((0, 3)), r"\(0, 3\)"),
        (torch.ones(3, dtype=torch.int64), "int64"),
        (torch.ones(2, 3).to_sparse(), "sparse"),
    ],
)
def test_a_worker_whose_gradients_cannot_be_read_is_named(second, pattern):
    first = torch.ones(2, 3) if isinstance(second, torch.Tensor) else np.ones((2, 3))
    with pytest.raises(ValueError, match=rf"^worker 1 must be .*{pattern}"):
        read_groups([first, second])


@pytest.mark.parametrize(
    ("bad", "pattern"),
    [
        (np.zeros((0, 5)), r"^G must .*\(0, 5\)"),
        (np.zeros((3, 0)), r"^G must .*\(3, 0\)"),
        (np.zeros(5), r"^G must .*\(5,\)"),
        (np.zeros((2, 3, 4)), r"^G must .*\(2, 3, 4\)"),
        (np.zeros((2, 3), dtype=int), "int64"),
        (np.zeros((2, 3), dtype=complex), "complex128"),
        (np.zeros((2, 3), dtype=np.longdouble), "float(96|128)"),
        (torch.zeros(2, 3, dtype=torch.int32), "int32"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 3).to_sparse(), r"^G must be .*\bsparse"),
        ([], r"^G must .*\bempty\b"),
        ([np.zeros(3), np.zeros(4)], r"\bworker 1 must .*\(3,\).*\(4,\)"),
        ([{"a": np.zeros(3)}, {"b": np.zeros(3)}], r"\bworker 1 must .*\['a'\].*\['b'\]"),
        ([[np.zeros(2), np.zeros(2)], [np.zeros(2)]], r"\bworker 1 must "),
        ([{"n": torch.tensor(3)}], r"\bworker 0 must .*float16"),
        ([[torch.tensor([3])]], r"\bworker 0, entry 0 must be .*int64"),
        ([[None], [None]], r"\bworker 0, entry 0 must be .*\bNone\b"),
        ([iter([torch.ones(2)])], r"\bworker 0\b.* must be .*\blist_iterator\b"),
        ([[{"w": torch.ones(2)}]], r"\bworker 0, entry 0 must be .*\bdict\b"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(2).double()}], r"'a'.*torch\.float32.*torch\.float64"),
        ([np.zeros(0)], r"\bworker 0 must "),
        ("gradients", r"^G must be .*\bstr\b"),
        (None, r"^G must be .*\bNoneType\b"),
    ],
)
def test_what_cannot_be_read_is_named(bad, pattern):
    with pytest.raises(ValueError, match=pattern):
        aggregate(bad, "mean")
