"""Modules of PyTorch as functions, and back: what their operators compute, what moves, and every bit.
Run by `make test-torch`; without PyTorch they are skipped."""

import copy
import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import git_rebasin as gr
from git_rebasin.torch import from_torch, operator, to_torch
from git_rebasin.torch.operators import OPERATORS
from git_rebasin.torch.tensors import to_array, to_tensor

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
_pytree = pytest.importorskip("torch.utils._pytree")
nn = torch.nn


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


def drawn(module, seed: int = 0):
    """The module in evaluation mode, with numbers that are all drawn."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if x.is_floating_point():
                x.uniform_(0.5, 2.0) if name.endswith("_var") else x.normal_(0.0, 0.5)
    return module.eval()


def tensor(*shape: int, dtype=None):
    torch.manual_seed(1)
    return torch.randn(shape) if dtype is None else torch.randint(0, 5, shape, dtype=dtype)


def same_outputs(module, *inputs, rtol: float = 2e-5, **options) -> None:
    """What the function gives is what the module gives: numbers, shapes and types."""
    fn, params, _ = from_torch(module, inputs, **options)
    with torch.no_grad():
        wanted = _pytree.tree_leaves(module(*inputs, **options))
    given = jax.tree.leaves(jax.jit(fn)(params, *(x.numpy() for x in inputs)))
    assert len(given) == len(wanted)
    for g, w in zip(given, wanted, strict=True):
        w = w.resolve_conj().numpy()
        assert g.dtype == jax.dtypes.canonicalize_dtype(w.dtype)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * np.abs(w).max(initial=1e-9))


# ---- operators

X = (2, 6, 9)  # a batch of series
IMAGE = (2, 6, 9, 8)
LAYERS: dict[str, Any] = {
    "Linear": lambda: (nn.Linear(9, 4), X),
    "Bilinear": lambda: (Of(nn.Bilinear(9, 9, 4)), X, X),
    "Conv1d": lambda: (nn.Conv1d(6, 4, 3, stride=2, dilation=2, padding=1), X),
    "Conv2d, same": lambda: (nn.Conv2d(6, 4, (3, 2), padding="same", groups=2), IMAGE),
    "Conv2d, reflect": lambda: (nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), IMAGE),
    "Conv2d, circular": lambda: (nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), IMAGE),
    "Conv3d": lambda: (nn.Conv3d(2, 4, 2, stride=2), (2, 2, 5, 4, 6)),
    "ConvTranspose1d": lambda: (nn.ConvTranspose1d(6, 4, 3, 2, 1, 1, dilation=2), X),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "ConvTranspose3d": lambda: (nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 3, 3, 3)),
    "BatchNorm1d": lambda: (nn.BatchNorm1d(6), X),
    "BatchNorm2d, no statistics": lambda: (
        nn.BatchNorm2d(6, track_running_stats=False, affine=False),
        IMAGE,
    ),
    "GroupNorm": lambda: (nn.GroupNorm(3, 6), IMAGE),
    "InstanceNorm2d": lambda: (nn.InstanceNorm2d(6, affine=True), IMAGE),
    "LayerNorm": lambda: (nn.LayerNorm((6, 9), bias=False), X),
    "RMSNorm": lambda: (nn.RMSNorm(9), X),
    "LocalResponseNorm": lambda: (nn.LocalResponseNorm(3), IMAGE),
    "MaxPool1d": lambda: (nn.MaxPool1d(3, 2, 1), X),
    "MaxPool2d, ceil": lambda: (nn.MaxPool2d(2, 2, 0, ceil_mode=True), IMAGE),
    "MaxPool2d, dilated": lambda: (nn.MaxPool2d(3, 2, 1, 2), IMAGE),
    "AvgPool1d": lambda: (nn.AvgPool1d(4, 3, ceil_mode=True, count_include_pad=False), X),
    "AvgPool2d": lambda: (nn.AvgPool2d(3, 2, 1), IMAGE),
    "AvgPool2d, without": lambda: (nn.AvgPool2d(3, 2, 1, True, False), IMAGE),
    "AvgPool3d": lambda: (nn.AvgPool3d(2, divisor_override=3), (2, 2, 4, 4, 4)),
    "AdaptiveAvgPool1d": lambda: (nn.AdaptiveAvgPool1d(4), X),
    "AdaptiveAvgPool2d": lambda: (nn.AdaptiveAvgPool2d((4, None)), IMAGE),
    "AdaptiveAvgPool2d, 1": lambda: (
        Of(lambda x: nn.functional.adaptive_avg_pool2d(x.to(memory_format=torch.channels_last), 1)),
        IMAGE,
    ),
    "LSTM": lambda: (nn.LSTM(9, 5, 2, bidirectional=True, batch_first=True), X),
    "GRU": lambda: (nn.GRU(9, 5), X),
    "RNN": lambda: (nn.RNN(9, 5, nonlinearity="relu"), X),
    "MultiheadAttention": lambda: (nn.MultiheadAttention(6, 3), *[(4, 2, 6)] * 3),
    "TransformerEncoderLayer": lambda: (
        nn.TransformerEncoderLayer(6, 3, 8, batch_first=True, norm_first=True),
        (2, 4, 6),
    ),
    "TransformerDecoderLayer": lambda: (
        nn.TransformerDecoderLayer(6, 3, 8, activation="gelu"),
        *[(4, 2, 6)] * 2,
    ),
    "Upsample, nearest": lambda: (nn.Upsample(scale_factor=2), IMAGE),
    "Upsample, to a size": lambda: (nn.Upsample((5, 11)), IMAGE),
    "Upsample, linear": lambda: (nn.Upsample(scale_factor=1.7, mode="linear"), X),
    "Upsample, bilinear": lambda: (nn.Upsample((5, 11), mode="bilinear"), IMAGE),
    "Upsample, aligned": lambda: (nn.Upsample((5, 11), mode="bilinear", align_corners=True), IMAGE),
    "Upsample, bicubic": lambda: (nn.Upsample((5, 11), mode="bicubic"), IMAGE),
    "Upsample, trilinear": lambda: (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 2, 3, 4, 5)),
    "PixelShuffle": lambda: (nn.PixelShuffle(2), (2, 8, 3, 4)),
    "PixelUnshuffle": lambda: (nn.PixelUnshuffle(2), (2, 3, 4, 6)),
    "ChannelShuffle": lambda: (nn.ChannelShuffle(3), IMAGE),
    "Unfold": lambda: (nn.Unfold(3, padding=1), IMAGE),
    "Softmax": lambda: (nn.Softmax(1), X),
    "LogSoftmax": lambda: (nn.LogSoftmax(-1), X),
    "GLU": lambda: (nn.GLU(1), X),
    "PReLU": lambda: (nn.PReLU(6), X),
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(9, 4)), X),
    "spectral norm": lambda: (nn.utils.parametrizations.spectral_norm(nn.Linear(9, 4)), X),
    "CosineSimilarity": lambda: (nn.CosineSimilarity(), X, X),
}
ACTIVATIONS = (
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Softplus Softsign Hardtanh "
    "Hardswish Hardsigmoid LogSigmoid Tanhshrink Hardshrink Softshrink Threshold"
).split()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name):
    module, *shapes = LAYERS[name]()
    same_outputs(drawn(module), *(tensor(*shape) for shape in shapes))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_compute_the_same(name):
    arguments = {"Threshold": (0.1, 20.0)}.get(name, ())
    same_outputs(getattr(nn, name)(*arguments), 3 * tensor(40))


F = nn.functional
FUNCTIONS = {
    "arithmetic": lambda x, y: torch.add(x, y, alpha=2) / (y.abs() + 1) - 3 * torch.sub(2, x),
    "powers": lambda x, y: [x**2, x.abs() ** 0.5, (x.abs() + 1) ** -0.5, 2**y, (x.abs() + 1) ** y],
    "rounding": lambda x, y: [x // 0.5, torch.div(x, 0.3, rounding_mode="trunc"), x % 0.7],
    "remainders": lambda x, y: [torch.fmod(x, 0.7), torch.remainder(x, y.abs() + 1), x.round()],
    "special": lambda x, y: [x.erf(), x.exp(), x.abs().log1p(), x.expm1(), torch.atan2(x, y)],
    "clamped": lambda x, y: [x.clamp(-1, 1), x.clamp(min=y), torch.clamp_max(x, 0.3), x.clip(0)],
    "logic": lambda x, y: [(x > y) & (x != 0) | ~(y <= 1), torch.where(x > y, x, 0.0), x.isnan()],
    "filled": lambda x, y: [x.masked_fill(x > 0, -1.0), torch.full_like(x, 7), x.new_ones(3)],
    "sums": lambda x, y: [x.sum(), x.sum(1), x.mean((0, 2), keepdim=True), x.prod(1), x.cumsum(1)],
    "extremes": lambda x, y: [x.max(), x.max(1), x.min(2)[0], x.amax((0, 1)), torch.max(x, y)],
    "spread": lambda x, y: [x.var(), x.std(1), x.var((0, 2), correction=0), *torch.var_mean(x, 1)],
    "norms": lambda x, y: [x.norm(), x.norm(1, dim=1), F.normalize(x, dim=1), x.norm(torch.inf)],
    "order": lambda x, y: [*x.topk(2, 1), *x.sort(1, True), x.argsort(-1), *x.topk(2, largest=False)],
    "places": lambda x, y: [x.argmax(1), x.argmin(), x.argmax(2, keepdim=True)],
    "any": lambda x, y: [(x > 0).any(), (x > 0).all(1), x.logsumexp(1), x.cumprod(0)],
    "shapes": lambda x, y: [x.view(2, -1), x.transpose(0, -1), x.permute(2, 0, 1), x[None].squeeze(0)],
    "joined": lambda x, y: [torch.cat([x, y], 1), torch.stack([x, y], -1), x.repeat(2, 1, 1)],
    "repeated": lambda x, y: [x.repeat_interleave(2, 1), x[:1].expand(4, -1, -1), x.tile(2)],
    "pieces": lambda x, y: [*x.chunk(4, 1), *x.split([1, 5], 1), *x.unbind(0), x.narrow(1, 1, 2)],
    "slices": lambda x, y: [x[:, 1:-1:2], x[..., -1], x[0, 2:], x[:, None, 3], x.select(1, -2)],
    "picked": lambda x, y: [x[:, [0, 2]], x[[0, 1], [2, 3]], x.index_select(1, torch.arange(2))],
    "gathered": lambda x, y: [x.gather(1, x.argsort(1)), x.gather(1, (x[:, :2] > 0).long())],
    "scattered": lambda x, y: [
        torch.zeros_like(x).scatter(1, x.argsort(1), y),
        torch.zeros_like(x).scatter_add(1, (x > 0).long(), y),
        x.scatter(1, (x[:, :2] > 0).long(), 9.0),
    ],
    "in place": lambda x, y: x.clone().mul_(2).add_(y).relu_(),
    "written": lambda x, y: _written(x, y),
    "rolled": lambda x, y: [x.roll(2, 1), x.roll((1, -1), (1, 2)), x.roll(3), x.flip(1, 2)],
    "padded": lambda x, y: [F.pad(x, (1, 2)), F.pad(x, (-1, 1, 2, -2), value=3.0)],
    "edges": lambda x, y: [F.pad(x, (2, 1), mode="reflect"), F.pad(x, (1, 2), mode="replicate")],
    "triangles": lambda x, y: [x.tril(), x.triu(1), x.diagonal(1, 1, 2), torch.eye(3)],
    "made": lambda x, y: [torch.arange(5), torch.arange(1, 2, 0.25), torch.linspace(0, 1, 4)],
    "windows": lambda x, y: x.unfold(1, 3, 2),
    "products": lambda x, y: [x @ y.mT, torch.bmm(x, y.mT), torch.einsum("bij,bkj->ki", x, y)],
    "vectors": lambda x, y: [x[0, 0] @ y[0, 0], x @ y[0, 0], torch.outer(x[0, 0], y[0, 0])],
    "added products": lambda x, y: torch.baddbmm(x @ y.mT, x, y.mT, beta=0.5, alpha=2),
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, y, is_causal=True, scale=0.3),
    "masked": lambda x, y: F.scaled_dot_product_attention(x, y, y, torch.ones(6, 6).tril(-1) > 0),
    "biased": lambda x, y: F.scaled_dot_product_attention(x, y, y, (x @ y.mT)),
    "types": lambda x, y: [x.half(), x.bool(), x.long(), x.to(torch.int8) + x.int(), x.double()],
    "one hot": lambda x, y: F.one_hot(x.argmax(1), 6),
    "complex": lambda x, y: torch.view_as_real(torch.polar(x.abs(), y) * torch.complex(x, y)),
    "losses": lambda x, y: [F.mse_loss(x, y), F.cross_entropy(x, y.argmax(1)), F.l1_loss(x, y)],
    "meshes": lambda x, y: torch.meshgrid(x[0, 0], y[0, 1], indexing="ij"),
    "numbers": lambda x, y: [x * torch.tensor([1.0, 2.0, 3.0] * 3), x + torch.tensor(2)],
}


def _written(x, y):
    z = torch.zeros_like(x)
    z[:, 1:3] = y[:, :2]
    z[0, -1] = 5.0
    z[:, :, ::2] += 1
    z[:, [4, 0]] = x[:, [0, 1]]
    return z


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compute_the_same(name):
    torch.manual_seed(2)
    same_outputs(Of(FUNCTIONS[name]), torch.randn(X), torch.randn(X), rtol=5e-5)


def test_grouped_queries():
    q, k = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 5, 3)
    fn = lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    same_outputs(Of(fn), q, k)


def test_short_floats_are_computed_in_their_type():
    module = drawn(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8))).bfloat16()
    x = torch.randn(3, 6).bfloat16()
    fn, params, _ = from_torch(module, x)
    given = fn(params, to_array(x))
    assert given.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(given.astype("float32"), module(x).float().detach(), 0.05, 0.05)


def test_an_unknown_operator_is_named_and_can_be_added():
    x = torch.randn(3)
    module = Of(lambda x: torch.special.bessel_j0(x) + torch.frexp(x)[0])
    with pytest.raises(ValueError, match=r"bessel_j0.*of which nothing is known.*@git_rebasin"):
        from_torch(module, x)
    name = "aten.special_bessel_j0"
    operator(name)(lambda x: jax.scipy.special.i0(0 * x) * 2)
    try:
        fn, params, _ = from_torch(Of(torch.special.bessel_j0), x)
        np.testing.assert_allclose(fn(params, x.numpy()), np.full(3, 2.0), 1e-6)
        operator(name)(lambda x: x[:1])
        with pytest.raises(ValueError, match=r"gave an array of shape \(1,\), where PyTorch has"):
            fn(params, x.numpy())
    finally:
        del OPERATORS[name]


def test_what_depends_on_values_is_refused():
    module = Of(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(ValueError, match=r"torch.export cannot follow .*\[\(3,\)\]"):
        from_torch(module, torch.randn(3))


# ---- what is called, and how


class Several(NamedTuple):
    one: Any
    two: Any


@dataclasses.dataclass
class Result:
    logits: Any
    hidden: Any = None


class Net(nn.Module):
    """Inputs by keyword, several outputs, tied weights, a table, and dropout."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.hidden, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.back, self.drop = nn.Linear(5, 6), nn.Dropout(0.5)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(1, 2, 6))
        self.register_buffer("inv_freq", torch.linspace(1, 2, 6))
        self.register_buffer("cache", torch.linspace(1, 2, 6), persistent=False)

    def forward(self, ids, mask=None, double=False):
        h = self.embed(ids).sum(1) * self.scale * self.inv_freq * self.cache
        h = h + self.back(self.drop(self.norm(self.hidden(h)).relu()))
        h = h if mask is None else h * mask
        logits = self.out(h) * (2 if double else 1)
        return {"result": Result(logits), "both": Several(h, [ids])}


