"""Argument checks shared by both halves, so that bad input gets the same sentence in each."""

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flow_bridge.architecture import count_construction
from flow_bridge.errors import NonFiniteError

FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")


def positive_int(owner: str, **values: int) -> None:
    """Raise ``ValueError`` unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{owner} expects {name} to be an integer of at least 1, got {value!r}."
            )


def non_negative_int(owner: str, **values: int) -> None:
    """Raise ``ValueError`` unless every value is an integer of at least 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"{owner} expects {name} to be an integer of at least 0, got {value!r}."
            )


SMALLEST, LARGEST = 2.0**-126, 3.4e38
"""What float32 holds: a constant beyond it would be 0 or infinite there."""


def positive_number(owner: str, **values: float) -> None:
    """Raise ``ValueError`` unless every value is a number above 0 that float32 holds."""
    for name, value in values.items():
        if not _is_number(value) or not SMALLEST <= value <= LARGEST:
            raise ValueError(
                f"{owner} expects {name} to be a number above 0 that float32 holds, got {value!r}."
            )


def boolean(owner: str, **values: bool) -> None:
    """Raise ``ValueError`` unless every value is ``True`` or ``False``."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner} expects {name} to be True or False, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def degrees_of_freedom(owner: str, df: float, learned: bool) -> None:
    """Raise ``ValueError`` unless df is above 0 and, where it is learned, between 1 and 1000."""
    positive_number(owner, df=df)
    boolean(owner, learned=learned)
    if learned and not 1 <= df <= 1000:
        raise ValueError(f"{owner} expects df from 1 to 1000 where it is learned, got {df!r}.")


def hidden_widths(owner: str, hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """``hidden_dims`` as a tuple of positive integers."""
    if isinstance(hidden_dims, int | str):
        raise ValueError(f"{owner} expects hidden_dims as a list of integers, got {hidden_dims!r}.")
    count_construction(len(hidden_dims))
    positive_int(owner, **{f"hidden_dims[{i}]": width for i, width in enumerate(hidden_dims)})
    return tuple(hidden_dims)


def odd(owner: str, **values: int) -> None:
    """Raise ``ValueError`` unless all are odd integers above 0."""
    positive_int(owner, **values)
    for name, value in values.items():
        if not value % 2:
            raise ValueError(f"{owner} expects {name} to be odd, got {value}.")


def some_hidden_widths(owner: str, hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """``hidden_dims`` as ``hidden_widths`` gives them, of one layer at least."""
    widths = hidden_widths(owner, hidden_dims)
    if not widths:
        raise ValueError(f"{owner} expects hidden_dims of one layer at least, got {widths}.")
    return widths


def perceptron(
    owner: str, hidden_dims: Sequence[int], context: str, context_dim: int
) -> tuple[int, ...]:
    """``hidden_dims`` as ``hidden_widths`` gives them; check how a context enters."""
    hidden_dims = hidden_widths(owner, hidden_dims)
    one_of(owner, "context", context, ("concatenate", "branch"))
    non_negative_int(owner, context_dim=context_dim)
    if context == "branch" and not hidden_dims:
        raise ValueError(f'{owner} with context "branch" needs a hidden layer, which it adds to.')
    return hidden_dims


def residual_network(
    owner: str,
    hidden_dim: int,
    num_blocks: int,
    context: str,
    context_dim: int,
    pre_activation: bool,
) -> None:
    """Check the numbers of a residual network, and how its context enters."""
    positive_int(owner, hidden_dim=hidden_dim, num_blocks=num_blocks)
    count_construction(2 * num_blocks + 1)
    one_of(owner, "context", context, ("concatenate", "gate", "branch"))
    non_negative_int(owner, context_dim=context_dim)
    boolean(owner, pre_activation=pre_activation)


def regularization(
    owner: str, normalization: str | None, dropout: float, widths: Sequence[int]
) -> None:
    """Check a choice of normalisation between layers of these widths, and a rate of dropout."""
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"{owner} expects dropout of at least 0 and below 1, got {dropout!r}.")
    if normalization is None:
        return
    one_of(owner, "normalization", normalization, ("layer_norm", "batch_norm"))
    if normalization == "layer_norm" and min(widths, default=2) < 2:
        raise ValueError(
            f'{owner} with normalization "layer_norm" needs hidden layers of 2 units or more: of one, layer '
            "normalisation leaves a constant."
        )


def same_in_training(owner: str, network: str, acts_in_training: bool) -> None:
    """Raise ``ValueError`` for a network with batch normalisation or dropout where these have no place."""
    if acts_in_training:
        raise ValueError(
            f"{owner} takes no network with batch normalisation or dropout, got {network}: it is to be the "
            "same function in training."
        )


def set_network(
    owner: str, in_dim: int, out_dim: int, element_dim: int, set_dim: int, padded: bool
) -> None:
    """Check the widths of a network of sets."""
    positive_int(owner, in_dim=in_dim, out_dim=out_dim, element_dim=element_dim, set_dim=set_dim)
    boolean(owner, padded=padded)
    if in_dim % element_dim:
        raise ValueError(
            f"{owner} expects in_dim to be a multiple of element_dim, got {in_dim} and {element_dim}."
        )
    if padded and element_dim == 1:
        raise ValueError(
            f"{owner} with padded=True needs an element_dim of 2 or more: the first number says "
            "whether the element counts."
        )


def convolutional_embedding(
    owner: str,
    in_dim: int,
    out_dim: int,
    image_shape: Sequence[int],
    hidden_channels: Sequence[int],
) -> tuple[int, int, int]:
    """``image_shape`` as a tuple; check that the input holds such an image, which can be pooled."""
    positive_int(owner, in_dim=in_dim, out_dim=out_dim)
    shape = vector_or_image(owner, image_shape)
    if len(shape) != 3 or math.prod(shape) != in_dim:
        raise ValueError(
            f"{owner} expects image_shape as (channels, height, width) with in_dim entries in all, "
            f"got {image_shape} and {in_dim}."
        )
    factor = 2 ** len(hidden_channels)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{owner} halves height and width {len(hidden_channels)} times, so both are to be "
            f"multiples of {factor}, got {shape[1]} and {shape[2]}."
        )
    return shape[0], shape[1], shape[2]


MAX_AXES = 16
"""Of one event; NumPy and PyTorch have room for a few more."""


def event_axes(owner: str, event_ndim: int) -> None:
    """Raise ``ValueError`` unless events have a number of axes that arrays can have."""
    positive_int(owner, event_ndim=event_ndim)
    at_most(owner, "event_ndim", event_ndim, "their limit", MAX_AXES)


def event_shape_of(owner: str, dim: int | Sequence[int]) -> tuple[int, ...]:
    """``dim`` as an event shape: ``5`` is ``(5,)``, ``(3, 8, 8)`` stays."""
    shape = (dim,) if isinstance(dim, int) else tuple(dim)
    if not shape:
        raise ValueError(f"{owner} expects dim to have at least one axis, got {dim!r}.")
    at_most(owner, "the number of axes of dim", len(shape), "their limit", MAX_AXES)
    positive_int(
        owner, **{"dim" if len(shape) == 1 else f"dim[{i}]": d for i, d in enumerate(shape)}
    )
    return shape


def vector_or_image(owner: str, dim: int | Sequence[int]) -> tuple[int, ...]:
    """``dim`` as the event shape of a vector or of an image ``(channels, height, width)``."""
    shape = event_shape_of(owner, dim)
    if len(shape) not in (1, 3):
        raise ValueError(
            f"{owner} expects dim as a number or as (channels, height, width), got {dim!r}."
        )
    return shape


def coupling_shape(owner: str, dim: int | Sequence[int | None]) -> tuple[int | None, ...]:
    """``dim`` as the event shape of a vector, or of images ``(channels, height, width)``.

    Height and width may be ``None``, for any.
    """
    if isinstance(dim, list | tuple) and len(dim) == 3:
        channels, height, width = dim
        positive_int(owner, channels=known(channels))
        for name, size in (("height", height), ("width", width)):
            if size is not None:
                positive_int(owner, **{name: size})
        return channels, height, width
    if isinstance(dim, list | tuple):
        raise ValueError(
            f"{owner} expects dim as a number or as (channels, height, width), got {dim!r}."
        )
    vector: Any = dim
    positive_int(owner, dim=vector)
    return (vector,)


def known(size: int | None) -> int:
    """A size that is not open."""
    assert size is not None
    return size


def conditioner_of(owner: str, name: str, takes: int, event_ndim: int) -> None:
    """Raise ``ValueError`` for a network of vectors in a coupling of images, or the reverse."""
    if takes != event_ndim:
        kinds = {1: "vectors", 3: "images"}
        raise ValueError(
            f"{owner} of {kinds[event_ndim]} expects a conditioner of {kinds[event_ndim]}, "
            f"got {name}, which is one of {kinds[takes]}."
        )


def suits(owner: str, name: str, lacking: str | None) -> None:
    """Raise ``ValueError`` for a network that needs what its owner does not have."""
    if lacking is not None:
        raise ValueError(
            f"{owner} has no {lacking} for its conditioner {name}: take another network."
        )


def block_order(
    owner: str,
    columns: Sequence[Sequence[int]],
    shapes: Sequence[tuple[tuple[int | None, ...], tuple[int | None, ...]]],
    parts: str = "bijectors",
) -> np.ndarray:
    """Where each position stands when the blocks of columns come one after the other.

    Args:
        columns: the positions of each block.
        shapes: the event shape and the latent shape that go with each.
        parts: what the owner calls them.
    """
    positions = [position for block in columns for position in block]
    if not all(columns) or sorted(positions) != list(range(len(positions))) or not positions:
        raise ValueError(
            f"{owner} expects columns to hold 0, 1, ..., dim - 1 once each, got {columns!r:.60}."
        )
    if len(columns) != len(shapes):
        raise ValueError(
            f"{owner} expects columns for each of its {len(shapes)} {parts}, got {len(columns)}."
        )
    for i, (block, pair) in enumerate(zip(columns, shapes, strict=True)):
        for shape in pair:
            if len(shape) != 1 or shape[0] not in (None, len(block)):
                raise ValueError(
                    f"{owner} expects {parts}[{i}] of shape {describe((len(block),))} for "
                    f"{len(block)} columns, got {describe(shape)}."
                )
    return np.argsort(positions)


def new_activation(name: str, known: Collection[str], largest_slope: float) -> None:
    """Raise ``ValueError`` for an activation that exists, or whose largest slope is no number."""
    if not isinstance(name, str) or name in known:
        raise ValueError(f"register_activation expects a new name, got {name!r}.")
    positive_number("register_activation", largest_slope=largest_slope)


def slope_of_activation(name: str) -> str:
    """What a network says that needs the slope of an activation which has none."""
    return f"the activation {name!r} was registered without its slope, which is needed here."


def no_conditioner(owner: str, conditioner: object, context_dim: int) -> None:
    """Raise ``ValueError`` for a conditioner that has no context to see."""
    if conditioner is not None and not context_dim:
        raise ValueError(f"{owner} has a conditioner only with a context: state its context_dim.")


def masked_conditioner(name: str, masked: bool) -> None:
    """Raise ``ValueError`` for a network without masks."""
    if not masked:
        raise ValueError(
            f"MaskedAutoregressive needs a conditioner with masks (MLP, ResidualMLP, MaskedMLP, "
            f"MaskedResidualMLP), got {name}; Coupling takes any network."
        )


def masked_normalization(name: str, normalization: str | None) -> None:
    """Raise ``ValueError`` for what would ignore the masks of a network."""
    if normalization == "layer_norm":
        raise ValueError(
            f"{name} has no layer normalisation: it would let every unit see all dimensions."
        )


def image_shape(owner: str, shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """``shape`` as (channels, height, width), of which ``factor`` divides the last two."""
    if isinstance(shape, int | str) or len(shape) != 3:
        raise ValueError(f"{owner} expects shape as (channels, height, width), got {shape!r}.")
    channels, height, width = shape
    positive_int(owner, channels=channels, height=height, width=width)
    divisible(owner, factor, height=height, width=width)
    return channels, height, width


def divisible(owner: str, factor: int, **sizes: int | None) -> None:
    """Raise ``ValueError`` unless ``factor`` divides every size that is known."""
    for name, size in sizes.items():
        if size is not None and size % factor:
            raise ValueError(f"{owner} expects {name} divisible by {factor}, got {size}.")


def describe(shape: Sequence[int | None], batch: str = "*batch") -> str:
    """``(*batch, 3)``: an event shape in words; an axis of any length is ``dim``."""
    return f"({', '.join([batch, *('dim' if d is None else str(d) for d in shape)])})"


def not_a_tensor(owner: str, name: str, kind: str) -> str:
    """What PyTorch's half says to ``name`` of a type that is no tensor, and how to make it one."""
    convert = {
        "ndarray": f"torch.from_numpy({name})",
        "ArrayImpl": f"torch.from_numpy(numpy.array({name}))",
        "DataFrame": f"torch.from_numpy({name}.to_numpy())",
        "Series": f"torch.from_numpy({name}.to_numpy())",
        "MaskedArray": f"torch.from_numpy({name}.filled())",
    }.get(kind, f"torch.tensor({name})")
    hint = "" if kind == "NoneType" else f": {convert}"
    return f"{owner} expects {name} as a torch.Tensor, got {kind}{hint}."


