"""The PyTorch contenders: ours, the libraries people use, and the floor.

Each builds the model of a row with the same conditioner sizes and ReLU, and trains with the same
Adam, the fused one that our ``fit`` uses; in ``train_default`` the others train with torch's default
Adam, as their own examples do. A library is imported when it is built, never before.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.published_torch import START, AutoregressiveLayer, CouplingLayer, Flow
from benchmarks.rows import Place, Row

LEARNING_RATE = 1e-5
OPS = ("log_prob", "train", "train_default", "train_compiled", "sample", "forward", "inverse")


def enter(place: Place) -> AbstractContextManager[Any]:
    """In what contenders are built; the precision is in force from now on."""
    if place.device == "cpu":
        return nullcontext()
    exact = place.precision == "highest"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    return torch.device("cuda")


def finish() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_of_gpu(job: Callable[[], object]) -> int:
    """Bytes of tensors at the peak of a job."""
    torch.cuda.reset_peak_memory_stats()
    job()
    return torch.cuda.max_memory_allocated()


def mlp(in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> nn.Sequential:
    """The conditioner for libraries that take any module."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise((in_dim, *hidden_dims, out_dim)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def grown(flow: nn.Module, row: Row) -> nn.Module:
    """A flow with larger weights, so that it is some way from the identity."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= row.options["growth"]
    return flow


def conv_net(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """The conditioner of images for libraries that take any module; ends in zeros, as theirs and ours."""
    last = nn.Conv2d(hidden, out_channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        last,
    )


class Contender:
    """A library's form of a row: a method named as ``row.model`` builds it, the others run it."""

    name: ClassVar[str]
    requires: ClassVar[str]
    fused_by_default: ClassVar[bool | None] = None
    flow: Any

    def __init__(self, row: Row) -> None:
        torch.manual_seed(0)
        self.row = row
        self.flow = getattr(self, row.model)(row)
        self.optimizers = {
            "train": torch.optim.Adam(self.flow.parameters(), lr=LEARNING_RATE, fused=True),
            "train_default": torch.optim.Adam(
                self.flow.parameters(), lr=LEARNING_RATE, fused=self.fused_by_default
            ),
        }
        self.x = torch.randn(row.batch, *row.event_shape)
        self.as_sampled = torch.randn(row.samples, *row.event_shape)
        self.context = torch.randn(row.batch, row.context_dim) if row.context_dim else None

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(p.numel() for p in self.flow.parameters() if p.requires_grad)

    def given(self, x: Tensor) -> tuple[Tensor, ...]:
        """The contexts of the first rows, as what follows x; nothing without one."""
        return () if self.context is None else (self.context[: len(x)],)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x, *self.given(x))

    def forward(self, x: Tensor) -> Tensor:
        """Data to latent."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> Tensor:
        """Latent to data."""
        raise NotImplementedError

    def sample(self, num_samples: int) -> Tensor:
        if self.context is not None:  # in our order of arguments and nflows'
            return self.flow.sample(1, self.context)
        return self.flow.sample(num_samples)

    def evaluations(self) -> int | None:
        """How often ``log_prob`` evaluates the network of a differential equation."""
        if self.row.model not in ("continuous", "matching"):
            return None
        count = 0

        def increase(*_: Any) -> None:
            nonlocal count
            count += 1

        handle = self.velocity().register_forward_hook(increase)
        self.job("log_prob")()
        handle.remove()
        return count

    def velocity(self) -> nn.Module:
        """The network of the differential equation."""
        raise NotImplementedError

    def train_step(self, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step of maximum likelihood."""
        optimizer.zero_grad()
        (-self.log_prob(x).mean()).backward()
        optimizer.step()

    def job(self, op: str) -> Callable[[], object]:
        """What is timed for an operation, without arguments."""
        if op == "train_compiled":
            raise NotImplementedError
        self.flow.train(op in self.optimizers)
        if op in self.optimizers:
            return lambda: self.train_step(self.x, self.optimizers[op])
        arguments = {"sample": self.row.samples, "forward": self.as_sampled}
        argument = arguments.get(op, self.x)
        return lambda: torch.no_grad()(getattr(self, op))(argument)

    def check(self) -> tuple[float, float]:
        """Errors of the round trip and of the log-density against the autodiff Jacobian of one row."""
        try:
            with torch.no_grad():
                round_trip = (self.inverse(self.forward(self.x)) - self.x).abs().max().item()
        except NotImplementedError:  # without an inverse
            round_trip = 0.0
        x = self.x[:1]
        size = x.numel()
        jacobian = torch.autograd.functional.jacobian(self.forward, x).reshape(size, size)
        z = self.forward(x)
        log_normal = -z.square().sum() / 2 - size * math.log(2 * math.pi) / 2
        log_prob = log_normal + torch.linalg.slogdet(jacobian).logabsdet
        return round_trip, (log_prob - self.log_prob(x).squeeze()).abs().item()