IDS = torch.arange(12).reshape(4, 3) % 7


def test_parameters_and_constants_are_told_apart():
    _, params, constants = from_torch(drawn(Net()), IDS)
    assert set(constants) == {"norm.num_batches_tracked", "inv_freq", "cache"}
    assert {"norm.running_mean", "norm.running_var", "scale", "embed.weight"} < set(params)
    assert "out.weight" not in params  # the same tensor as embed.weight
    assert all(type(x) is np.ndarray for x in [*params.values(), *constants.values()])
    _, params, constants = from_torch(drawn(Net()), IDS, constants=["sc*", "hidden.bias"])
    assert {"scale", "hidden.bias"} < set(constants) and not {"scale", "hidden.bias"} & set(params)
    for wrong, error in (("scale", "is a text"), (["scales"], "'scales', which fits none")):
        with pytest.raises(ValueError, match=error):
            from_torch(Net(), IDS, constants=wrong)


def test_outputs_come_in_their_containers():
    module = drawn(Net())
    fn, params, _ = from_torch(module, IDS)
    for call in (fn, jax.jit(fn)):
        out = call(params, IDS.numpy())
        assert isinstance(out["result"], Result) and out["result"].hidden is None
        assert isinstance(out["both"], Several) and isinstance(out["both"].two, list)
    np.testing.assert_allclose(out["result"].logits, module(IDS)["result"].logits.detach(), 1e-5)
    with pytest.raises(TypeError, match=r"the output\[1\] is a set, .* use_cache=False"):
        from_torch(Of(lambda x: (x, {1})), IDS)