def not_an_array(owner: str, name: str, kind: str) -> str:
    """What JAX's half says to ``name`` of a type that is no array, and how to make it one."""
    convert = {
        "Tensor": f"{name}.numpy()",
        "DataFrame": f"{name}.to_numpy()",
        "Series": f"{name}.to_numpy()",
        "MaskedArray": f"{name}.filled()",
    }.get(kind, f"jax.numpy.array({name})")
    hint = "" if kind == "NoneType" else f": {convert}"
    return f"{owner} expects {name} as an array, got {kind}{hint}."


def no_variables(owner: str, kind: str) -> str:
    """What JAX's half says to something else in place of variables."""
    return (
        f"{owner} expects variables as init, fit and load return them, nested mappings of arrays, "
        f"got {kind}."
    )


def no_key(owner: str, kind: str) -> str:
    """What JAX's half says to something else in place of a key."""
    return f"{owner} expects key as the source of randomness, jax.random.key(0), got {kind}."


def parts_of(owner: str, given: Any, expected: Any) -> str:
    """What JAX's half says to the variables of other parts than there are."""
    return f"{owner} is joined of the variables of {expected}, got {given}."


def no_float64(owner: str, name: str) -> str:
    """What JAX's half says to float64 while JAX would round it."""
    return (
        f"{owner} got {name} in float64, which JAX rounds to float32 unless "
        f'jax.config.update("jax_enable_x64", True): {name}.astype("float32").'
    )


