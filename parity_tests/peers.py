"""Models of other libraries, with random weights, for the tests of importers.

``python -m parity_tests.peers`` writes the golden files from them, in an environment that has the
libraries (``make test-importers`` makes one).
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from flow_bridge import importers
from flow_bridge.importers.comparison import BY_MOVING, EPS, FLOOR, PER_LAYER, moves

GOLDEN = Path(__file__).parent / "golden" / "importers"
GOLDEN_ROWS = 8


class Peer(NamedTuple):
    """A model of another library.

    Attributes:
        make: gives the model, in the library's own float32 or in float64.
        hints: that it is imported with.
        context_dim: width of the context.
    """

    make: Callable[[], Any]
    context_dim: int = 0
    hints: Mapping[str, Any] = MappingProxyType({})


def zuko() -> dict[str, Peer]:
    import torch
    from zuko import flows, lazy, transforms
    from zuko.distributions import DiagNormal
    from zuko.transforms import MonotonicRQSTransform

    def composed() -> Any:
        layer = flows.MaskedAutoregressiveTransform(3, hidden_features=(5,))
        affine = transforms.AffineTransform if hasattr(transforms, "AffineTransform") else None
        affine = affine or torch.distributions.AffineTransform
        inner = [
            lazy.UnconditionalTransform(affine, torch.tensor([1.0, 2.0, 3.0]), torch.rand(3) + 2.0),
            lazy.UnconditionalTransform(
                transforms.PermutationTransform, torch.tensor([2, 0, 1]), buffer=True
            ),
            layer.inv,
        ]
        base = lazy.UnconditionalDistribution(
            DiagNormal, torch.randn(3), torch.rand(3), buffer=True
        )
        return lazy.Flow([lazy.LazyComposedTransform(*inner), layer], base)

    adjacency = torch.tensor(
        [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool
    )
    return {
        "maf": Peer(lambda: flows.MAF(4, 0, transforms=2, hidden_features=(6, 5))),
        "maf_context": Peer(
            lambda: flows.MAF(3, 2, transforms=2, hidden_features=(5, 5), activation=torch.nn.ELU),
            2,
        ),
        "maf_adjacency": Peer(
            lambda: flows.MAF(4, transforms=2, hidden_features=(6, 5), adjacency=adjacency)
        ),
        "maf_passes": Peer(
            lambda: flows.MAF(5, 2, transforms=2, hidden_features=(6,), passes=2), 2
        ),
        "maf_residual": Peer(
            lambda: flows.MAF(4, 2, transforms=2, hidden_features=(6, 6), residual=True), 2
        ),
        "maf_randperm": Peer(
            lambda: flows.MAF(4, transforms=3, hidden_features=(6,), randperm=True)
        ),
        "maf_slope": Peer(
            lambda: flows.MAF(3, transforms=2, hidden_features=(6,)), 0, {"slope": 1e-4}
        ),
        "nsf_slope": Peer(
            lambda: flows.NSF(3, 2, transforms=2, bins=4, hidden_features=(6,)), 2, {"slope": 1e-4}
        ),
        "maf_one_dimension": Peer(lambda: flows.MAF(1, 2, transforms=2, hidden_features=(6,)), 2),
        "maf_one_dimension_alone": Peer(lambda: flows.NSF(1, 0, transforms=2, bins=4)),
        "nsf": Peer(lambda: flows.NSF(4, 0, transforms=2, bins=5, hidden_features=(6, 5))),
        "nsf_context": Peer(lambda: flows.NSF(3, 2, transforms=3, bins=4, hidden_features=(6,)), 2),
        "nsf_passes": Peer(
            lambda: flows.NSF(4, 2, transforms=2, bins=4, hidden_features=(6,), passes=2), 2
        ),
        "nice_spline": Peer(
            lambda: flows.NICE(
                4,
                2,
                transforms=2,
                hidden_features=(6,),
                univariate=functools.partial(MonotonicRQSTransform, bound=3.0),
                shapes=[(5,), (5,), (4,)],
            ),
            2,
        ),
        "composed": Peer(composed),
        "sospf": Peer(
            lambda: flows.SOSPF(3, 2, degree=2, polynomials=2, transforms=2, hidden_features=(6,)),
            2,
        ),
        "naf": Peer(
            lambda: flows.NAF(
                3,
                2,
                transforms=2,
                signal=4,
                network={"hidden_features": (4, 3)},
                hidden_features=(6,),
            ),
            2,
        ),
        "naf_one_dimension": Peer(
            lambda: flows.NAF(1, 0, transforms=1, signal=3, network={"hidden_features": (4,)})
        ),
        "gf": Peer(lambda: flows.GF(3, 0, transforms=3, components=4)),
        "gf_context": Peer(
            lambda: flows.GF(2, 2, transforms=2, components=3, hidden_features=(5,)), 2
        ),
        "nice": Peer(lambda: flows.NICE(5, 2, transforms=3, hidden_features=(6, 5)), 2),
        "nice_randmask": Peer(
            lambda: flows.RealNVP(3, 0, transforms=3, hidden_features=(6,), randmask=True)
        ),
    }


def nflows() -> dict[str, Peer]:
    import torch
    from nflows import distributions, flows, transforms
    from nflows.nn import nets
    from torch.nn import functional

    def flow(*layers: Any, base: Any = None, net: Any = None, dim: int = 4) -> Any:
        base = base or distributions.StandardNormal([dim])
        return flows.Flow(transforms.CompositeTransform(list(layers)), base, net)

    def residual(in_dim: int, out_dim: int) -> Any:
        return nets.ResidualNet(in_dim, out_dim, hidden_features=6, num_blocks=2)

    def gated(in_dim: int, out_dim: int) -> Any:
        return nets.ResidualNet(
            in_dim, out_dim, hidden_features=5, context_features=2, activation=functional.elu
        )

    def normalized(in_dim: int, out_dim: int) -> Any:
        return nets.ResidualNet(in_dim, out_dim, 5, context_features=2, use_batch_norm=True)

    class Net(torch.nn.Module):
        """nflows' couplings pass a context on, which its own MLP does not take."""

        def __init__(self, in_dim: int, out_dim: int) -> None:
            super().__init__()
            linear, tanh = torch.nn.Linear, torch.nn.Tanh
            self.net = torch.nn.Sequential(
                linear(in_dim, 6),
                tanh(),
                torch.nn.Dropout(0.2),
                linear(6, 5),
                tanh(),
                linear(5, out_dim),
            )

        def forward(self, x: Any, context: Any = None) -> Any:
            return self.net(x)

    mask = torch.tensor([1, 0, 1, 0])
    t = transforms
    affine, spline = (
        t.MaskedAffineAutoregressiveTransform,
        (t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform),
    )
    box = {"num_bins": 4, "tails": "linear", "tail_bound": 2.5}
    coupling = t.PiecewiseRationalQuadraticCouplingTransform
    plain = {"use_residual_blocks": False}

    def embedding() -> Any:
        linear = torch.nn.Linear
        return torch.nn.Sequential(linear(3, 4), torch.nn.Tanh(), linear(4, 2), torch.nn.ELU())

    return {
        "maf": Peer(
            lambda: flow(affine(4, 7, **plain), t.ReversePermutation(4), affine(4, 6, **plain))
        ),
        "maf_context": Peer(
            lambda: flow(affine(3, 7, context_features=2, activation=torch.tanh, **plain), dim=3), 2
        ),
        "maf_residual": Peer(
            lambda: flow(affine(4, 7), t.RandomPermutation(4), affine(4, 6, num_blocks=1))
        ),
        "maf_residual_context": Peer(
            lambda: flow(affine(3, 7, context_features=2), t.RandomPermutation(3), dim=3), 2
        ),
        "maf_random_mask": Peer(lambda: flow(affine(4, 9, random_mask=True, **plain))),
        "maf_batch_norm": Peer(lambda: flow(used(affine(4, 7, use_batch_norm=True, **plain)))),
        "batch_norm_context": Peer(
            lambda: flow(
                used(affine(4, 7, context_features=2, use_batch_norm=True)),
                used(t.AffineCouplingTransform(mask, normalized)),
            ),
            2,
        ),
        "maf_flow": Peer(
            lambda: used(flows.MaskedAutoregressiveFlow(3, 6, 2, 1, batch_norm_between_layers=True))
        ),
        "rq_autoregressive": Peer(lambda: flow(spline(4, 7, **box, **plain))),
        "rq_autoregressive_residual": Peer(lambda: flow(spline(4, 7, **box))),
        "rq_autoregressive_context": Peer(
            lambda: flow(spline(3, 5, context_features=2, min_derivative=0.01, **box), dim=3), 2
        ),
        "affine_coupling": Peer(
            lambda: flow(
                t.AffineCouplingTransform(mask, residual), t.AffineCouplingTransform(1 - mask, Net)
            )
        ),
        "affine_coupling_context": Peer(
            lambda: flow(t.AffineCouplingTransform(mask, gated), t.RandomPermutation(4)), 2
        ),
        "additive_coupling": Peer(lambda: flow(t.AdditiveCouplingTransform(mask, Net))),
        "realnvp_flow": Peer(lambda: used(flows.SimpleRealNVP(3, 6, 2, 1))),
        "rq_coupling": Peer(
            lambda: flow(
                coupling(mask, residual, apply_unconditional_transform=True, **box), t.LULinear(4)
            )
        ),
        "rq_coupling_context": Peer(
            lambda: flow(coupling(mask, gated, min_bin_width=0.02, **box), t.LULinear(4)), 2
        ),
        "embedding": Peer(
            lambda: flow(affine(3, 5, context_features=2, **plain), net=embedding(), dim=3), 3
        ),
        "linear": Peer(
            lambda: flow(
                t.LULinear(4),
                t.NaiveLinear(4),
                t.QRLinear(4, num_householder=3),
                t.SVDLinear(4, num_householder=4),
                t.InverseTransform(t.LULinear(4)),
            )
        ),
        "normalization": Peer(
            lambda: flow(
                used(t.BatchNorm(4)),
                used(t.ActNorm(4)),
                t.PointwiseAffineTransform(torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor(0.5)),
                t.RandomPermutation(4),
                base=distributions.DiagonalNormal([4]),
            )
        ),
        "spline": Peer(
            lambda: flow(t.PiecewiseRationalQuadraticCDF([4], **box), t.RandomPermutation(4))
        ),
        "one_dimension": Peer(lambda: flow(affine(1, 5, context_features=2, **plain), dim=1), 2),
        "splines": Peer(
            lambda: flow(
                t.PiecewiseQuadraticCouplingTransform(
                    mask, residual, apply_unconditional_transform=True, **box
                ),
                t.PiecewiseCubicCouplingTransform(1 - mask, residual, **box),
                t.RandomPermutation(4),
                t.PiecewiseLinearCDF([4], **box),
                t.MaskedPiecewiseQuadraticAutoregressiveTransform(4, 5, num_blocks=1, **box),
            )
        ),
    }