def test_inputs_by_keyword_and_options():
    module, mask = drawn(Net()), torch.rand(4, 6)
    batch = {"ids": IDS, "mask": mask}
    arrays = {"ids": IDS.numpy(), "mask": mask.numpy()}
    fn, params, _ = from_torch(module, batch, double=True)
    wanted = module(**batch, double=True)["result"].logits.detach()
    for out in (fn(params, arrays), fn(params, **arrays), fn(params, arrays["ids"], mask=mask.numpy())):
        np.testing.assert_allclose(out["result"].logits, wanted, 1e-5)
    plain, _, _ = from_torch(module, IDS)
    given = plain(params, IDS.numpy(), mask=mask.numpy(), double=True)
    np.testing.assert_allclose(given["result"].logits, wanted, 1e-5)


def test_other_sizes_are_followed_anew():
    module = drawn(Net())
    fn, params, _ = from_torch(module, IDS)
    for ids in (IDS[:1], torch.arange(10).reshape(2, 5) % 7):
        given = jax.jit(fn)(params, jnp.asarray(ids.numpy()))["result"].logits
        np.testing.assert_allclose(given, module(ids)["result"].logits.detach(), 1e-5, 1e-6)


def test_the_module_is_left_as_it_is():
    module = drawn(Net()).train()
    module.norm.eval()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    fn, params, _ = from_torch(module, IDS)
    fn(params, IDS[:2].numpy())
    to_torch(module, {name: x + x.dtype.type(1) for name, x in params.items()})
    assert module.training and module.hidden.training and not module.norm.training
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    params["scale"][:] = 7  # an array is a copy
    assert torch.equal(module.scale, before["scale"])