def no_float64_weights(owner: str) -> str:
    """What JAX's half says where weights in float64 are asked for while JAX would round them."""
    return (
        f"{owner} cannot have float64 weights, which JAX rounds to float32 unless "
        'jax.config.update("jax_enable_x64", True).'
    )


def no_device(device: object) -> str:
    """What ``load`` says to a device that is none, or that this machine does not have."""
    return f"load expects device as a device of this machine, got {device!r}."


def held_by(owner: str, dtype: str, largest: float, **values: float) -> None:
    """Raise ``ValueError`` unless a dtype holds every constant."""
    for name, value in values.items():
        if abs(value) > largest:
            raise ValueError(f"{owner} has {name}={value!r}, which {dtype} does not hold.")


def one_dtype(owner: str, dtypes: Iterable[str]) -> None:
    """Raise ``TypeError`` unless all weights are of one dtype."""
    names = sorted(dtypes)
    if len(names) > 1:
        raise TypeError(f"{owner} has weights of several dtypes: {' and '.join(names)}.")


def sample_shape(owner: str, name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """How many samples, an integer or a shape, as a shape."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    try:
        if any(isinstance(size, bool | np.bool_) for size in sizes):
            raise TypeError
        sizes = tuple(operator.index(size) for size in sizes)
    except TypeError:
        sizes = (-1,)
    if min(sizes, default=0) < 0:
        traced = type(shape).__name__.endswith("Tracer")
        given = "a traced value: jax.jit(..., static_argnames=...)" if traced else repr(shape)
        raise ValueError(
            f"{owner} expects {name} as an integer of at least 0 or a shape of them, got {given}."
        )
    return sizes


def input_array(
    owner: str,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    event_shape: tuple[int | None, ...],
    weight_dtype: str | None,
    cast: str = '.astype("{}")',
) -> tuple[int, ...]:
    """Check one input and return its batch shape; ``cast`` is how its half converts an array."""
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{owner} expects {name} in floating point, got {dtype}.")
    batch = batch_of(owner, name, shape, event_shape)
    if weight_dtype is not None and weight_dtype != dtype:
        raise TypeError(
            f"{owner} has {weight_dtype} weights but {name} is {dtype}; convert one of the two, "
            f"as with {cast.format(weight_dtype)}."
        )
    return batch


def batch_of(
    owner: str, name: str, shape: tuple[int, ...], event_shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Check that a shape ends in the event shape, and return what is before it."""
    event_ndim = len(event_shape)
    event = shape[len(shape) - event_ndim :] if len(shape) >= event_ndim else None
    if event != event_shape and (
        event is None
        or any(e is not None and e != s for e, s in zip(event_shape, event, strict=True))
    ):
        raise ValueError(
            f"{owner} expects {name} of shape {describe(event_shape)}, got {tuple(shape)}."
        )
    return shape[: len(shape) - event_ndim]


def probe_array(owner: str, shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless a probe has the shape of its x."""
    if tuple(shape) != tuple(x_shape):
        raise ValueError(f"{owner} expects noise of shape {tuple(x_shape)}, got {tuple(shape)}.")


def context_array(
    owner: str,
    shape: tuple[int, ...] | None,
    dtype: str | None,
    context_dim: int,
    batch_shape: tuple[int, ...],
    input_dtype: str,
) -> None:
    """Check that a context is there exactly when it is needed, and broadcasts to the batch."""
    if context_dim == 0:
        if shape is not None:
            raise ValueError(f"{owner} takes no context, got one of shape {tuple(shape)}.")
        return
    expected = describe((context_dim,))
    if shape is None:
        raise ValueError(f"{owner} needs a context of shape {expected}, got none.")
    if not shape or shape[-1] != context_dim:
        raise ValueError(f"{owner} needs a context of shape {expected}, got {tuple(shape)}.")
    if dtype != input_dtype:
        raise TypeError(f"{owner} expects context in {input_dtype} like its input, got {dtype}.")
    context_batch = shape[:-1]
    aligned = batch_shape[len(batch_shape) - len(context_batch) :]
    if len(context_batch) > len(batch_shape) or any(
        c != 1 and c != b for c, b in zip(context_batch, aligned, strict=True)
    ):
        raise ValueError(
            f"{owner} got a context of batch shape {tuple(context_batch)}, which does not "
            f"broadcast to the batch shape {tuple(batch_shape)} of its input."
        )


def common_event_shape(
    owner: str, shapes: Sequence[tuple[int | None, ...]]
) -> tuple[int | None, ...]:
    """The one event shape that all parts agree on; ``None`` agrees with any length."""
    common = shapes[0]
    for shape in shapes[1:]:
        if len(shape) != len(common) or any(
            a is not None and b is not None and a != b for a, b in zip(common, shape, strict=True)
        ):
            raise ValueError(
                f"{owner} has parts of different shapes: {describe(common)} and {describe(shape)}."
            )
        common = tuple(b if a is None else a for a, b in zip(common, shape, strict=True))
    return common


def chain_event_shape(owner: str, bijectors: Sequence[Any]) -> tuple[int | None, ...]:
    """The event shape of a composition; what each part knows of its shape is carried to its start."""
    shapes = []
    shape = bijectors[0].event_shape
    for bijector in bijectors:
        shapes.append(common_event_shape(owner, [shape, bijector.event_shape]))
        shape = bijector.map_shape(shapes[-1])
    for bijector, before in zip(reversed(bijectors), reversed(shapes), strict=True):
        shape = common_event_shape(owner, [before, bijector.map_shape(shape, inverse=True)])
    return shape


def common_context_dim(owner: str, dims: Sequence[int]) -> int:
    """The one ``context_dim`` of all parts that take a context, or 0."""
    used = sorted(set(dims) - {0})
    if len(used) > 1:
        raise ValueError(f"{owner} has parts of different context_dim: {used[0]} and {used[1]}.")
    return used[0] if used else 0


def context_width(
    owner: str, widths: Sequence[tuple[int | None, int | None]], context_dim: int
) -> int:
    """The width of the context that networks take which, in turn, make one of ``context_dim``.

    Args:
        widths: of the input and the output of each; ``None`` stands for any.
    """
    if widths and context_dim == 0:
        raise ValueError(f"{owner} has a context_net but no part that takes a context.")
    for num_in, num_out in reversed(widths):
        if num_out not in (None, context_dim):
            raise ValueError(
                f"{owner} has a context_net that makes {num_out} numbers where {context_dim} are "
                "expected."
            )
        context_dim = context_dim if num_in is None else num_in
    return context_dim


def context_of_base(owner: str, context_dim: int, base: Any) -> None:
    """Raise ``ValueError`` for a named model of no context whose base takes one."""
    width = getattr(base, "context_dim", 0)
    if width and not context_dim:
        raise ValueError(
            f"{owner} has a base of context_dim {width}: give it the same context_dim, or "
            f"Flow({owner}(...).bijector, base) has a context in the base alone."
        )


def initial_scale(owner: str, value: float, conditioner: Any, default: float = 1.0) -> None:
    """Raise ``ValueError`` for a scale of the first weights that the given conditioner does not take."""
    non_negative_number(owner, initial_scale=value)
    if conditioner is not None and value != default:
        raise ValueError(
            f"{owner} got an initial_scale and a conditioner: give it to that, as in "
            "Network(MLP, initial_scale=0.1)."
        )


def map_alone(owner: str, scale: str | None, bound: float, offset: float | None) -> None:
    """Raise ``ValueError`` for options of an affine map where another one is given."""
    if (scale, bound, offset) != ("tanh", 1.0, None):
        raise ValueError(
            f"{owner} got a map and a scale, bound or offset, which are of the map that it replaces."
        )


def onto_base(owner: str, bijector: Any, base: Any) -> None:
    """Raise ``ValueError`` where some z of the base has no x: the density would not integrate to 1."""
    made_by, expected_by = bijector.intervals(), base.intervals()
    count = max(len(made_by), len(expected_by))
    pairs = zip(
        made_by * (count // len(made_by)), expected_by * (count // len(expected_by)), strict=True
    )
    for interval, support in pairs:
        if interval.low > support.low or interval.high < support.high:
            made, expected = ("({:g}, {:g})".format(*ends) for ends in (interval, support))
            name, base_name = type(bijector).__name__, type(base).__name__
            raise ValueError(
                f"{owner} has a base on {expected}, {base_name}, but a bijector that makes z inside "
                f"{made} only, {name}: its density would not integrate to 1. Take a base on {made}, as "
                f"Uniform may be, or a last bijector that makes every z."
            )


def square(owner: str, in_dim: int, out_dim: int) -> None:
    """Raise ``ValueError`` unless a network has as many outputs as inputs."""
    positive_int(owner, in_dim=in_dim)
    if in_dim != out_dim:
        raise ValueError(f"{owner} has as many outputs as inputs, got {in_dim} and {out_dim}.")


def map_of(owner: str, map: Any, shape: Sequence[int | None]) -> None:
    """Raise ``ValueError`` for a map of columns that are not those of the event."""
    if map.dim is not None and tuple(shape) != (map.dim,):
        raise ValueError(
            f"{owner} has events of shape {describe(shape)}, but a MixedMap of {map.dim} columns."
        )


def one_map(owner: str, map: Any) -> None:
    """Raise ``ValueError`` for a map of columns where one map serves all dimensions."""
    if map.dim is not None:
        raise ValueError(
            f"{owner} has one map for all dimensions: a MixedMap belongs in a Coupling."
        )


def vector_widths(owner: str, bijector: Any) -> tuple[int | None, int | None]:
    """Widths of the input and of the output of a bijector that a context passes through."""
    shapes = bijector.event_shape, bijector.latent_shape
    taken = bijector.context_dim or bijector.has_batch_statistics
    if taken or any(len(shape) != 1 for shape in shapes):
        raise ValueError(
            f"{owner} expects a bijector in context_net to be of vectors, to take no context and to use "
            f"no batch statistics, got a {type(bijector).__name__}."
        )
    return shapes[0][0], shapes[1][0]


def network_widths(owner: str, net: Any) -> tuple[int, int]:
    """Widths of the input and of the output of a network that a context passes through."""
    widths = getattr(net, "in_dim", None), getattr(net, "out_dim", None)
    if not callable(net) or not all(isinstance(width, int) for width in widths):
        raise TypeError(
            f"{owner} expects context_net as networks with in_dim and out_dim, or bijectors, got "
            f"{type(net).__name__}."
        )
    return widths  # type: ignore[return-value]


def column_names(owner: str, name: str, names: Sequence[str] | None, dim: Any) -> None:
    """Raise ``ValueError`` unless names are ``None`` or ``dim`` different strings."""
    if names is None:
        return
    if isinstance(names, str) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{owner} expects {name} as a list of names, got {names!r}.")
    if len(names) != dim or len(set(names)) != len(names):
        raise ValueError(f"{owner} expects {name} as {dim} different names, got {list(names)}.")


def broadcastable(owner: str, shape: tuple[int, ...], larger: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless a batch shape broadcasts to a larger one."""
    aligned = larger[len(larger) - len(shape) :]
    if len(shape) > len(larger) or any(
        s not in (1, a) for s, a in zip(shape, aligned, strict=True)
    ):
        raise ValueError(
            f"{owner} of batch shape {tuple(shape)} does not expand to {tuple(larger)}."
        )


def enough_rows(owner: str, num_rows: int, when: str = "in training mode") -> None:
    """Batch statistics need two rows: the variance of one is 0 / 0."""
    if num_rows < 2:
        raise ValueError(f"{owner} needs at least 2 rows {when}, got {num_rows}.")


def finite_initialization(owner: str, finite: bool) -> None:
    """Raise ``NonFiniteError`` unless the weights initialised from data are finite."""
    if not finite:
        raise NonFiniteError(
            f"{owner} met a NaN or an infinity in the data; its weights stay as they were."
        )


def logit_alpha(owner: str, alpha: float) -> None:
    """Raise ``ValueError`` unless alpha is a number of at least 0 and below 1/2."""
    if not _is_number(alpha) or not 0 <= alpha < 0.5:
        raise ValueError(f"{owner} expects alpha of at least 0 and below 0.5, got {alpha!r}.")


def coordinates(owner: str, name: str, shape: Sequence[int], width: int) -> None:
    """Raise ``ValueError`` unless the last axis holds so many coordinates."""
    if not shape or shape[-1] != width:
        raise ValueError(f"{owner} expects {name} of shape (*batch, {width}), got {tuple(shape)}.")


def one_of(owner: str, name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        names = ", ".join(sorted(allowed))
        raise ValueError(f"{owner} expects {name} to be one of {names}, got {value!r}.")


def one_per_event(
    owner: str, what: str, events: Sequence[int], batch: Sequence[int], shape: Sequence[int] | None
) -> None:
    """Raise ``ValueError`` unless a function of events gave one number for each; ``None``: a number."""
    if tuple(shape or ()) != tuple(batch):
        got = "a number" if shape is None else tuple(shape)
        raise ValueError(
            f"{owner} expects the {what} of x of shape {tuple(events)} to be of shape {tuple(batch)}, got "
            f"{got}: vmap the {what} of one event."
        )


def interval(owner: str, **bounds: float) -> None:
    """Raise ``ValueError`` unless the two bounds are finite numbers in increasing order."""
    (low_name, low), (high_name, high) = bounds.items()
    numbers = _is_number(low) and _is_number(high)
    if not numbers or not -LARGEST / 2 <= low < high <= LARGEST / 2:
        raise ValueError(
            f"{owner} expects {low_name} < {high_name}, apart by no more than float32 holds, got "
            f"{low!r} and {high!r}."
        )


def mode_inside(owner: str, loc: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless a mode is a number of the interval."""
    if not _is_number(loc) or not low <= loc <= high:
        raise ValueError(f"{owner} expects loc from {low:g} to {high:g}, got {loc!r}.")


def reparameterized(owner: str, base: str, differentiable: bool) -> None:
    """Raise ``ValueError`` unless gradients through a base's samples reach all of its weights."""
    if not differentiable:
        raise ValueError(not_reparameterized(owner, base))


def not_reparameterized(owner: str, base: str) -> str:
    """What ``reparameterized`` says, for the libraries that raise ``NotImplementedError`` there."""
    return f"{owner} cannot differentiate through the samples of a {base} base."


def instances(owner: str, name: str, values: Iterable[object], cls: type) -> None:
    """Raise ``TypeError`` unless every value is an instance of the class."""
    for value in values:
        if not isinstance(value, cls):
            kind = "list" if isinstance(value, tuple) else type(value).__name__
            raise TypeError(f"{owner} expects {name} of type {cls.__name__}, got {kind}.")


def overridden(owner: str, methods: Mapping[str, object], names: Iterable[str]) -> None:
    """Raise ``TypeError`` if a class writes a public method that other modules go around."""
    for name in names:
        if name in methods:
            raise TypeError(
                f"{owner} writes {name}, which checks its input and calls map_{name}: write map_{name}, "
                "which chains call too."
            )


def shared_part(owner: str, kind: str, first: str, second: str) -> str:
    """What PyTorch's half says to one part with weights in two places."""
    return (
        f"{owner} got one {kind} as {first!r} and as {second!r}, which would tie their weights: "
        f"build one for each place, as in [{kind}(...) for _ in range(8)]."
    )


def at_most(owner: str, name: str, value: int, limit_name: str, limit: int) -> None:
    """Raise ``ValueError`` if ``value`` is above a limit that has a name of its own."""
    if value > limit:
        raise ValueError(
            f"{owner} expects {name} to be at most {limit_name} {limit}, got {value!r}."
        )


def momentum(owner: str, value: float) -> None:
    """Raise ``ValueError`` unless a share of running averages is above 0 and at most 1."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{owner} expects momentum above 0 and at most 1, got {value!r}.")


def open_interval(owner: str, name: str, value: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a number strictly between the bounds."""
    if not _is_number(value) or not low < value < high:
        raise ValueError(f"{owner} expects {name} between {low} and {high}, got {value!r}.")


def non_negative_number(owner: str, **values: float) -> None:
    """Raise ``ValueError`` unless every value is a finite number of at least 0."""
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value <= LARGEST:
            raise ValueError(
                f"{owner} expects {name} to be a number of at least 0 that float32 holds, got {value!r}."
            )
