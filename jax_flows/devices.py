"""What the devices of a mesh share in training.

With a mesh, all of its devices train one model together, each on its own part of every batch. In PyTorch
the ranks of a process group do.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flow_bridge.sources import Part


class Devices:
    """The devices of a mesh, or the default one, and where arrays lie on them."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh, self.part, self.is_main, self.num_processes = mesh, Part(), True, 1
        if mesh is None:
            return
        self.axis = "data" if "data" in mesh.axis_names else mesh.axis_names[0]
        # Sharding is left to the compiler, whatever types the mesh's axes have.
        self.mesh = Mesh(mesh.devices, mesh.axis_names)
        rows = np.moveaxis(mesh.devices, mesh.axis_names.index(self.axis), 0)
        rows = rows.reshape(len(rows), -1)
        owners = [{device.process_index for device in row} for row in rows]
        own = [i for i, processes in enumerate(owners) if jax.process_index() in processes]
        if not own:
            raise ValueError("fit got a mesh without a device of this process.")
        count = len(owners) // len(own)
        if own != list(range(own[0], own[-1] + 1)) or own[0] % len(own) or len(owners) % len(own):
            raise ValueError(
                "fit expects the devices of each process side by side along the mesh's axis "
                f"{self.axis!r}, and equally many of them."
            )
        self.part = Part(own[0] // len(own), count, len(owners))
        everyone = set().union(*owners)
        self.num_processes, self.is_main = len(everyone), jax.process_index() == min(everyone)

    def shard(self, array: np.ndarray, axis: int, dtype: Any) -> Array:
        """This process's part of rows, along ``axis``, as part of an array on all devices."""
        array = array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array
        if self.mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.axis))
        shape = list(array.shape)
        shape[axis] *= self.part.count
        return jax.make_array_from_process_local_data(sharding, array, tuple(shape))

    def replicate(self, tree: Any) -> Any:
        """Arrays that this and every other process has, on all devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def put(array: Any) -> Array:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, tree)

    def keep_replicated(self, tree: Any) -> Any:
        """Results of a step; the compiler may have left some of them in parts."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def own(self, tree: Any) -> Any:
        """Replicated arrays as arrays of this process alone."""
        return tree if self.mesh is None else jax.tree.map(lambda a: jnp.array(np.asarray(a)), tree)

    def of_first(self, tree: Any) -> Any:
        """The arrays that the first process has."""
        if self.num_processes == 1:
            return tree
        return multihost_utils.broadcast_one_to_all(tree, is_source=self.is_main)

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """The values of every process, ``(processes, values)``."""
        if self.num_processes == 1:
            return np.array([values])
        return multihost_utils.process_allgather(np.array(values, np.int32))