def test_constants_may_be_given():
    fn, params, constants = from_torch(drawn(Net()), IDS)
    out = fn(params | constants, IDS.numpy())["result"].logits
    np.testing.assert_array_equal(out, fn(params, IDS.numpy())["result"].logits)
    other = fn(params | {"cache": 2 * constants["cache"]}, IDS.numpy())["result"].logits
    assert not np.allclose(other, out)


def test_parameters_that_do_not_fit_are_refused():
    fn, params, _ = from_torch(drawn(Net()), IDS)
    with pytest.raises(ValueError, match="the module has no 'head.weight': it has .*hidden.weight"):
        fn(params | {"head.weight": params["scale"]}, IDS.numpy())
    with pytest.raises(ValueError, match="'scale' is missing: give all"):
        fn({name: x for name, x in params.items() if name != "scale"}, IDS.numpy())
    with pytest.raises(ValueError, match="axis 1 of 'hidden.weight' has 5 entries, .* has 6: use a"):
        fn(params | {"hidden.weight": params["hidden.weight"][:, :5]}, IDS.numpy())
    with pytest.raises(ValueError, match=r"'scale' has the shape \(1, 6\), and the module's has \(6"):
        fn(params | {"scale": params["scale"][None]}, IDS.numpy())


# ---- and back, every bit

