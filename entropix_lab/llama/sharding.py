"""The model on several devices: a mesh of them, and what of the weights and of the cache lies where.

The forward knows nothing of it. Each device along "model" holds what Meta's rank of that number holds; the rows of a
batch lie along "data". The axes are Auto: the compiler adds what the devices must tell each other.

Several processes: each calls jax.distributed.initialize() before anything is computed (under SLURM, Open MPI or
Kubernetes it finds the others itself; elsewhere it is told coordinator_address, num_processes and process_id), then all
run one program, the same on the same inputs. mesh() counts the devices of all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .weights import LayerWeights


def mesh(data: int = 1, model: int = 1, devices=None) -> Mesh:
    """data * model devices (of this or of several processes; all of jax.devices() unless given) for load_model.

    Raises ValueError where there are fewer. The devices of one model should be neighbours: they are the last axis.
    """
    devices = jax.devices() if devices is None else list(devices)
    if min(data, model) < 1 or data * model > len(devices):
        raise ValueError(
            f"mesh(data={data}, model={model}) needs {max(data, 1) * max(model, 1)} devices, found {len(devices)}. On "
            'a CPU jax.config.update("jax_num_cpu_devices", n), before anything is computed, makes n of them'
        )
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


class SplitLayerWeights(LayerWeights):
    """LayerWeights on several devices. Each has a part of the terms of wo's and w2's sums: the parts are added in
    float32 and rounded once, as on one device."""

    __slots__ = ()

    def attention_out(self, linear, x):
        return linear(x, self.wo, jnp.promote_types(x.dtype, jnp.float32))

    def down(self, linear, x):
        return linear(x, self.w2, jnp.promote_types(x.dtype, jnp.float32))


def shard_dim(name: str) -> int | None:
    """The dimension on which Meta's tensor parallelism splits a tensor; None for the norms, which every shard holds."""
    if "norm" in name:
        return None
    return 1 if name.endswith(("wo.weight", "w2.weight")) else 0


def of_weight(mesh: Mesh, name: str) -> NamedSharding:
    """Where a weight of Meta's name lies: split over "model" on Meta's own dimension, the same along "data"."""
    dim = shard_dim(name)
    return NamedSharding(mesh, P() if dim is None else P(*[None] * dim, "model"))


def of_cache(weights, batch: int) -> NamedSharding | None:
    """Where keys [B,K,H,S] and values [B,K,S,H] belong beside these weights, None for the default device.

    Heads are split over "model". The cache alone decides where rows are computed: split over "data" where the batch
    can be, all of them everywhere where it cannot.
    """
    mesh = _mesh_of(weights)
    if mesh is None:
        return None
    return NamedSharding(mesh, P("data" if batch % mesh.shape["data"] == 0 else None, "model"))


def everywhere(weights) -> NamedSharding | None:
    """Where small arrays beside these weights belong: whole on each of their devices, None for the default device."""
    mesh = _mesh_of(weights)
    return None if mesh is None else NamedSharding(mesh, P())


def _mesh_of(weights) -> Mesh | None:
    return getattr(weights.norm.sharding, "mesh", None)


def check_divisible(config, mesh: Mesh) -> None:
    """Raise ValueError for a size of the model that the devices along "model" cannot share evenly."""
    n = mesh.shape["model"]
    sizes = {name: getattr(config, name) for name in ("n_kv_heads", "ffn_dim", "vocab_size")}
    if uneven := ", ".join(f"{name} {size}" for name, size in sizes.items() if size % n):
        fit = [i for i in range(1, config.n_kv_heads + 1) if not any(size % i for size in sizes.values())]
        raise ValueError(f"a mesh with model={n} cannot split {uneven} evenly: model may be one of {fit}")


def of_process(mesh: Mesh) -> list[tuple[float, float]]:
    """The parts of every split dimension that the devices of this process hold, as (from, to) of the whole."""
    mine = {place for (_, place), d in np.ndenumerate(mesh.devices) if d.process_index == jax.process_index()}
    return [(place / mesh.shape["model"], (place + 1) / mesh.shape["model"]) for place in sorted(mine)]


def gathered(tree):
    """A pytree of which this process can read every array: itself, or copies on the host where other processes hold
    parts. Then every process must call it."""
    if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
        return tree
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)