def used(model: Any) -> Any:
    """Normalisation as after training."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            noise = torch.rand(buffer.shape, generator=generator)
            buffer.copy_(noise + 0.5 if "var" in name else noise)
        elif name == "initialized":
            buffer.fill_(True)
    return model


def sbi() -> dict[str, Peer]:
    import torch
    from sbi.neural_nets import posterior_nn
    from sbi.neural_nets.embedding_nets import FCEmbedding

    def estimator(model: str, dim: int = 3, context_dim: int = 2, **options: Any) -> Any:
        scale = torch.arange(1, dim + 1)
        theta, x = torch.randn(50, dim) * scale + 5, torch.randn(50, context_dim) * 3 - 1
        options = {"hidden_features": 5, "num_transforms": 2} | options
        return posterior_nn(model, **options)(theta, x)

    def embedded(model: str) -> Any:
        net = FCEmbedding(3, output_dim=2, num_hiddens=4)
        return estimator(model, 2, 3, embedding_net=net, z_score_x="structured")

    return {
        "maf": Peer(lambda: estimator("maf"), 2),
        "maf_embedded": Peer(lambda: embedded("maf"), 3),
        "maf_one_dimension": Peer(lambda: estimator("maf", 1), 2),
        "maf_rqs": Peer(lambda: estimator("maf_rqs", num_bins=4), 2),
        "nsf": Peer(lambda: estimator("nsf", num_bins=4), 2),
        "nsf_batch_norm": Peer(lambda: used(estimator("nsf", use_batch_norm=True)), 2),
        "nsf_embedded": Peer(lambda: embedded("nsf"), 3),
        "nsf_one_dimension": Peer(lambda: estimator("nsf", 1, hidden_layers_spline_context=1), 2),
        "zuko_maf": Peer(lambda: estimator("zuko_maf"), 2),
        "zuko_nsf": Peer(lambda: estimator("zuko_nsf", num_bins=4), 2),
        "zuko_nice": Peer(lambda: estimator("zuko_nice"), 2),
        "zuko_maf_embedded": Peer(lambda: embedded("zuko_maf"), 3),
        "zuko_nsf_one_dimension": Peer(lambda: estimator("zuko_nsf", 1), 2),
    }


def normflows() -> dict[str, Peer]:
    import torch
    from normflows import (
        ConditionalNormalizingFlow,
        MultiscaleFlow,
        NormalizingFlow,
        distributions,
        flows,
        nets,
        transforms,
    )

    def net(*widths: int, **options: Any) -> Any:
        return nets.MLP(list(widths), **options)

    def model(dim: int, *layers: Any, base: Any = None, conditional: bool = False) -> Any:
        cls = ConditionalNormalizingFlow if conditional else NormalizingFlow
        flow = cls(base or distributions.DiagGaussian(dim), layers)
        for layer in flow.flows:
            if isinstance(layer, flows.ActNorm):
                layer(torch.randn(20, dim))
        return flow

    def masked_affine() -> Any:
        b, limits = torch.tensor([1.0, 0.0, 1.0]), {"output_fn": "tanh", "output_scale": 1.5}
        return model(
            3,
            flows.MaskedAffineFlow(b, net(3, 5, 4, 3), net(3, 5, 4, 3)),
            flows.ActNorm(3),
            flows.MaskedAffineFlow(1 - b, None, net(3, 5, 3, score_scale=0.7, **limits)),
            flows.Permute(3, "swap"),
            flows.MaskedAffineFlow(b, net(3, 5, 3, leaky=0.1), None),
        )

    def blocks() -> Any:
        block = flows.AffineCouplingBlock
        return model(
            4,
            block(net(2, 5, 4)),
            flows.Permute(4),
            block(net(2, 5, 4), scale_map="sigmoid", split_mode="checkerboard"),
            block(net(2, 5, 4), scale_map="sigmoid_inv", split_mode="channel_inv"),
            flows.Reverse(block(net(2, 5, 2), scale=False, split_mode="checkerboard_inv")),
            flows.AffineConstFlow((4,)),
        )

    def maf() -> Any:
        return model(
            3,
            flows.MaskedAffineAutoregressive(3, 5, context_features=2, num_blocks=1),
            flows.LULinearPermute(3),
            flows.AutoregressiveRationalQuadraticSpline(
                3, 1, 5, num_context_channels=2, num_bins=4, permute_mask=True
            ),
            conditional=True,
        )

    def normalized() -> Any:
        options = {"context_features": 2, "num_blocks": 1, "use_batch_norm": True}
        return model(3, flows.MaskedAffineAutoregressive(3, 5, **options), conditional=True)

    def feedforward() -> Any:
        options = {"use_residual_blocks": False, "activation": torch.tanh}
        flow = model(
            4,
            flows.MaskedAffineAutoregressive(4, 7, **options, use_batch_norm=True),
            flows.Composite([flows.InvertibleAffine(4), flows.InvertibleAffine(4, use_lu=False)]),
            flows.MaskedAffineAutoregressive(4, 6, **options, random_mask=True),
        )
        for module in flow.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return flow

    def coupled_spline() -> Any:
        spline = flows.CoupledRationalQuadraticSpline
        return model(
            3,
            spline(3, 1, 5, num_context_channels=2, num_bins=4),
            spline(3, 1, 5, num_context_channels=2, num_bins=4, reverse_mask=True),
            conditional=True,
        )

    def planar() -> Any:
        block = flows.AffineCouplingBlock(net(2, 5, 2))
        base = distributions.GaussianMixture(2, 3)
        return model(3, flows.Planar((3,)), flows.Radial((3,)), block, base=base)

    def glow() -> Any:
        bases, levels = [], []
        for i, (channels, size) in enumerate(((8, 1), (2, 2))):
            both = channels if i == 0 else 2 * channels
            block = flows.GlowBlock(both, 3, scale_map="exp" if i else "sigmoid", use_lu=i == 0)
            levels.append([block, flows.Squeeze()])
            bases.append(distributions.GlowBase((channels, size, size)))
        options = {"transform": transforms.Logit(0.05), "class_cond": False}
        flow = MultiscaleFlow(bases, levels, [flows.Merge()], **options)
        flow.inverse_and_log_det(torch.rand(20, 1, 4, 4))
        return perturbed(flow, scale=0.1)

    return {
        "glow": Peer(glow),
        "masked_affine": Peer(masked_affine),
        "blocks": Peer(blocks),
        "maf": Peer(maf, 2),
        "maf_batch_norm": Peer(lambda: used(normalized()), 2),
        "feedforward": Peer(feedforward),
        "coupled_spline": Peer(coupled_spline, 2),
        "planar": Peer(planar),
    }


def freia() -> dict[str, Peer]:
    import torch
    from FrEIA import framework, modules
    from torch import nn

    def subnet(below: int, above: int) -> Any:
        return nn.Sequential(nn.Linear(below, 5), nn.ReLU(), nn.Linear(5, above))

    def model(*given: Any, context_dim: int = 0) -> Any:
        flow = framework.SequenceINN(5)
        for name, options in given:
            cls = getattr(modules, name)
            if name in ("ActNorm", "PermuteRandom"):
                flow.append(cls, **options)
                continue
            condition = {"cond": 0, "cond_shape": (context_dim,)} if context_dim else {}
            flow.append(cls, **condition, subnet_constructor=subnet, **options)
        flow(torch.randn(20, 5), c=[torch.randn(20, context_dim)])
        return flow

    def graph() -> Any:
        nodes = [framework.InputNode(5)]
        condition = framework.ConditionNode(2)
        options = {"subnet_constructor": subnet, "split_len": 2}
        for cls in (modules.GLOWCouplingBlock, modules.AffineCouplingOneSided):
            nodes.append(framework.Node(nodes[-1], cls, options, conditions=condition))
            nodes.append(framework.Node(nodes[-1], modules.PermuteRandom, {"seed": 1}))
        return framework.GraphINN([*nodes, condition, framework.OutputNode(nodes[-1])])

    block = "AllInOneBlock"
    turned = {"learned_householder_permutation": 2, "permute_soft": True}
    return {
        "all_in_one": Peer(
            lambda: model(
                (block, {"affine_clamping": 1.0, "global_affine_type": "SIGMOID"}),
                (block, {"permute_soft": True, "reverse_permutation": True}),
                (block, {**turned, "global_affine_type": "EXP"}),
            )
        ),
        "couplings": Peer(
            lambda: model(
                ("GLOWCouplingBlock", {"clamp_activation": "SIGMOID"}),
                ("RNVPCouplingBlock", {"clamp_activation": "TANH", "clamp": 1.3}),
                ("NICECouplingBlock", {}),
                ("ConditionalAffineTransform", {}),
                ("PermuteRandom", {"seed": 1}),
                ("ActNorm", {}),
                ("RNVPCouplingBlock", {}),
                context_dim=2,
            ),
            2,
        ),
        "graph": Peer(graph, 2),
    }


def pyro() -> dict[str, Peer]:
    import torch
    from pyro.distributions import (
        ConditionalTransformedDistribution,
        Normal,
        TransformedDistribution,
        transforms,
    )
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, DenseNN

    num_bins, quadratic = 4, {"count_bins": 4, "order": "quadratic"}
    sizes = [num_bins, num_bins, num_bins - 1]

    def model(*given: Any, conditional: bool = False) -> Any:
        for transform in given:
            if isinstance(transform, torch.nn.Module):
                perturbed(transform)
            if hasattr(transform, "moving_variance"):
                transform.moving_variance.uniform_(0.5, 2)
        cls = ConditionalTransformedDistribution if conditional else TransformedDistribution
        return cls(Normal(torch.zeros(3), torch.ones(3)).to_event(1), list(given))

    def couplings() -> Any:
        widths = [2 * size for size in sizes]
        return model(
            transforms.affine_coupling(3, hidden_dims=[5, 4]),
            transforms.permute(3),
            transforms.SplineCoupling(3, 1, DenseNN(1, [5], widths), **quadratic),
            transforms.batchnorm(3),
        )

    def autoregressive() -> Any:
        return model(
            transforms.affine_autoregressive(3, hidden_dims=[6, 5], log_scale_min_clip=-0.5),
            transforms.AffineTransform(torch.tensor([1.0, 0.0, -1.0]), 2.0),
            transforms.SplineAutoregressive(3, AutoRegressiveNN(3, [5], sizes), **quadratic),
        )

    def conditional() -> Any:
        net = ConditionalAutoRegressiveNN(3, 2, [5], sizes)
        return model(
            transforms.conditional_affine_coupling(3, 2, hidden_dims=[5]),
            transforms.conditional_affine_autoregressive(3, 2, hidden_dims=[5]),
            transforms.conditional_spline(3, 2, hidden_dims=[5], **quadratic),
            transforms.ConditionalSplineAutoregressive(3, net, **quadratic),
            conditional=True,
        )

    def linear_splines() -> Any:
        net = ConditionalAutoRegressiveNN(3, 2, [5], [*sizes, num_bins])
        return model(
            transforms.spline_coupling(3, split_dim=1, hidden_dims=[5], count_bins=num_bins),
            transforms.conditional_spline(3, 2, hidden_dims=[5], count_bins=num_bins),
            transforms.permute(3),
            transforms.ConditionalSplineAutoregressive(3, net, count_bins=num_bins),
            conditional=True,
        )

    return {
        "couplings": Peer(couplings),
        "linear_splines": Peer(linear_splines, 2),
        "autoregressive": Peer(autoregressive),
        "spline": Peer(lambda: model(transforms.spline(3, **quadratic), transforms.permute(3))),
        "conditional": Peer(conditional, 2),
        "planar": Peer(lambda: model(transforms.planar(3), transforms.radial(3))),
    }


def shaken(tree: Any) -> Any:
    """A pytree of JAX with noise on all its numbers, drawn with numpy's own seed."""
    import jax

    generator = np.random.default_rng(np.random.randint(1 << 31))

    def shake(leaf: Any) -> Any:
        if not (hasattr(leaf, "dtype") and leaf.dtype.kind == "f"):
            return leaf
        return leaf + (0.3 * generator.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map(shake, tree)


def flowjax() -> dict[str, Peer]:
    import jax
    from flowjax import bijections, flows
    from flowjax.distributions import Normal, StandardNormal, Transformed

    key, size = jax.random.key(0), {"flow_layers": 2, "nn_width": 5}
    spline = bijections.RationalQuadraticSpline(knots=3, interval=(-3, 4))

    def model(make: Any, dim: int, **options: Any) -> Any:
        return shaken(make(key, base_dist=StandardNormal((dim,)), **options))

    def scaled() -> Any:
        base = Normal(jax.numpy.ones(2), 2 * jax.numpy.ones(2))
        flow = flows.coupling_flow(key, base_dist=base, transformer=bijections.Affine(), **size)
        outer = bijections.Affine(jax.numpy.array([1.0, -2.0]), jax.numpy.array([0.5, 3.0]))
        mixed = bijections.TriangularAffine(jax.numpy.zeros(2), jax.numpy.eye(2) + 0.3)
        chain = bijections.Chain([mixed, bijections.Invert(outer)])
        return shaken(Transformed(flow, chain))

    coupling, masked = flows.coupling_flow, flows.masked_autoregressive_flow
    context = {"cond_dim": 2, "nn_activation": jax.nn.gelu}
    return {
        "coupling": Peer(lambda: model(coupling, 3, **context, **size), 2),
        "coupling_spline": Peer(
            lambda: model(coupling, 3, transformer=spline, invert=False, **size)
        ),
        "masked": Peer(lambda: model(masked, 4, **size)),
        "masked_spline": Peer(lambda: model(masked, 3, transformer=spline, **context, **size), 2),
        "planar": Peer(lambda: model(flows.planar_flow, 3, flow_layers=2)),
        "scaled": Peer(scaled),
        "bnaf": Peer(
            lambda: model(
                flows.block_neural_autoregressive_flow, 3, flow_layers=2, nn_block_dim=3, cond_dim=2
            ),
            2,
        ),
        "triangular_spline": Peer(
            lambda: model(flows.triangular_spline_flow, 3, flow_layers=2, knots=3, cond_dim=2), 2
        ),
    }


def distrax() -> dict[str, Peer]:
    from functools import partial

    import distrax as library
    import haiku
    import jax
    from flax import linen
    from jax import numpy as jnp

    class Net(linen.Module):
        count: int
        size: int

        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = jnp.tanh(linen.Dense(5)(x))
            x = linen.Dense(self.count * self.size)(x)
            return x.reshape(*x.shape[:-1], self.count, self.size)

    def of_haiku(size: int, x: Any) -> Any:
        x = haiku.nets.MLP([5, 3 * size], activation=jax.nn.silu)(x)
        return x.reshape(*x.shape[:-1], 3, size)

    def model(make: Any, size: int, in_haiku: bool = False) -> Any:
        net: Any = Net(3, size)
        if in_haiku:
            net = haiku.without_apply_rng(haiku.transform(partial(of_haiku, size)))
        layers: list[Any] = []
        for i in range(2):
            weights = shaken(net.init(jax.random.key(i), jnp.zeros(3)))
            mask = jnp.arange(3) % 2 == i
            layers.append(library.MaskedCoupling(mask, partial(net.apply, weights), make))
        affine = library.ScalarAffine(jnp.array([1.0, 0.0, -1.0]), jnp.array([2.0, 0.5, 1.0]))
        chain = library.Chain([*layers, library.Block(affine, 1)])
        base = library.MultivariateNormalDiag(jnp.zeros(3), jnp.ones(3))
        return library.Transformed(base, library.Inverse(chain) if in_haiku else chain)

    def split() -> Any:
        """Of odd widths, each part once."""
        layers: list[Any] = []
        for swap, known, size in ((False, 2, 1), (True, 1, 2)):
            net = Net(size, 10)
            weights = shaken(net.init(jax.random.key(0), jnp.zeros(known)))
            apply = partial(net.apply, weights)
            layers.append(library.SplitCoupling(2, 1, apply, spline, swap=swap))
        base = library.Independent(library.Normal(jnp.ones(3), 2 * jnp.ones(3)), 1)
        return library.Transformed(base, library.Chain(layers))

    def affine(p: Any) -> Any:
        return library.ScalarAffine(shift=p[..., 0], log_scale=p[..., 1])

    def softplus(p: Any) -> Any:
        return library.ScalarAffine(shift=p[..., 1], scale=jax.nn.softplus(p[..., 0]) + 1e-3)

    def spline(p: Any) -> Any:
        return library.RationalQuadraticSpline(p, -2.0, 3.0)

    def spline_within(p: Any) -> Any:
        return library.RationalQuadraticSpline(p, -2.0, 2.0, boundary_slopes="identity")

    return {
        "affine": Peer(lambda: model(affine, 2)),
        "softplus": Peer(lambda: model(softplus, 2, in_haiku=True)),
        "spline": Peer(lambda: model(spline, 10, in_haiku=True)),
        "spline_within": Peer(lambda: model(spline_within, 10)),
        "split": Peer(split),
    }


def numpyro() -> dict[str, Peer]:
    from functools import partial

    import jax
    from jax import numpy as jnp
    from jax.example_libraries import stax
    from numpyro.distributions import Normal, TransformedDistribution
    from numpyro.distributions.flows import (
        BlockNeuralAutoregressiveTransform,
        InverseAutoregressiveTransform,
    )
    from numpyro.distributions.transforms import AffineTransform, PermuteTransform
    from numpyro.nn import AutoregressiveNN, BlockNeuralAutoregressiveNN

    def iaf() -> Any:
        given: list[Any] = []
        for i, order in enumerate(([0, 1, 2], [2, 0, 1])):
            init, apply = AutoregressiveNN(
                3, [5, 4], permutation=jnp.array(order), nonlinearity=stax.Elu
            )
            weights = shaken(init(jax.random.key(i), (3,))[1])
            given.append(InverseAutoregressiveTransform(partial(apply, weights)))
            given.append(PermuteTransform(jnp.arange(3)[::-1]))
        scale = AffineTransform(jnp.arange(3.0), 2.0)
        base = Normal(jnp.zeros(3), 1).to_event(1)
        return TransformedDistribution(base, [*given, scale])

    def bnaf() -> Any:
        given: list[Any] = []
        for i, residual in enumerate(("gated", "normal", None)):
            init, apply = BlockNeuralAutoregressiveNN(2, [3, 2], residual)
            weights = shaken(init(jax.random.key(i), (2,))[1])
            given.append(BlockNeuralAutoregressiveTransform(partial(apply, weights)))
            given.append(PermuteTransform(jnp.arange(2)[::-1]))
        return TransformedDistribution(Normal(jnp.zeros(2), 1).to_event(1), given)

    return {"iaf": Peer(iaf), "bnaf": Peer(bnaf)}


NOTHING: Mapping[str, Any] = MappingProxyType({})
SLOPE: Mapping[str, Any] = {"slope": 1e-3}
SPLINES: Mapping[str, Any] = {"univariate": "MonotonicRQSTransform"}
BOX: Mapping[str, Any] = {"tail_bound": 2.5, "spline": "rational_quadratic"}
FULLY: Mapping[str, Any] = {"embedding_activation": "relu"}
STATES: dict[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        [
            "zuko_maf",
            "zuko_maf_adjacency",
            "zuko_maf_passes",
            "zuko_maf_residual",
            "zuko_maf_one_dimension",
            "zuko_nice",
        ],
        SLOPE,
    ),
    "zuko_maf_one_dimension_alone": {**SLOPE, **SPLINES},
    "zuko_nsf": {**SLOPE, **SPLINES},
    "zuko_nsf_passes": {**SLOPE, **SPLINES},
    "zuko_maf_slope": {"slope": 1e-4},  # these two files were written by zuko 1.4.1
    "zuko_nsf_slope": {"slope": 1e-4, **SPLINES},
    "zuko_maf_context": {**SLOPE, "activation": "elu"},
    "zuko_nice_spline": {**SLOPE, **SPLINES, "bound": 3.0},
    **dict.fromkeys(
        [
            "nflows_maf",
            "nflows_maf_residual",
            "nflows_maf_residual_context",
            "nflows_maf_random_mask",
            "nflows_maf_batch_norm",
            "nflows_batch_norm_context",
            "nflows_maf_flow",
            "nflows_realnvp_flow",
            "nflows_normalization",
            "nflows_one_dimension",
        ],
        NOTHING,
    ),
    "nflows_maf_context": {"activation": "tanh"},
    "nflows_rq_autoregressive": BOX,
    "nflows_rq_autoregressive_residual": BOX,
    "nflows_rq_autoregressive_context": {**BOX, "min_derivative": 0.01},
    "nflows_affine_coupling_context": {"activation": "elu"},
    "nflows_rq_coupling": BOX,
    "nflows_rq_coupling_context": {**BOX, "activation": "elu", "min_bin_width": 0.02},
    "nflows_spline": BOX,
    "normflows_coupled_spline": {"tail_bound": 3.0},
    "normflows_feedforward": {"activation": "tanh"},
    "normflows_maf": {"tail_bound": 3.0},
    "normflows_maf_batch_norm": {"tail_bound": 3.0},
    "normflows_planar": NOTHING,
    "sbi_maf": {"model": "maf"},
    "sbi_maf_embedded": {"model": "maf", **FULLY},
    "sbi_maf_one_dimension": {"model": "maf"},
    "sbi_maf_rqs": {"model": "maf_rqs", "tail_bound": 3.0},
    "sbi_nsf": {"model": "nsf", "tail_bound": 3.0},
    "sbi_nsf_batch_norm": {"model": "nsf", "tail_bound": 3.0},
    "sbi_nsf_embedded": {"model": "nsf", "tail_bound": 3.0, **FULLY},
    "sbi_nsf_one_dimension": {"model": "nsf", "tail_bound": 3.0},
    "sbi_zuko_maf": {"model": "zuko_maf", **SLOPE},
    "sbi_zuko_nsf": {"model": "zuko_nsf", **SLOPE},
    "sbi_zuko_nice": {"model": "zuko_nice", **SLOPE},
    "sbi_zuko_maf_embedded": {"model": "zuko_maf", **SLOPE, **FULLY},
}
"""What ``import_state`` needs besides the arrays, of models that it can read."""