TYPES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int8 uint8 complex64 complex128"


@pytest.mark.parametrize("name", TYPES.split())
def test_every_bit_comes_back(name):
    dtype, rng = getattr(torch, name), np.random.default_rng(0)
    size = torch.empty((), dtype=dtype).element_size()
    bits = torch.from_numpy(rng.integers(0, 256, (3, 4 * size), dtype=np.uint8)).view(dtype)
    module = nn.Module()
    module.register_parameter("held", nn.Parameter(bits.clone(), requires_grad=False))
    module.register_buffer("saved", bits.clone())
    module.forward = lambda x: x
    _, params, _ = from_torch(module, torch.randn(2))
    assert params["held"].dtype.name == name and set(params) == {"held", "saved"}
    assert torch.equal(to_tensor(params["held"]).view(torch.uint8), bits.view(torch.uint8))
    empty = copy.deepcopy(module)
    for x in (empty.held, empty.saved):
        x.view(torch.uint8).zero_()
    made = to_torch(empty, params)
    for x in (made.held, made.saved):
        assert x.dtype == dtype and torch.equal(x.view(torch.uint8), bits.view(torch.uint8))


def test_layouts_and_scalars_come_back():
    for x in (torch.randn(3, 4).T, torch.tensor(2.5), torch.zeros(0, 3), torch.randn(2).bfloat16()[0]):
        back = to_tensor(to_array(x))
        assert back.shape == x.shape and back.dtype == x.dtype and torch.equal(back, x)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(to_array(image), image.numpy())


