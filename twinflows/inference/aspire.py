"""Flows of either half as the flows of aspire: ``Aspire(..., flow_backend="twinflows-torch")`` or ``"-jax"``.

aspire finds both by their entry points, and keeps its data transform in front of them. What is trained opens
everywhere else here by ``flow.save_checkpoint``.
"""

import json
from typing import Any

import numpy as np

from flow_bridge import optional
from flow_bridge.architecture import architecture
from flow_bridge.checkpoint import write_checkpoint
from twinflows.sides.base import Side
from twinflows.sides.models import (
    describe,
    draw,
    expected_shapes,
    new_model,
    rebuild,
    weight_dtype,
)

flows: Any = optional.host(__name__, "aspire.flows.base", "aspire", "aspire")
history: Any = optional.host(__name__, "aspire.history", "aspire", "aspire")
utils: Any = optional.host(__name__, "aspire.utils", "aspire", "aspire")
transforms: Any = optional.host(__name__, "aspire.transforms", "aspire", "aspire")


class TwinFlow(flows.Flow):
    """A named model behind aspire's interface.

    Args:
        dims: number of parameters.
        model: its name: ``"nsf"``, ``"maf"``, ``"realnvp"``, ...
        data_transform: aspire's, in front of the flow; the identity if not given.
        device: ignored on the CPU; others are refused.
        dtype: ``"float32"`` or ``"float64"``, or that of the framework.
        seed: of the weights, of training and of samples.
        options: arguments of the model.
    """

    backend: str

    def __init__(
        self,
        dims: int,
        model: str = "nsf",
        data_transform: Any = None,
        device: Any = None,
        dtype: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if device is not None and str(device) != "cpu":
            raise ValueError(
                f"flows of twinflows are trained on the CPU here, got device {device}."
            )
        resolved = utils.resolve_dtype("float32" if dtype is None else dtype, self.xp)
        self.dtype = resolved
        if data_transform is None:
            data_transform = transforms.IdentityTransform(self.xp, dtype=resolved)
        elif getattr(data_transform, "dtype", None) is None:
            data_transform.dtype = resolved
        super().__init__(dims, device=device, data_transform=data_transform)
        self._generator = np.random.default_rng(seed)
        self._seed = seed
        described = describe(model, self.backend, (dims,), 0, options)
        self.model: Side = new_model(described, self.backend, _name(resolved), seed)

    @property
    def flow(self) -> Any:
        """The flow of ``torch_flows`` or ``jax_flows``, of transformed parameters."""
        return self.model.flow

    def fit(self, x: Any, **options: Any) -> Any:
        """Fit to samples by maximum likelihood.

        Args:
            x: shape ``(rows, dims)``.
            options: as of ``fit``: ``num_epochs`` (``n_epochs`` too), ``batch_size``, ``learning_rate``, ...

        Returns:
            aspire's ``FlowHistory``.
        """
        if "n_epochs" in options:
            options["num_epochs"] = options.pop("n_epochs")
        rows = _numpy(self.fit_data_transform(self._own(x)), self.dtype)
        found = self.model.fit(rows, None, **({"seed": self._seed, "progress": False} | options))
        return history.FlowHistory(list(found.train_loss), list(found.validation_loss))

    def log_prob(self, x: Any, xp: Any = None) -> Any:
        """The log-density of parameters in their own units."""
        rows, log_det = self.rescale(self._own(x))
        return self._given(self.density(self._own(rows)) + log_det, xp)

    def sample(self, n_samples: int, xp: Any = None) -> Any:
        """Parameters drawn from the flow."""
        return self.sample_and_log_prob(n_samples, xp)[0]

    def sample_and_log_prob(self, n_samples: int, xp: Any = None) -> tuple[Any, Any]:
        """Parameters drawn from the flow, and their log-densities."""
        rows = self._own(draw(self.model, n_samples, self._generator, None))
        x, log_det = self.inverse_rescale(rows)
        return self._given(x, xp), self._given(self.density(rows) - log_det, xp)

    def forward(self, x: Any, xp: Any = None) -> tuple[Any, Any]:
        """Parameters to latents, and log|det| of that map."""
        rows, log_det = self.rescale(self._own(x))
        z, of_flow = self.to_latent(self._own(rows))
        return self._given(z, xp), self._given(of_flow + log_det, xp)

    def inverse(self, z: Any, xp: Any = None) -> tuple[Any, Any]:
        """Latents to parameters, and log|det| of that map."""
        rows, of_flow = self.from_latent(self._own(z))
        x, log_det = self.inverse_rescale(rows)
        return self._given(x, xp), self._given(of_flow + log_det, xp)

    def density(self, rows: Any) -> Any:
        """The flow's log-density of transformed parameters, arrays of the half."""
        raise NotImplementedError

    def to_latent(self, rows: Any) -> tuple[Any, Any]:
        """The flow's ``forward``."""
        raise NotImplementedError

    def from_latent(self, z: Any) -> tuple[Any, Any]:
        """The flow's ``inverse``."""
        raise NotImplementedError

    def save(self, h5_file: Any, path: str = "flow") -> None:
        """Write configuration, transform and weights into an open HDF5 file."""
        group = h5_file.create_group(path)
        config = {
            k: v for k, v in self.config_dict().items() if k not in ("data_transform", "options")
        }
        config |= {"dtype": _name(self.dtype), "device": None} | self.config_dict()["options"]
        group.attrs["config"] = json.dumps(config)
        self.data_transform.save(group, "data_transform")
        weights = group.create_group("weights")
        for name, array in self.model.arrays().items():
            weights.create_dataset(name, data=np.asarray(array))

    @classmethod
    def load(cls, h5_file: Any, path: str = "flow") -> "TwinFlow":
        """What ``save`` wrote."""
        group = h5_file[path]
        transform = transforms.BaseTransform.load(group, "data_transform", strict=False)
        loaded = cls(data_transform=transform, **json.loads(group.attrs["config"]))
        arrays = {name: np.asarray(data[()]) for name, data in group["weights"].items()}
        described, dtype = architecture(loaded.flow), weight_dtype(loaded.model)
        loaded.model = rebuild(cls.backend, described, arrays, dtype)
        return loaded

    def save_checkpoint(self, path: Any) -> None:
        """Write the flow of transformed parameters as a file of twinflows."""
        write_checkpoint(path, architecture(self.flow), self.model.arrays(), expected_shapes)

    def _own(self, array: Any) -> Any:
        return self.xp.asarray(array, dtype=self.dtype)

    def _given(self, values: Any, xp: Any) -> Any:
        return values if xp is None or xp is self.xp else xp.asarray(values)


def _name(dtype: Any) -> str:
    """``float32`` of numpy's, PyTorch's or JAX's dtype."""
    return str(dtype).removeprefix("torch.") if "torch" in str(dtype) else np.dtype(dtype).name


def _numpy(array: Any, dtype: Any) -> np.ndarray:
    values = array.detach().cpu().numpy() if hasattr(array, "detach") else np.array(array)
    return values.astype(_name(dtype))