class Twinflows(Contender):
    name, requires = "twinflows", "torch_flows"
    fused_by_default = True

    def realnvp(self, row: Row) -> nn.Module:
        from torch_flows import AffineCoupling, Chain, Flow, StandardNormal

        layers = [
            AffineCoupling(
                row.dim,
                row.hidden_dims,
                ("even", "odd")[i % 2],
                activation="relu",
                separate_networks=False,
            )
            for i in range(row.layers)
        ]
        return Flow(Chain(layers), StandardNormal(row.dim))

    def spline(self, row: Row) -> nn.Module:
        from torch_flows import Chain, Flow, SplineCoupling, StandardNormal

        layers = [
            SplineCoupling(
                row.dim,
                row.hidden_dims,
                ("even", "odd")[i % 2],
                activation="relu",
                **row.options,
            )
            for i in range(row.layers)
        ]
        return Flow(Chain(layers), StandardNormal(row.dim))

    def continuous(self, row: Row) -> nn.Module:
        from torch_flows import ContinuousBijector, Flow, StandardNormal

        tolerance = row.options["tolerances"][self.name]
        bijector = ContinuousBijector(
            row.dim, row.hidden_dims, rtol=tolerance, atol=tolerance, adjoint=False
        )
        return grown(Flow(bijector, StandardNormal(row.dim)), row)

    matching = continuous

    def exact(self: Any, row: Row) -> nn.Module:
        from torch_flows import HollowMLP, Network, NeuralODE

        num_steps = row.options["num_steps"]
        given: dict[str, Any] = {"solver": "rk4", "num_steps": num_steps}
        if row.options["hollow"]:
            given["conditioner"] = Network(HollowMLP, hidden_dims=row.hidden_dims)
        return NeuralODE(row.dim, row.hidden_dims, **given)

    def job(self, op: str) -> Callable[[], object]:
        if op != "train_compiled":
            return super().job(op)
        optimizer = self.optimizers["train"]
        self.flow.train()
        loss = torch.compile(lambda x: -self.log_prob(x).mean())  # as ``fit(compile=True)``

        def step() -> None:
            optimizer.zero_grad()
            loss(self.x).backward()
            optimizer.step()

        return step

    def train_step(self, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        if self.row.model != "matching":
            return super().train_step(x, optimizer)
        from torch_flows import FlowMatching

        loss = FlowMatching()
        drawn = loss.draw(self.flow, np.random.default_rng(0), len(x))  # on the host, as fit does
        noise = [torch.from_numpy(array).to(x) for array in drawn]
        optimizer.zero_grad()
        loss(self.flow, x, None, *noise).mean().backward()
        optimizer.step()

    def evaluations(self) -> int | None:
        if self.row.model not in ("continuous", "matching"):
            return None
        return self.flow.bijector.count_evaluations(self.x)

    def residual(self, row: Row) -> nn.Module:
        from torch_flows import Chain, Flow, InvertibleResidual, StandardNormal

        layers = [InvertibleResidual(row.dim, row.hidden_dims, 0.9) for _ in range(row.layers)]
        return grown(Flow(Chain(layers), StandardNormal(row.dim)), row)

    def planar(self, row: Row) -> nn.Module:
        from torch_flows import PlanarFlow

        return PlanarFlow(row.dim, row.layers)

    def radial(self, row: Row) -> nn.Module:
        from torch_flows import RadialFlow

        return RadialFlow(row.dim, row.layers)

    def sylvester(self, row: Row) -> nn.Module:
        from torch_flows import SylvesterFlow

        return SylvesterFlow(row.dim, row.layers)

    def maf(self, row: Row) -> nn.Module:
        from torch_flows import Chain, Flow, MaskedAffineAutoregressive, StandardNormal

        layers = [
            MaskedAffineAutoregressive(
                row.dim, row.hidden_dims, (None, "reverse")[i % 2], activation="relu"
            )
            for i in range(row.layers)
        ]
        return Flow(Chain(layers), StandardNormal(row.dim))

    def conditional(self, row: Row) -> nn.Module:
        from torch_flows import MAF

        given: dict[str, Any] = {"context_dim": row.context_dim, "activation": "relu"}
        return MAF(row.dim, row.hidden_dims, row.layers, **given)

    def maf_of_zuko(self, row: Row) -> nn.Module:
        from torch_flows import import_flow

        return import_flow(Zuko.maf(self, row))

    def maf_of_nflows(self, row: Row) -> nn.Module:
        from torch_flows import import_flow

        return import_flow(Nflows.maf(self, row))

    def sospf(self, row: Row) -> nn.Module:
        from torch_flows import import_flow

        return import_flow(Zuko.sospf(self, row), check=False)

    def gf(self, row: Row) -> nn.Module:
        from torch_flows import import_flow

        return import_flow(Zuko.gf(self, row), check=False)

    def naf(self, row: Row) -> nn.Module:
        from torch_flows import NAF

        return NAF(row.dim, row.hidden_dims, row.layers, activation="relu")

    def unaf(self, row: Row) -> nn.Module:
        from torch_flows import IntegratedNetworkMap

        return self.masked(row, IntegratedNetworkMap())

    def bpf(self, row: Row) -> nn.Module:
        from torch_flows import BernsteinMap

        return self.masked(row, BernsteinMap(16))

    def bnaf(self, row: Row) -> nn.Module:
        from torch_flows import BNAF

        return BNAF(row.dim, (8,), row.layers)

    @staticmethod
    def masked(row: Row, map: Any) -> nn.Module:
        """Masked autoregressive maps, their orders reversed by turns."""
        from torch_flows import MLP, Chain, Flow, MaskedAutoregressive, Network, StandardNormal

        network = Network(MLP, hidden_dims=row.hidden_dims, activation="relu")
        orders = [(None, "reverse")[i % 2] for i in range(row.layers)]
        layers = [MaskedAutoregressive(row.dim, map, network, order) for order in orders]
        return Flow(Chain(layers), StandardNormal(row.dim))

    def glow(self, row: Row) -> nn.Module:
        from torch_flows import Glow

        return Glow(row.event_shape, row.options["levels"], row.layers, row.hidden_dims[0])

    def tarflow(self, row: Row) -> nn.Module:
        from torch_flows import AffineMap, TarFlow

        return TarFlow(
            row.event_shape,
            num_layers=row.layers,
            hidden_dim=row.hidden_dims[0],
            map=AffineMap("exp", order="shift_divide"),
            initial_scale=START,
            **row.options,
        )

    def jet(self, row: Row) -> nn.Module:
        from torch_flows import Jet

        return Jet(
            row.event_shape,
            num_layers=row.layers,
            hidden_dim=row.hidden_dims[0],
            initial_scale=START,
            **row.options,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.forward(x, *self.given(x))[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.flow.inverse(z, *self.given(z))[0]


class Zuko(Contender):
    name, requires = "zuko", "zuko"

    def realnvp(self, row: Row) -> nn.Module:
        from zuko.flows import NICE

        return NICE(row.dim, transforms=row.layers, hidden_features=row.hidden_dims)

    def spline(self, row: Row) -> nn.Module:
        from zuko.distributions import DiagNormal
        from zuko.flows import Flow, GeneralCouplingTransform, UnconditionalDistribution
        from zuko.transforms import MonotonicRQSTransform

        bins = row.options["num_bins"]
        layers = [
            GeneralCouplingTransform(
                row.dim,
                mask=torch.arange(row.dim) % 2 == i % 2,
                univariate=MonotonicRQSTransform,
                shapes=[(bins,), (bins,), (bins - 1,)],
                hidden_features=row.hidden_dims,
            )
            for i in range(row.layers)
        ]
        zeros, ones = torch.zeros(row.dim), torch.ones(row.dim)
        return Flow(layers, UnconditionalDistribution(DiagNormal, zeros, ones, buffer=True))

    def continuous(self, row: Row) -> nn.Module:
        from zuko.flows import CNF

        tolerance = row.options["tolerances"][self.name]
        flow = CNF(
            row.dim,
            freqs=1,
            atol=tolerance,
            rtol=tolerance,
            hidden_features=row.hidden_dims,
            activation=nn.Tanh,
        )
        return grown(flow, row)

    matching = continuous

    def velocity(self) -> nn.Module:
        from zuko.nn import MLP

        return next(module for module in self.flow.modules() if isinstance(module, MLP))

    def maf(self: Any, row: Row) -> nn.Module:
        from zuko.flows import MAF

        sizes = {"transforms": row.layers, "hidden_features": row.hidden_dims}
        return MAF(row.dim, row.context_dim, **sizes)

    maf_of_zuko = conditional = maf

    def sospf(self: Any, row: Row) -> nn.Module:
        from zuko.flows import SOSPF

        return SOSPF(row.dim, transforms=row.layers, hidden_features=row.hidden_dims)

    def gf(self: Any, row: Row) -> nn.Module:
        from zuko.flows import GF

        return grown(GF(row.dim, transforms=row.layers), row)

    def naf(self, row: Row) -> nn.Module:
        from zuko.flows import NAF

        return NAF(row.dim, transforms=row.layers, hidden_features=row.hidden_dims)

    def unaf(self, row: Row) -> nn.Module:
        from zuko.flows import UNAF

        return UNAF(row.dim, transforms=row.layers, hidden_features=row.hidden_dims)

    def bpf(self, row: Row) -> nn.Module:
        from zuko.flows import BPF

        return BPF(row.dim, transforms=row.layers, hidden_features=row.hidden_dims)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow(*self.given(x)).log_prob(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(*self.given(x)).transform(x)

    def inverse(self, z: Tensor) -> Tensor:
        inverse = self.flow(*self.given(z)).transform.inv
        if self.row.model in (
            "continuous",
            "matching",
        ):  # with the log-determinant, which the others compute too
            return inverse.call_and_ladj(z)[0]
        return inverse(z)

    def sample(self, num_samples: int) -> Tensor:
        if self.context is not None:
            return self.flow(self.context).sample()
        return self.flow().sample((num_samples,))


class _IgnoresContext(nn.Sequential):
    """nflows hands its conditioners a context."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(inputs)


class Nflows(Contender):
    name, requires = "nflows", "nflows"

    def realnvp(self, row: Row) -> nn.Module:
        from nflows.distributions.normal import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import AffineCouplingTransform, CompositeTransform
        from nflows.utils.torchutils import create_alternating_binary_mask

        layers = [
            AffineCouplingTransform(
                create_alternating_binary_mask(row.dim, even=i % 2 == 0),
                lambda n_in, n_out: _IgnoresContext(*mlp(n_in, row.hidden_dims, n_out)),
            )
            for i in range(row.layers)
        ]
        return Flow(CompositeTransform(layers), StandardNormal([row.dim]))

    def spline(self, row: Row) -> nn.Module:
        from nflows.distributions.normal import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import CompositeTransform
        from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
        from nflows.utils.torchutils import create_alternating_binary_mask

        layers = [
            PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(row.dim, even=i % 2 == 0),
                lambda n_in, n_out: _IgnoresContext(*mlp(n_in, row.hidden_dims, n_out)),
                tails="linear",
                **row.options,
            )
            for i in range(row.layers)
        ]
        return Flow(CompositeTransform(layers), StandardNormal([row.dim]))

    def maf(self: Any, row: Row) -> nn.Module:
        from nflows.distributions.normal import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import CompositeTransform, ReversePermutation
        from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform

        layers: list[nn.Module] = []
        for _ in range(row.layers):
            layer = MaskedAffineAutoregressiveTransform(
                row.dim,
                row.hidden_dims[0],
                context_features=row.context_dim or None,
                num_blocks=len(row.hidden_dims) - 1,
                use_residual_blocks=False,
            )
            layers += [ReversePermutation(row.dim), layer]
        return Flow(CompositeTransform(layers), StandardNormal([row.dim]))

    maf_of_nflows = conditional = maf

    def glow(self, row: Row) -> nn.Module:
        from nflows import transforms
        from nflows.distributions.normal import StandardNormal
        from nflows.flows import Flow

        channels, height, width = row.event_shape
        levels = row.options["levels"]
        multi_scale = transforms.MultiscaleCompositeTransform(levels)
        for _ in range(levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers = [transforms.SqueezeTransform()]
            for _ in range(row.layers):
                layers += [
                    transforms.ActNorm(channels),
                    transforms.OneByOneConvolution(channels),
                    transforms.AffineCouplingTransform(
                        torch.arange(channels) >= channels // 2,
                        lambda n_in, n_out: _IgnoresContext(
                            *conv_net(n_in, row.hidden_dims[0], n_out)
                        ),
                    ),
                ]
            level = transforms.CompositeTransform(layers)
            rest = multi_scale.add_transform(level, (channels, height, width))
            if rest:
                channels, height, width = rest
        return Flow(multi_scale, StandardNormal([math.prod(row.event_shape)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.transform_to_noise(x, *self.given(x))

    def inverse(self, z: Tensor) -> Tensor:
        # the latent of its multi-scale flow is flat
        flat = z.flatten(1) if self.row.model == "glow" else z
        return self.flow._transform.inverse(flat, *self.given(z))[0]


class Normflows(Contender):
    name, requires = "normflows", "normflows"

    def realnvp(self, row: Row) -> nn.Module:
        import normflows

        layers = [
            normflows.flows.AffineCouplingBlock(
                normflows.nets.MLP([row.dim // 2, *row.hidden_dims, row.dim]),
                split_mode=("channel", "channel_inv")[i % 2],
            )
            for i in range(row.layers)
        ]
        base = normflows.distributions.DiagGaussian(row.dim, trainable=False)
        return normflows.NormalizingFlow(base, layers)

    def spline(self, row: Row) -> nn.Module:
        import normflows
        from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
        from normflows.flows.neural_spline.wrapper import CoupledRationalQuadraticSpline

        layers = []
        for i in range(row.layers):
            # The wrapper's own conditioner is residual; its coupling takes any network.
            layer = CoupledRationalQuadraticSpline(row.dim, 1, 1, num_bins=2)
            layer.prqct = PiecewiseRationalQuadraticCoupling(
                torch.arange(row.dim) % 2 == i % 2,
                lambda n_in, n_out: _IgnoresContext(*mlp(n_in, row.hidden_dims, n_out)),
                tails="linear",
                **row.options,
            )
            layers.append(layer)
        base = normflows.distributions.DiagGaussian(row.dim, trainable=False)
        return normflows.NormalizingFlow(base, layers)

    def planar(self, row: Row) -> nn.Module:
        import normflows

        return self.from_data(row, normflows.flows.Planar)

    def radial(self, row: Row) -> nn.Module:
        import normflows

        return self.from_data(row, normflows.flows.Radial)

    @staticmethod
    def from_data(row: Row, cls: Any) -> nn.Module:
        """Each from the data to the latent, as ours: the density is what has a closed form."""
        import normflows

        layers = [normflows.flows.Reverse(cls((row.dim,))) for _ in range(row.layers)]
        base = normflows.distributions.DiagGaussian(row.dim, trainable=False)
        return normflows.NormalizingFlow(base, layers)

    def residual(self, row: Row) -> nn.Module:
        import normflows

        widths = [row.dim, *row.hidden_dims, row.dim]
        layers = [
            # brute force: the exact Jacobian, as ours; in two dimensions only
            normflows.flows.Residual(
                normflows.nets.LipschitzMLP(widths, lipschitz_const=0.9, init_zeros=False),
                brute_force=True,
                reduce_memory=False,
            )
            for _ in range(row.layers)
        ]
        for layer in layers:  # it stops at the root of its tolerance; this gives it our accuracy
            block = layer.iresblock
            block._inverse_fixed_point = partial(block._inverse_fixed_point, atol=1e-12, rtol=1e-12)
        base = normflows.distributions.DiagGaussian(row.dim, trainable=False)
        return grown(normflows.NormalizingFlow(base, layers), row)

    def maf(self, row: Row) -> nn.Module:
        import normflows

        layers: list[nn.Module] = []
        for _ in range(row.layers):
            layer = normflows.flows.MaskedAffineAutoregressive(
                row.dim,
                row.hidden_dims[0],
                num_blocks=len(row.hidden_dims) - 1,
                use_residual_blocks=False,
            )
            layers += [normflows.flows.Reverse(layer), normflows.flows.Permute(row.dim, "swap")]
        base = normflows.distributions.DiagGaussian(row.dim, trainable=False)
        return normflows.NormalizingFlow(base, layers)

    def glow(self, row: Row) -> nn.Module:
        import normflows

        channels, height, width = row.event_shape
        levels = row.options["levels"]
        bases, flows = [], []
        for i in range(1, levels + 1):  # from the data inwards; normflows lists them outwards
            left, size = 2 if i < levels else 1, 2**i
            inside = channels * 2 ** (i + 1)
            blocks = [
                normflows.flows.GlowBlock(inside, row.hidden_dims[0]) for _ in range(row.layers)
            ]
            flows.append([*blocks, normflows.flows.Squeeze()])
            shape = (inside // left, height // size, width // size)
            bases.append(normflows.distributions.DiagGaussian(shape, trainable=False))
        merges = [normflows.flows.Merge() for _ in range(levels - 1)]
        return normflows.MultiscaleFlow(bases[::-1], flows[::-1], merges, class_cond=False)

    def log_prob(self, x: Tensor) -> Tensor:
        arguments = (x, None) if self.row.model == "glow" else (x,)
        return self.flow.log_prob(*arguments)

    def forward(self, x: Tensor) -> Tensor:
        if self.row.model == "glow":
            return torch.cat([z.flatten(1) for z in self.flow.inverse_and_log_det(x)[0]], 1)
        return self.flow.inverse(x)

    def inverse(self, z: Tensor) -> Tensor:
        if self.row.model != "glow":
            return self.flow.forward(z)
        shapes = [base.shape for base in self.flow.q0]
        parts = z.flatten(1).split([math.prod(shape) for shape in shapes], 1)
        levels = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return self.flow.forward_and_log_det(levels)[0]

    def sample(self, num_samples: int) -> Tensor:
        return self.flow.sample(num_samples)[0]


class FrEIA(Contender):
    name, requires = "FrEIA", "FrEIA"

    def realnvp(self, row: Row) -> nn.Module:
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import GLOWCouplingBlock

        flow = SequenceINN(row.dim)
        for _ in range(row.layers // 2):
            # One block is two couplings; clamped by tanh to factors within 1/e and e, as ours.
            flow.append(
                GLOWCouplingBlock,
                subnet_constructor=lambda n_in, n_out: mlp(n_in, row.hidden_dims, n_out),
                clamp=1.0,
                clamp_activation="TANH",
            )
        return flow

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.flow(x)
        constant = math.prod(self.row.event_shape) * math.log(2 * math.pi) / 2
        return log_det - z.square().flatten(1).sum(-1) / 2 - constant

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(x, jac=False)[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.flow(z, rev=True, jac=False)[0]

    def sample(self, num_samples: int) -> Tensor:
        return self.inverse(torch.randn(num_samples, *self.row.event_shape, device=self.x.device))


class Torchflows(Contender):
    name, requires = "torchflows", "torchflows"

    def layered(self, row: Row, layer: str, conditioner: Any, **options: Any) -> nn.Module:
        """Layers with the dimensions reversed between, without the normalisation of its named models."""
        from torchflows.bijections.base import BijectiveComposition
        from torchflows.bijections.finite.autoregressive import layers
        from torchflows.bijections.finite.matrix.permutation import ReversePermutationMatrix
        from torchflows.flows import Flow

        sizes = {"n_hidden": row.hidden_dims[0], "n_layers": len(row.hidden_dims) + 1}
        shape, members = (row.dim,), []
        for _ in range(row.layers):
            members.append(ReversePermutationMatrix(event_shape=shape))
            made = getattr(layers, layer)(
                event_shape=shape, conditioner_kwargs=sizes | conditioner, **options
            )
            members.append(made)
        return Flow(BijectiveComposition(members))

    def realnvp(self, row: Row) -> nn.Module:
        return self.layered(row, "AffineCoupling", {"nonlinearity": nn.ReLU})

    def spline(self, row: Row) -> nn.Module:
        box = {"boundary": row.options["tail_bound"], "n_bins": row.options["num_bins"]}
        conditioner = {"nonlinearity": nn.ReLU}
        return self.layered(row, "RQSCoupling", conditioner, transformer_kwargs=box)

    def maf(self, row: Row) -> nn.Module:
        # its masked networks have tanh
        return self.layered(row, "AffineForwardMaskedAutoregressive", {})

    def continuous(self, row: Row) -> nn.Module:
        from torchflows.bijections.continuous.ffjord import FFJORD
        from torchflows.flows import Flow

        tolerance = row.options["tolerances"][self.name]
        bijection = FFJORD(
            (row.dim,),
            nn_kwargs={
                "hidden_size": row.hidden_dims[0],
                "n_hidden_layers": len(row.hidden_dims) - 1,
            },
            # with fresh noise in every evaluation, its default, the solver sees no smooth function
            time_derivative_kwargs={"reg_jac_coef": 0.0, "reuse_noise": True},
            solver="dopri5",
            atol=tolerance,
            rtol=tolerance,
        )
        return grown(Flow(bijection), row)

    matching = continuous

    def velocity(self) -> nn.Module:
        return self.flow.bijection.f

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.bijection.forward(x)[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.flow.bijection.inverse(z)[0]

    def sample(self, num_samples: int) -> Tensor:
        return self.flow.sample((num_samples,))

    def check(self) -> tuple[float, float]:
        """Of a differential equation it knows only an estimate of the log-density, by one probe."""
        if self.row.model not in ("continuous", "matching"):
            return super().check()
        with torch.no_grad():
            round_trip = (self.inverse(self.forward(self.x)) - self.x).abs().max().item()
        return round_trip, 0.0


class TorchCFM(Contender):
    """The loop of torchcfm's examples, written out: the package itself has no density and pins old ones."""

    name, requires = "torchcfm's loop", "torch"

    def matching(self, row: Row) -> nn.Module:
        width_in = row.dim + 1
        return nn.Sequential(
            *(
                layer if isinstance(layer, nn.Linear) else nn.Tanh()
                for layer in mlp(width_in, row.hidden_dims, row.dim)
            )
        )

    def train_step(self, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        noise = torch.randn_like(x)
        t = torch.rand(len(x)).type_as(x)[:, None]
        point = t * x + (1 - t) * noise + 0.0 * torch.randn_like(x)
        velocity = self.flow(torch.cat([point, t], -1))
        torch.mean((velocity - (x - noise)) ** 2).backward()
        optimizer.step()

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, num_samples: int) -> Tensor:
        raise NotImplementedError

    def evaluations(self) -> int | None:
        return None

    def check(self) -> tuple[float, float]:
        return 0.0, 0.0


class Loop(Contender):
    """Our own field and solver, its trace from one vector-Jacobian product for each dimension."""

    name, requires = "loop", "torch_flows"
    exact = Twinflows.exact

    def log_prob(self, x: Tensor) -> Tensor:
        bijector, steps = self.flow.bijector, self.row.options["num_steps"]

        def rate(t: float, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                velocity = bijector.velocity(x, t)
                slopes = [
                    torch.autograd.grad(velocity[:, i].sum(), x, retain_graph=True)[0][:, i]
                    for i in range(x.shape[1])
                ]
            return torch.cat([velocity.detach(), sum(slopes)[:, None]], -1)

        state, h = torch.cat([x, torch.zeros_like(x[:, :1])], -1), 1 / steps
        for i in range(steps):
            k1 = rate(i * h, state[:, :-1])
            k2 = rate((i + 0.5) * h, (state + h / 2 * k1)[:, :-1])
            k3 = rate((i + 0.5) * h, (state + h / 2 * k2)[:, :-1])
            k4 = rate((i + 1) * h, (state + h * k3)[:, :-1])
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.flow.base.log_prob(state[:, :-1]) + state[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.forward(x)[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.flow.inverse(z)[0]


class SingleFile(Contender):
    """The papers' arithmetic in a single file."""

    requires, cached = "torch", True

    def build(self, row: Row) -> nn.Module:
        layer = CouplingLayer if row.model == "jet" else AutoregressiveLayer
        sizes = row.hidden_dims[0], row.options["num_blocks"], row.options["num_heads"]
        flow = Flow(layer, row.event_shape, row.options["patch_size"], row.layers, *sizes)
        flow.cached = self.cached
        return flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(x)[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.flow.inverse(z)


class Published(SingleFile):
    """Samples by a cache of keys and values."""

    name = "single file"
    tarflow = jet = SingleFile.build


class Naive(SingleFile):
    """Samples by a pass of all tokens for each."""

    name, cached = "single file, no cache", False
    tarflow = SingleFile.build

    def job(self, op: str) -> Callable[[], object]:
        if op != "sample":
            raise NotImplementedError
        return super().job(op)


class Floor:
    """The conditioners' matrix products alone: once forward, twice more for a training step."""

    name = "floor"

    def __init__(self, row: Row) -> None:
        torch.manual_seed(0)
        products = row.products * row.layers
        self.inputs = [torch.randn(row.batch, width) for width, _ in products]
        self.weights = [torch.randn(width, out) for width, out in products]
        self.outputs = [torch.randn(row.batch, out) for _, out in products]

    @torch.no_grad()
    def forward(self) -> None:
        for x, weight in zip(self.inputs, self.weights, strict=True):
            x @ weight

    @torch.no_grad()
    def train(self) -> None:
        self.forward()
        for x, weight, grad in zip(self.inputs, self.weights, self.outputs, strict=True):
            x.T @ grad
            grad @ weight.T

    def job(self, op: str) -> Callable[[], object]:
        return self.train if op.startswith("train") else self.forward


CONTENDERS = (
    Twinflows,
    FrEIA,
    Nflows,
    Normflows,
    TorchCFM,
    Torchflows,
    Zuko,
    Loop,
    Published,
    Naive,
)