def test_tied_weights_stay_tied():
    module = drawn(Net())
    _, params, _ = from_torch(module, IDS)
    weight = 2 * params["embed.weight"]
    made = to_torch(module, params | {"embed.weight": weight})
    assert made.out.weight is made.embed.weight
    assert torch.equal(made.out.weight, torch.from_numpy(weight))
    assert torch.equal(made.state_dict()["out.weight"], made.state_dict()["embed.weight"])
    both = params | {"embed.weight": weight, "out.weight": weight}
    assert torch.equal(to_torch(module, both).out.weight, made.out.weight)
    with pytest.raises(ValueError, match="'out.weight' and 'embed.weight' are one tensor"):
        to_torch(module, both | {"out.weight": weight + 1})


def test_what_does_not_fit_a_module_is_refused():
    module = drawn(Net())
    _, params, _ = from_torch(module, IDS)
    cases = [
        (params | {"head": params["scale"]}, ValueError, "the module has no 'head'"),
        ({n: x for n, x in params.items() if n != "norm.running_var"}, ValueError, "'norm.running_var"),
        (params | {"scale": params["scale"][:5]}, ValueError, "axis 0 of 'scale' has 5 entries"),
        (params | {"scale": params["scale"].astype("float64")}, TypeError, "which would round: conv"),
        (params | {"scale": params["scale"].astype("complex64")}, TypeError, r'\.astype\("float32"\)'),
    ]
    for given, error, text in cases:
        with pytest.raises(error, match=text):
            to_torch(module, given)
    short = params | {"scale": params["scale"].astype(ml_dtypes.bfloat16)}  # no bit is lost
    assert to_torch(module, short).scale.dtype == torch.float32


