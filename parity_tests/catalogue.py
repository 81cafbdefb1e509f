"""The catalogue of cases: one row per bijector, model or variant; every generated test reads it.

A row is an architecture and how to draw weights and inputs for it. Weights are always random, never
initial: identity-initialised flows would make everything pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import torch_flows
from flow_bridge.weights import DTYPES
from torch_flows.checkpoint import from_numpy, to_numpy

Arrays = dict[str, np.ndarray]


def positive_variances(arrays: Arrays, generator: np.random.Generator) -> None:
    """Running variances and fixed scales between about 0.5 and 2."""
    for name, array in arrays.items():
        if name.split(".")[-1] in ("running_var", "scale"):
            array[...] = np.exp(generator.uniform(-0.7, 0.7, array.shape))


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: the test id.
        architecture: what to build in both halves.
        dim: the event shape, where the architecture leaves it open.
        scale: how large random weights are; a matrix is divided by the root of its input width.
        draw: draws inputs of a shape; standard normal by default.
        prepare: last touch on random weights, for those that are not free.
        smooth: whether second derivatives exist everywhere that the tests look.
        slow: whether `make test-slow` alone runs it: a variant of rows that already show its parts.
        trajectory: whether 200 Adam steps are compared (a smooth conditioner, no null directions).
    """

    name: str
    architecture: dict[str, Any]
    dim: int | None = None
    scale: float = 0.7
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = field(
        default=lambda generator, shape: generator.standard_normal(shape)
    )
    prepare: Callable[[Arrays, np.random.Generator], None] = positive_variances
    smooth: bool = True
    trajectory: bool = False
    slow: bool = False

    @property
    def is_variant(self) -> bool:
        """Whether it is another form of a plain row."""
        return "-" in self.name

    @property
    def is_named_model(self) -> bool:
        """Whether it is a model of layers that have rows of their own."""
        cls = torch_flows.registry.registry.types[self.architecture["type"]]
        return cls.__module__.startswith("torch_flows.models.")

    def weights(self, seed: int = 0) -> Arrays:
        """Random float64 weights that float32 holds exactly."""
        generator = np.random.default_rng(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = torch_flows.build(self.architecture)
        arrays = {name: to_numpy(a).astype(np.float64) for name, a in model.state_dict().items()}
        for name in sorted(arrays):
            array = arrays[name]
            fan_in = np.prod(array.shape[1:]) if array.ndim > 1 else 1
            noise = self.scale * generator.standard_normal(array.shape) / np.sqrt(fan_in)
            arrays[name] = np.asarray(noise if array.ndim > 1 else array + noise)
        self.prepare(arrays, generator)
        return {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}

    def torch_model(self, dtype: str = "float64", seed: int = 0) -> Any:
        """The PyTorch model with random weights, in evaluation mode."""
        model = torch_flows.build(self.architecture)
        arrays = self.weights(seed)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        model.load_state_dict({name: from_numpy(array) for name, array in arrays.items()})
        return model.to(from_numpy(np.zeros(1, DTYPES[dtype])).dtype).eval()

    def inputs(self, *batch: int, seed: int = 1) -> np.ndarray:
        """Random inputs of shape ``(*batch, *event_shape)``."""
        event_shape = torch_flows.build(self.architecture).event_shape
        event_shape = tuple(self.dim if d is None else d for d in event_shape)
        draws = self.draw(np.random.default_rng(seed), (*batch, *event_shape))
        return np.asarray(draws, np.float32).astype(np.float64)

    def context(self, *batch: int, seed: int = 2) -> np.ndarray | None:
        """A random context of shape ``(*batch, context_dim)``, ``None`` where none is taken."""
        context_dim = torch_flows.build(self.architecture).context_dim
        if not context_dim:
            return None
        draws = np.random.default_rng(seed).standard_normal((*batch, context_dim))
        return draws.astype(np.float32).astype(np.float64)


def arch(type: str, **arguments: Any) -> dict[str, Any]:
    """An architecture."""
    return {"type": type, **arguments}


def coupling(**arguments: Any) -> dict[str, Any]:
    """A small affine coupling with a smooth conditioner."""
    defaults = {"hidden_dims": [7, 5], "activation": "tanh"}
    return arch("AffineCoupling", **(defaults | arguments))


def spline(**arguments: Any) -> dict[str, Any]:
    """A small spline coupling with a smooth conditioner."""
    defaults = {"hidden_dims": [7, 5], "activation": "tanh", "num_bins": 4}
    return arch("SplineCoupling", **(defaults | arguments))


def masked(type: str = "MaskedAffineAutoregressive", **arguments: Any) -> dict[str, Any]:
    """A small masked autoregressive map with a smooth conditioner."""
    return arch(type, **({"hidden_dims": [7, 5], "activation": "tanh"} | arguments))


def flow(bijector: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A flow."""
    return arch("Flow", bijector=bijector, base=base)


def smooth_real_nvp(dim: int, layers: int, **arguments: Any) -> dict[str, Any]:
    """Affine couplings with alternating masks and tanh conditioners."""
    masks = ["even", "odd"]
    stack = [coupling(dim=dim, mask=masks[i % 2], **arguments) for i in range(layers)]
    return arch("Chain", bijectors=stack)


def conv_coupling(**arguments: Any) -> dict[str, Any]:
    """A small convolutional coupling with a smooth conditioner."""
    return arch("ConvAffineCoupling", **({"hidden_channels": 5, "activation": "tanh"} | arguments))


UNSQUEEZE = arch("Invert", bijector=arch("Squeeze"))


def residual(**arguments: Any) -> dict[str, Any]:
    """A small invertible residual block."""
    return arch("InvertibleResidual", **({"hidden_dims": [6, 5]} | arguments))


def continuous(**arguments: Any) -> dict[str, Any]:
    """A small continuous bijector with few fixed steps."""
    defaults = {"hidden_dims": [6, 5], "solver": "rk4", "num_steps": 3}
    return arch("ContinuousBijector", **(defaults | arguments))


MAPS = {
    "ShiftMap": arch("ShiftMap"),
    "AffineMap": arch("AffineMap", scale="softplus", minimum=1e-2, order="shift_scale", clip=3.0),
    "CubicMap": arch("CubicMap"),
    "CubicRationalMap": arch("CubicRationalMap"),
    "SinhMap": arch("SinhMap"),
    "TailMap": arch("TailMap"),
    "BernsteinMap": arch("BernsteinMap", degree=3, low=-2.0, high=2.5),
    "SumOfSquaresMap": arch("SumOfSquaresMap", degree=1, bound=3.0),
    "MonotoneNetworkMap": arch("MonotoneNetworkMap", hidden_dims=[2, 3]),
    "IntegratedNetworkMap": arch(
        "IntegratedNetworkMap", hidden_dims=[2], bound=2.0, num_intervals=2
    ),
    "NormalMixtureMap": arch("NormalMixtureMap", num_components=2),
    "LogisticMixtureMap": arch("LogisticMixtureMap", num_components=2),
    "DenseSigmoidMap": arch("DenseSigmoidMap", hidden_dims=[2, 2]),
    "LinearSplineMap": arch("LinearSplineMap", num_bins=3, low=-2.0, high=2.5),
    "QuadraticSplineMap": arch("QuadraticSplineMap", num_bins=3, low=-2.0, high=2.5),
    "CubicSplineMap": arch("CubicSplineMap", num_bins=3, low=-2.0, high=2.5),
    "LinearRationalSplineMap": arch("LinearRationalSplineMap", num_bins=3, low=-2.0, high=2.5),
    "SplineMap": arch(
        "SplineMap", num_bins=3, low=-2.0, high=2.5, boundary="linear", min_width=1e-2
    ),
    "SplineMap-circular": arch("SplineMap", num_bins=3, low=-1.0, high=2.0, boundary="circular"),
    "MoebiusMap": arch("MoebiusMap", num_components=2, low=-1.0, high=2.0),
}
"""Every univariate map with one choice of its options: each is tested in every structure."""


SHOWN = (
    "TailMap", "CubicRationalMap", "SinhMap", "BernsteinMap", "SumOfSquaresMap", "LinearSplineMap",
    "QuadraticSplineMap", "CubicSplineMap", "LinearRationalSplineMap", "MonotoneNetworkMap",
    "NormalMixtureMap", "IntegratedNetworkMap", "DenseSigmoidMap",
)  # fmt: skip
"""Maps that `make test` shows by ``test_families.py``."""


def tanh_network(**arguments: Any) -> dict[str, Any]:
    """A small smooth conditioner."""
    return arch("MLP", **({"hidden_dims": [6], "activation": "tanh"} | arguments))


def rows_of_map(name: str, map: dict[str, Any]) -> list[Case]:
    """The map in each structure."""
    shown = name in ("ShiftMap", "AffineMap", *SHOWN)  # the first two by couplings with a name
    # PyTorch compiles the search for an inverse step by step
    searched = name in ("LogisticMixtureMap", "MoebiusMap", *SHOWN)
    low, high = map.get("low", -1.0), map.get("high", 1.0)

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if name == "MoebiusMap" or map.get("boundary") in ("bounded", "circular"):
            return generator.uniform(low, high, shape)
        return generator.standard_normal(shape)

    images = arch("ConvNet", hidden_channels=4, activation="tanh")
    return [
        Case(f"{name}-elementwise", arch("Elementwise", dim=3, map=map), draw=draw, slow=searched),
        Case(f"{name}-coupling", arch("Coupling", dim=3, map=map, conditioner=tanh_network()), draw=draw,
             slow=shown),
        Case(f"{name}-masked", arch("MaskedAutoregressive", dim=3, map=map,
                                    conditioner=tanh_network()), draw=draw, slow=shown or searched),
        Case(f"{name}-images", arch("Coupling", dim=[2, 3, 2], map=map, conditioner=images,
                                    mask="checkerboard_odd"), draw=draw, slow=True),
    ]  # fmt: skip


def chain_of_maps(*maps: dict[str, Any]) -> dict[str, Any]:
    """One elementwise layer for each map."""
    return arch("Chain", bijectors=[arch("Elementwise", dim=3, map=map) for map in maps])


NORMAL2, NORMAL3 = arch("StandardNormal", dim=2), arch("StandardNormal", dim=3)

CASES = [
    # structure
    Case("Chain-mixed", arch("Chain", bijectors=[
        arch("Affine", dim=3), arch("Planar", dim=3), coupling(dim=3), arch("Rescale", dim=3),
    ])),
    Case("Chain-scanned-in-the-middle", arch("Chain", bijectors=[
        arch("Rescale", dim=2), *[arch("Planar", dim=2)] * 3, arch("Affine", dim=2),
    ])),
    Case("Chain-nested-context", arch("Chain", bijectors=[
        arch("Chain", bijectors=[coupling(dim=3, context_dim=2), arch("Affine", dim=3)]),
        arch("Invert", bijector=arch("Planar", dim=3, context_dim=2)),
    ])),
    Case("Invert", arch("Invert", bijector=smooth_real_nvp(3, 2))),
    Case("Flow-diagonal", flow(smooth_real_nvp(2, 4), arch("DiagonalNormal", dim=2)), trajectory=True,
         slow=True),
    Case("Flow-uniform", flow(arch("Affine", dim=2), arch("Uniform", dim=2, low=-9.0, high=9.0))),
    # elementwise
    Case("Affine", arch("Affine", dim=3)),
    Case("Affine-dim1", arch("Affine", dim=1)),
    Case("Rescale", arch("Rescale", dim=4)),
    Case("LeakyReLU", arch("LeakyReLU", negative_slope=0.2), dim=3),
    Case("ELU", arch("ELU"), dim=3),
    Case("ELU-alpha", arch("ELU", alpha=0.3), dim=1),
    Case("Softplus", arch("Softplus"), dim=3),
    Case("Exp", arch("Exp"), dim=3),
    Case("Sigmoid", arch("Sigmoid"), dim=3),
    Case("Tanh", arch("Tanh"), dim=3),
    Case("Softclip", arch("Chain", bijectors=[
        arch("LeakyTanh", bound=0.7), arch("LOFT", start=0.4), arch("NormalClip", share=0.2),
        arch("Softclip", bound=3.0)
    ]), dim=2, smooth=False),
    Case("Tanh-image", arch("Tanh", event_ndim=3), dim=2),
    Case("Chain-to-unit-cube", flow(
        arch("Chain", bijectors=[arch("Affine", dim=2), arch("Sigmoid")]), arch("Uniform", dim=2)
    )),
    # linear
    Case("Permutation", arch("Permutation", permutation=[2, 0, 1])),
    Case("Permutation-reverse", arch("Permutation", permutation="reverse", dim=4)),
    Case("RandomPermutation", arch("RandomPermutation", dim=5, seed=3)),
    Case("Rotation", arch("Rotation", dim=4)),
    Case("Rotation-odd-dim", arch("Rotation", dim=5)),
    Case("Rotation-dim1", arch("Rotation", dim=1)),
    Case("LULinear", arch("LULinear", dim=4)),
    Case("LULinear-no-bias", arch("LULinear", dim=3, bias=False)),
    Case("LULinear-dim1", arch("LULinear", dim=1)),
    Case("LULinear-signs", arch("LULinear", dim=4, permutation=[2, 0, 3, 1], signs=[1, -1, -1, 1])),
    # normalisation
    Case("BatchNorm", arch("BatchNorm", dim=3)),
    Case("BatchNorm-momentum", arch("BatchNorm", dim=2, eps=0.1, momentum=0.5)),
    Case("ActNorm", arch("ActNorm", dim=3)),
    Case("ActNorm-dim1", arch("ActNorm", dim=1)),
    Case("ActNorm-image", arch("ActNorm", dim=[3, 2, 4])),
    Case("Standardize", arch("Standardize", dim=3)),
    Case("Standardize-image", arch("Standardize", dim=[3, 2, 4])),
    Case("Flow-context-net", arch("Flow", bijector=arch("Planar", dim=3, context_dim=2), base=NORMAL3,
        context_net=[arch("Standardize", dim=8),
                     arch("ConvEmbedding", in_dim=8, out_dim=6, image_shape=[1, 2, 4], hidden_channels=[2],
                          activation="tanh"),
                     arch("DeepSet", in_dim=6, out_dim=3, element_dim=2, set_dim=3, hidden_dims=[4],
                          activation="tanh"),
                     arch("MLP", in_dim=3, out_dim=2, hidden_dims=[5], activation="tanh"), arch("Tanh")],
        columns=["a", "b", "c"], context_columns=[*"defghijk"])),
    # coupling
    Case("AffineCoupling", coupling(dim=2, mask="odd")),
    Case("AffineCoupling-square", coupling(dim=6, hidden_dims=[6, 6], mask="even")),
    Case("AffineCoupling-odd-dim", coupling(dim=5, mask="first_half")),
    Case("AffineCoupling-list", coupling(dim=5, mask=[1, 1, 0, 0, 1], activation="gelu")),
    Case("AffineCoupling-one-network", coupling(dim=4, separate_networks=False, mask="second_half")),
    Case("AffineCoupling-context", coupling(dim=3, context_dim=2)),
    Case("AffineCoupling-context-one-network",
         coupling(dim=4, context_dim=3, separate_networks=False, mask=[0, 1, 1, 0])),
    Case("AffineCoupling-leaky", coupling(dim=3, activation="leaky_relu:0.3"), smooth=False),
    Case("AffineCoupling-softplus", coupling(dim=3, activation="softplus", hidden_dims=[])),
    Case("AdditiveCoupling", arch("AdditiveCoupling", dim=5, hidden_dims=[7, 5], activation="tanh")),
    Case("AdditiveCoupling-context",
         arch("AdditiveCoupling", dim=4, hidden_dims=[6], mask=[1, 0, 0, 1], activation="gelu",
              context_dim=2)),
    Case("SplineCoupling", spline(dim=2, mask="odd")),
    Case("SplineCoupling-odd-dim", spline(dim=5, mask="first_half", num_bins=8)),
    Case("SplineCoupling-context", spline(dim=3, mask=[1, 0, 1], context_dim=2)),
    Case("SplineCoupling-one-bin", spline(dim=4, num_bins=1)),
    Case("SplineCoupling-narrow", spline(dim=3, tail_bound=0.7), scale=1.5),
    Case("SplineCoupling-leaky", spline(dim=3, activation="leaky_relu"), smooth=False),
    # autoregressive
    Case("MaskedAffineAutoregressive-flow", flow(masked(dim=4), arch("StandardNormal", dim=4)),
         trajectory=True),
    Case("MaskedAffineAutoregressive", masked(dim=3, hidden_dims=[6, 6], order="reverse")),
    Case("MaskedAffineAutoregressive-dim1", masked(dim=1, hidden_dims=[3])),
    Case("MaskedAffineAutoregressive-no-hidden", masked(dim=5, hidden_dims=[], order=[3, 0, 4, 1, 2])),
    Case("MaskedAffineAutoregressive-few-units", masked(dim=11, hidden_dims=[3, 2], order="random:7"),
         slow=True),
    Case("MaskedAffineAutoregressive-scanned-context",
         masked(dim=17, hidden_dims=[23, 9], context_dim=2), slow=True),
    Case("MaskedSplineAutoregressive", masked("MaskedSplineAutoregressive", dim=3, num_bins=3)),
    Case("MaskedSplineAutoregressive-context",
         masked("MaskedSplineAutoregressive", dim=2, num_bins=2, order="reverse", context_dim=2)),
    # the grid: univariate map x structure x conditioner
    *[row for name, map in MAPS.items() for row in rows_of_map(name, map)],
    Case("AffineMap-scales", chain_of_maps(*[
        arch("AffineMap", scale=scale, bound=1.5)
        for scale in ("exp", "tanh", "softclip", "arctan", "softplus", "sigmoid")
    ], arch("AffineMap", scale="clamp", low=-0.3, high=0.2, order="shift_divide"))),
    Case("AffineMap-sigmoid-minimum", chain_of_maps(
        arch("AffineMap", scale="sigmoid", bound=1.0, offset=2.0, minimum=1e-3, order="shift_divide")
    )),
    Case("SplineMap-kinked", chain_of_maps(arch("SplineMap", num_bins=2, low=-1.5, high=1.0,
                                                boundary="kinked", min_height=0.1))),
    Case("SplineMap-squash", chain_of_maps(
        arch("SplineMap", num_bins=3, min_width=0.0, min_height=0.0, squash=1e-2, edge_slope=0.6),
        arch("SplineMap", num_bins=2, low=-1.0, high=2.0, edge_slope=1.5),
        arch("SplineMap", num_bins=2, low=-2.0, high=1.0, boundary="linear", squash=1e-3),
    ), scale=1.5, slow=True),
    Case("SplineMap-bounded", chain_of_maps(arch("SplineMap", num_bins=4, low=0.0, high=1.0,
                                                 boundary="bounded", min_slope=0.1)),
         draw=lambda g, shape: g.uniform(0, 1, shape)),
    Case("Blockwise", arch("Blockwise", columns=[[3], [0, 4], [1, 2]], bijectors=[
        arch("Invert", bijector=arch("Exp")),
        arch("Elementwise", dim=2, map=arch("SplineMap", num_bins=3, low=0.0, high=2.0,
                                            boundary="bounded")),
        arch("Planar", dim=2, context_dim=2),
    ]), draw=lambda g, shape: g.uniform(0.1, 1.9, shape)),
    Case("Elementwise-context", arch("Elementwise", dim=[2, 2], map=arch("AffineMap"), context_dim=3,
                                     conditioner=tanh_network())),
    Case("Coupling-residual-gate", arch("Coupling", dim=4, map=arch("AffineMap"), context_dim=2,
                                        conditioner=arch("ResidualMLP", hidden_dim=5, num_blocks=2,
                                                         activation="tanh", context="gate",
                                                         normalization="layer_norm"))),
    Case("Coupling-branches", arch("Chain", bijectors=[
        arch("Coupling", dim=3, map=arch("AffineMap"), context_dim=2,
             conditioner=tanh_network(context="branch", normalization="layer_norm")),
        arch("Coupling", dim=3, map=arch("ShiftMap"), context_dim=2, mask="odd",
             conditioner=arch("ResidualMLP", hidden_dim=4, num_blocks=2, activation="silu",
                              context="branch", pre_activation=False, normalization="batch_norm",
                              dropout=0.3)),
    ])),
    Case("Coupling-separate-splines", arch("Coupling", dim=3, map=arch("SplineMap", num_bins=2),
                                           conditioner=arch("SeparateMLPs", hidden_dims=[4],
                                                            activation="tanh")), scale=0.3),
    Case("Coupling-images-context", arch("Coupling", dim=[3, None, None], map=arch("AffineMap"),
                                         conditioner=arch("ConvNet", hidden_channels=4,
                                                          activation="tanh",
                                                          normalization="batch_norm",
                                                          dropout=0.2),
                                         context_dim=2), dim=2),
    Case("Masked-residual", arch("MaskedAutoregressive", dim=4, map=arch("AffineMap", scale="arctan"),
                                 conditioner=arch("ResidualMLP", hidden_dim=7, num_blocks=2,
                                                  activation="tanh", pre_activation=False),
                                 order=[2, 0, 3, 1])),
    Case("Masked-residual-branch",
         arch("MaskedAutoregressive", dim=11, map=arch("AffineMap", scale="softclip"),
              conditioner=arch("MaskedResidualMLP", hidden_dim=13, num_blocks=2, activation="tanh",
                               context="branch", degrees=[0, 3, 10, *range(10)]), context_dim=2), slow=True),
    Case("Masked-residual-gate-cyclic",
         arch("MaskedAutoregressive", dim=11, map=arch("AffineMap", scale="softclip"),
              conditioner=arch("MaskedResidualMLP", hidden_dim=13, num_blocks=2, activation="tanh",
                               context="gate", degrees="cyclic", normalization="batch_norm",
                               dropout=0.2), order="random:3", context_dim=2), slow=True),
    Case("Masked-unsorted", arch("MaskedAutoregressive", dim=4, map=arch("SplineMap", num_bins=2),
                                 conditioner=arch("MaskedMLP", hidden_dims=[5, 6], activation="tanh",
                                                  degrees=[[3, 0, 1, 2, 1], [1, 1, 3, 2, 0, 2]]),
                                 order="reverse"), slow=True),
    Case("Masked-branch", arch("MaskedAutoregressive", dim=4, map=arch("AffineMap"), context_dim=2,
                               conditioner=arch("MaskedMLP", hidden_dims=[5, 6], activation="tanh",
                                                context="branch", degrees="cyclic"), order="reverse")),
    Case("BlockAutoregressive", arch("BlockAutoregressive", dim=3, hidden_dims=[2, 3], context_dim=2,
                                     gate=True), slow=True),
    # transformers
    Case("TransformerAutoregressive",
         arch("TransformerAutoregressive", dim=6, token_dim=2, map=arch("AffineMap", scale="softclip"),
              hidden_dim=4, num_blocks=2, num_heads=2, order=[1, 2, 0], context_dim=2)),
    Case("TransformerAutoregressive-options",
         arch("TransformerAutoregressive", dim=4, token_dim=2, hidden_dim=4,
              map=arch("AffineMap", scale="softplus", clip=3.0),
              num_blocks=2, num_heads=2, activation="silu", context_dim=4, rotary=True,
              qk_norm=True, gated=True, context="prefix", context_tokens=2, checkpointing=True), slow=True),
    Case("TransformerAutoregressive-cross",
         arch("TransformerAutoregressive", dim=4, token_dim=2, map=arch("AffineMap"), hidden_dim=4,
              num_blocks=1, num_heads=2, context_dim=4, context="cross", context_tokens=2), slow=True),
    Case("TarFlow", arch("TarFlow", shape=[1, 4, 2], patch_size=2, num_layers=2, hidden_dim=4, num_heads=2,
                         num_blocks=2, context_dim=2)),
    Case("TarFlow-vector", arch("TarFlow", shape=4, patch_size=2, num_layers=2, hidden_dim=4, num_heads=2,
                                num_blocks=2, max_sweeps=3), trajectory=True, slow=True),
    Case("Jet", arch("Jet", shape=[1, 4, 4], num_layers=5, hidden_dim=4, num_heads=2, num_blocks=1,
                     context_dim=2), slow=True),
    # residual
    Case("Planar", arch("Planar", dim=2)),
    Case("Planar-dim1", arch("Planar", dim=1)),
    Case("Planar-steep", arch("Planar", dim=5), scale=10.0),
    Case("Planar-context", arch("Planar", dim=3, context_dim=2)),
    # base distributions
    Case("GaussianMixture", flow(arch("Affine", dim=3), arch("GaussianMixture", dim=3, num_components=4))),
    Case("GaussianMixture-context", arch("Flow", bijector=arch("Planar", dim=2, context_dim=2),
        base=arch("GaussianMixture", dim=2, num_components=3, context_dim=2, conditioner=tanh_network()),
        context_net=arch("MLP", in_dim=3, out_dim=2, hidden_dims=[4], activation="tanh"))),
    Case("DiagonalNormal-context", flow(arch("ActNorm", dim=[2, 1, 2]), arch(
        "DiagonalNormal", dim=[2, 1, 2], context_dim=3, conditioner=tanh_network()))),
    Case("StudentT", flow(arch("Affine", dim=2), arch("StudentT", dim=2, df=2.5, learned=True))),
    # images
    Case("Squeeze", arch("Squeeze"), dim=4),
    Case("Squeeze-inverted", arch("Invert", bijector=arch("Squeeze")), dim=4),
    Case("Squeeze-by-three", arch("Squeeze", factor=3), dim=3),
    Case("Invertible1x1Conv", arch("Invertible1x1Conv", channels=5), dim=3),
    Case("Invertible1x1Conv-one-channel", arch("Invertible1x1Conv", channels=1, signs=[-1]), dim=2),
    Case("ConvolutionExponential", arch("ConvolutionExponential", channels=2, bound=2.0), dim=3),
    Case("ConvAffineCoupling", conv_coupling(channels=4), dim=4),
    Case("ConvAffineCoupling-odd", conv_coupling(channels=3, mask="second_half"), dim=3),
    Case("ConvAffineCoupling-alternating", conv_coupling(channels=4, mask="even"), dim=2),
    Case("ConvAffineCoupling-list-context",
         conv_coupling(channels=5, mask=[1, 0, 0, 1, 1], context_dim=2), dim=2),
    Case("ConvAffineCoupling-relu", conv_coupling(channels=2, activation="relu"), dim=3, smooth=False),
    Case("Split", arch("Split", bijector=conv_coupling(channels=2, context_dim=2)), dim=2),
    Case("Split-multi-scale", arch("Chain", bijectors=[
        arch("Squeeze"), arch("ActNorm", dim=[8, 2, 2]),
        arch("Split", bijector=arch("Chain", bijectors=[
            arch("Squeeze"), *[conv_coupling(channels=16)] * 2, UNSQUEEZE,
        ])),
        UNSQUEEZE,
    ]), slow=True),
    Case("Logit", arch("Logit"), dim=3, draw=lambda g, shape: g.uniform(0.01, 0.99, shape)),
    Case("Logit-vector", arch("Logit", alpha=0.0, event_ndim=1), dim=3,
         draw=lambda g, shape: g.uniform(0.01, 0.99, shape)),
    Case("Radial", arch("Radial", dim=2)),
    Case("Radial-dim1", arch("Radial", dim=1)),
    Case("Radial-steep", arch("Radial", dim=5), scale=10.0),
    Case("Radial-context", arch("Radial", dim=3, context_dim=2)),
    Case("Sylvester", arch("Sylvester", dim=3, rank=2)),
    Case("Sylvester-dim1", arch("Sylvester", dim=1, rank=1), slow=True),
    Case("Sylvester-steep", arch("Sylvester", dim=4, rank=4), scale=10.0, slow=True),
    Case("Sylvester-context", arch("Sylvester", dim=3, rank=3, context_dim=2), slow=True),
    Case("InvertibleResidual", residual(dim=2)),
    Case("InvertibleResidual-dim1", residual(dim=1, hidden_dims=[5], activation="softplus")),
    Case("InvertibleResidual-context", residual(dim=3, context_dim=2), scale=3.0, slow=True),
    Case("InvertibleResidual-steep", residual(dim=4, activation="gelu"), scale=10.0, slow=True),
    Case("InvertibleResidual-kinks", residual(dim=3, activation="leaky_relu"), smooth=False, slow=True),
    Case("InvertibleResidual-series", residual(dim=3, log_det="series", eval_terms=12), slow=True),
    # continuous, with fixed steps; test_continuous.py has the adaptive ones
    Case("Continuous", continuous(dim=2)),
    Case("Mixed", flow(
        arch("Chain", bijectors=[
            arch("Coupling", dim=3, conditioner=tanh_network(), mask=mask, map=arch(
                "MixedMap", columns=[[2], [0], [1]], maps=[
                    arch("AffineMap"),
                    arch("SplineMap", num_bins=2, low=-1.0, high=1.0, boundary="circular"),
                    arch("SplineMap", num_bins=2, low=-1.0, high=1.0, boundary="bounded"),
                ])) for mask in ("even", "odd")]),
        arch("Product", columns=[[0, 1], [2]], distributions=[
            arch("Uniform", dim=2, low=-1.0, high=1.0), arch("DiagonalNormal", dim=1)])),
         draw=lambda generator, shape: generator.uniform(-1, 1, shape)),
    Case("Continuous-dim1", continuous(dim=1, hidden_dims=[5], solver="dopri5", grid=[0.0, 0.4, 1.0]),
         slow=True),
    Case("Continuous-context-deep", continuous(dim=3, hidden_dims=[5, 4, 4], context_dim=2), slow=True),
    Case("Continuous-linear", continuous(dim=3, hidden_dims=[])),
    Case("Continuous-conditioner", continuous(
        dim=2, trace="hutchinson", kinetic_energy=0.3, jacobian_norm=0.2, context_dim=2,
        time_features=1, conditioner=arch("ResidualMLP", hidden_dim=5, num_blocks=1,
                                          activation="tanh", context="gate")), slow=True),
    Case("Continuous-estimate", continuous(
        dim=3, trace="hutchinson", probe="gaussian", conditioner=arch(
            "MLP", hidden_dims=[5, 4], activation="tanh", normalization="layer_norm")), scale=0.2, slow=True),
    Case("Continuous-penalties", continuous(dim=2, num_steps=10, trace="hutchinson", kinetic_energy=0.3,
                                            jacobian_norm=0.2, time_scaling=True), slow=True),
    Case("RandomPermutation-image", arch("RandomPermutation", dim=3, seed=1, event_ndim=3), dim=2),
    # models
    Case("Glow-options", arch("Glow", shape=[2, 4, 4], num_levels=2, num_steps=2, activation="tanh",
                              conditioner=arch("ConvNet", hidden_channels=3, activation="gelu",
                                               normalization="layer_norm"),
                              scale="sigmoid", offset=2.0, normalization=None, permutation="random",
                              mask="checkerboard",
                              base=arch("DiagonalNormal", dim=[2, 4, 4])), slow=True),
    Case("MAF-options", arch("MAF", dim=3, hidden_dims=[5], num_layers=2, activation="tanh",
                             scale="softplus", order="random", normalization="act_norm",
                             permutation="rotation", offset=0.3)),
    Case("Glow", arch("Glow", shape=[2, 4, 4], num_levels=2, num_steps=2, hidden_channels=5),
         smooth=False),
    Case("Glow-context", arch("Glow", shape=[1, 8, 4], num_levels=1, num_steps=3, hidden_channels=6,
                              context_dim=3, map=arch("CubicMap")), smooth=False, slow=True),
    Case("RealNVP", arch("RealNVP", dim=2), smooth=False),
    Case("RealNVP-odd-context", arch("RealNVP", dim=5, hidden_dims=[6, 6], num_layers=3, context_dim=2),
         smooth=False),
    Case("RealNVP-smooth-deep", flow(smooth_real_nvp(3, 10), NORMAL3), trajectory=True, slow=True),
    Case("NICE", arch("NICE", dim=3, hidden_dims=[6, 6]), smooth=False),
    Case("NICE-context", arch("NICE", dim=2, hidden_dims=[5], num_layers=3, context_dim=2),
         smooth=False),
    Case("NeuralSplineFlow", arch("NeuralSplineFlow", dim=2, hidden_dims=[8, 8], num_layers=3),
         scale=0.5, smooth=False),
    Case("NeuralSplineFlow-context",
         arch("NeuralSplineFlow", dim=3, hidden_dims=[6], num_layers=2, num_bins=3, tail_bound=3.0,
              context_dim=2), smooth=False, slow=True),
    Case("NeuralSplineFlow-autoregressive",
         arch("NeuralSplineFlow", dim=3, hidden_dims=[6], num_layers=2, num_bins=3,
              autoregressive=True), scale=0.5, smooth=False, slow=True),
    Case("MAF", arch("MAF", dim=3, hidden_dims=[8, 8], num_layers=4), smooth=False, slow=True),
    Case("IAF", arch("IAF", dim=3, hidden_dims=[8], num_layers=2), smooth=False),
    Case("GaussianizationFlow", arch("GaussianizationFlow", dim=2, num_layers=2, num_components=2),
         slow=True),
    Case("NAF", arch("NAF", dim=3, hidden_dims=[5], num_layers=2, num_components=2, activation="tanh"),
         slow=True),
    Case("BNAF", arch("BNAF", dim=2, hidden_dims=[3], num_layers=2), slow=True),
    Case("PlanarFlow", arch("PlanarFlow", dim=2, num_layers=4), trajectory=True),
    Case("PlanarFlow-context", arch("PlanarFlow", dim=3, num_layers=4, context_dim=2), slow=True),
    Case("RadialFlow", arch("RadialFlow", dim=2, num_layers=5), trajectory=True),
    Case("RadialFlow-context", arch("RadialFlow", dim=3, num_layers=3, context_dim=2), slow=True),
    Case("SylvesterFlow", arch("SylvesterFlow", dim=3, num_layers=2, rank=2), slow=True),
    Case("SylvesterFlow-context", arch("SylvesterFlow", dim=2, num_layers=3, context_dim=2), slow=True),
    Case("ResidualFlow", arch("ResidualFlow", dim=2, hidden_dims=[6, 5], num_blocks=2),
         trajectory=True),
    Case("ResidualFlow-context", arch("ResidualFlow", dim=3, hidden_dims=[5], num_blocks=2,
                                      log_det="series", context_dim=2), slow=True),
    Case("NeuralODE", arch("NeuralODE", dim=2, hidden_dims=[6, 5], solver="rk4", num_steps=3),
         trajectory=True),
    Case("FFJORD-context", arch("FFJORD", dim=3, hidden_dims=[6, 5], solver="rk4", num_steps=3,
                                context_dim=2), slow=True),
]  # fmt: skip
"""Every row of the catalogue; adding one here is all that a new bijector needs."""


SHOWN_MODELS = ("Glow", "PlanarFlow", "RealNVP", "TarFlow")
"""Named models that stand for the others where the rows of their layers show the rest."""


def cases(condition: Callable[[Case], bool] = lambda case: True, variants: bool = True) -> Any:
    """``pytest.mark.parametrize`` over the rows that meet a condition.

    Without ``variants`` ``make test`` runs the plain rows only, and of the named models ``SHOWN_MODELS``.
    """
    import pytest

    def is_slow(case: Case) -> bool:
        repeats = case.is_variant or (case.is_named_model and case.name not in SHOWN_MODELS)
        return case.slow or (repeats and not variants)

    rows = [
        pytest.param(case, id=case.name, marks=pytest.mark.slow if is_slow(case) else ())
        for case in CASES
        if condition(case)
    ]
    return pytest.mark.parametrize("case", rows)