LIBRARIES: dict[str, Callable[[], dict[str, Peer]]] = {
    "nflows": nflows,
    "sbi": sbi,
    "zuko": zuko,
    "normflows": normflows,
    "freia": freia,
    "pyro": pyro,
    "flowjax": flowjax,
    "distrax": distrax,
    "numpyro": numpyro,
}


def perturbed(module: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """A torch module with noise on all its weights, in evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))
    return module.eval()


def rows(
    dim: int | Sequence[int], context_dim: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows, of which the first are wide, or images; and contexts."""
    generator = np.random.default_rng(seed)
    if isinstance(dim, int):
        x = generator.normal(size=(GOLDEN_ROWS, dim)) * 1.3
        x[:3] *= 4
    else:
        x = generator.uniform(size=(GOLDEN_ROWS, *dim))
    return x, generator.normal(size=(GOLDEN_ROWS, context_dim)) if context_dim else None


def golden_files() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The name and the arrays of each golden file."""
    import torch

    for library, make in LIBRARIES.items():
        if len(sys.argv) > 1 and library not in sys.argv[1:]:
            continue
        for name, peer in make().items():
            torch.manual_seed(0)
            np.random.seed(0)
            model = peer.make()
            if isinstance(model, torch.nn.Module) and name != "glow":
                model = perturbed(model)
            imported = importers.import_flow(model, **peer.hints)
            x, context = rows(imported.reading.base.architecture["dim"], peer.context_dim)
            run = imported.reading.run
            z, log_det = run(x, context)
            # a Gaussianization of zuko is compared where it has the digits
            kept = np.isfinite(z.reshape(len(z), -1)).all(1)
            x, z, log_det = x[kept], z[kept], log_det[kept]
            context = None if context is None else context[kept]
            moved = BY_MOVING * moves(run, x, context, (z, log_det)).max(1)
            count = sum(len(layer.parts) for layer in imported.reading.layers)
            limits = np.maximum((FLOOR + PER_LAYER * count) * EPS, moved)
            key = f"{library}_{name}"
            arrays, contents = imported.arrays, {}
            if key in STATES:
                arrays = {k: value.numpy().copy() for k, value in model.state_dict().items()}
                contents["state"] = np.array(json.dumps({"library": library, **STATES[key]}))
            # one array: each one of its own would cost more than its numbers
            contents["arrays"] = np.frombuffer(safetensors.numpy.save(dict(arrays)), np.uint8)
            contents |= {"x": x, "z": z, "log_det": log_det, "limits": limits}
            contents["inverse"] = np.array(imported.reading.inverse)
            contents |= {} if context is None else {"context": context}
            contents["architecture"] = np.array(json.dumps(imported.architecture))
            contents["source"] = np.array(imported.source)
            yield key, contents


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, contents in golden_files():
        np.savez_compressed(GOLDEN / f"{name}.npz", **contents)
        print(name, (GOLDEN / f"{name}.npz").stat().st_size)