def test_tensors_without_dense_numbers_are_refused():
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="'weight' has no numbers"):
        from_torch(module, torch.randn(1, 2))
    sparse = nn.Module()
    sparse.register_buffer("w", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"'w' has the layout torch.sparse_coo.*to_dense"):
        from_torch(sparse, torch.randn(1, 2))


# ---- what the package does with them


def convnet(seed: int):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)]
    head = [nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
    return drawn(nn.Sequential(*layers, *head), seed)


IMAGES = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("leaves", ["numpy", "jax"])
def test_every_step_takes_the_function(leaves):
    fn, a, _ = from_torch(convnet(0), IMAGES)
    _, b, _ = from_torch(convnet(1), IMAGES)
    if leaves == "jax":
        a, b = (jax.tree.map(jnp.asarray, params) for params in (a, b))
    spec = gr.infer_permutation_spec(fn, a, IMAGES)
    assert sorted(spec.perm_shapes.values()) == [(6,), (8,)]
    assert {"1.running_mean", "1.running_var"} <= {
        path for path, row in spec.axes_to_perm.items() if any(row)
    }
    key = jax.random.key(0)
    matches = (
        gr.weight_matching(key, spec, a, b),
        gr.activation_matching(key, spec, a, b, fn=fn, batches=[IMAGES]),
    )
    for match in matches:
        moved = gr.apply_permutation(spec, match.perm, b)
        np.testing.assert_allclose(fn(moved, IMAGES), fn(b, IMAGES), 1e-4, 1e-4)
    middle = gr.lerp(a, moved, 0.5)
    reset = gr.reset_batch_stats(fn, middle, [IMAGES])
    assert not np.allclose(reset["1.running_mean"], middle["1.running_mean"])
    repaired = gr.repair(fn, middle, [a, moved], [IMAGES])
    assert repaired.params["params"].keys() == a.keys()
    module = to_torch(convnet(0), reset)
    wanted = module(torch.from_numpy(IMAGES)).detach()
    np.testing.assert_allclose(fn(reset, IMAGES), wanted, 1e-4, 1e-4)


def test_six_lines():
    a, b = convnet(0), convnet(1)
    fn, params_a, _ = from_torch(a, torch.from_numpy(IMAGES))
    _, params_b, _ = from_torch(b, torch.from_numpy(IMAGES))
    result = gr.rebasin(fn, params_a, params_b, example=IMAGES)
    merged = to_torch(a, result.merged)
    wanted = merged(torch.from_numpy(IMAGES)).detach()
    np.testing.assert_allclose(fn(result.merged, IMAGES), wanted, 1e-4, 1e-4)


def test_a_zero_that_belongs_to_no_model_leaves_units_free():
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 5, bias=False), nn.Linear(5, 2)
            self.register_buffer("bias", torch.zeros(5), persistent=False)

        def forward(self, x):
            return self.two((self.one(x) + self.bias).relu())

    fn, params, constants = from_torch(Zero(), torch.randn(2, 3))
    assert set(constants) == {"bias"}
    assert gr.infer_permutation_spec(fn, params, np.ones((2, 3), np.float32)).groups == {"P_0": 5}


def test_mappings_of_outputs_and_cond_of_modes():
    module = Of(lambda x: OrderedDict(a=x, b=(x, None, 3)))
    fn, params, _ = from_torch(module, torch.randn(2))
    out = fn(params, np.ones(2, np.float32))
    assert list(out) == ["a", "b"] and out["b"][1:] == (None, 3)
