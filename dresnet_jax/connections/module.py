"""The Flax module that owns the connections' parameters and calls the functions."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dresnet_jax.connections import gates, stacked, weighted_sum
from dresnet_jax.connections.outputs import BlockOutputs
from dresnet_jax.connections.spec import SHARED, ConnectionSpec


class Connections(nn.Module):
    """The learned connections of a network.

    All parameters are created in `setup`, from the channels alone, so that an
    optimiser built from the initialised parameters trains every one of them.

    Attributes:
      spec: what the connections are.
      channels: of y_0 (the stem), y_1, ..., y_n.
    """

    spec: ConnectionSpec
    channels: tuple[int, ...]

    @staticmethod
    def architecture(parameters: Any) -> Any:
        """Marks the gates among the parameters of a `Connections`."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("gate_weights", "gate_sharpness"),
            parameters,
        )

    def setup(self) -> None:
        """Creates a `block_<i>` for each reader, and what several readers share."""
        spec = self.spec
        spec.check(self.channels)
        owners = [
            i
            for i in spec.topology.readers
            if not self._shares_weights
            or self._has_sharpness("per_block", "per_edge")
            or any(self._has_own_projection(i, k) for k in spec.topology.sources(i))
        ]
        self.blocks = {
            str(i): self.param(f"block_{i}", self._init_block, i) for i in owners
        }
        self.stages = {
            name: self.param(name, init, *shape)
            for name, (init, shape) in self._shared_projections.items()
        }
        if self._has_sharpness("global"):
            start = gates.positive_inverse(spec.sharpness)
            self.sharpness = self.param(
                "gate_sharpness", nn.initializers.constant(start), ()
            )
        if self._shares_weights:
            # The nearest source first, where the published start has its 1.
            start = spec.starting_weight(*spec.topology.edges[0])
            starts = jnp.full(len(spec.distances), start)
            self.weights = self.param("gate_weights", self._init_weights, starts)

    def __call__(self, block: int, outputs: BlockOutputs) -> jax.Array:
        """The input x_i of block i, [batch, height, width, channels] as y_{i-1}.

        Args:
          block: i, from 1.
          outputs: y_0 to y_{i-1}.
        """
        spec = self.spec
        sources = spec.topology.sources(block)
        if not sources:
            return outputs.last
        gate_values = self._gate_values(block)
        projections = [self._projection(block, k) for k in sources]
        if self.is_mutable_collection("intermediates"):
            each = weighted_sum.contributions(
                outputs, sources, gate_values, projections
            )
            self.sow("intermediates", f"contributions_{block}", each)
        # By `stacked`, only a block that is not like its neighbours gets here.
        weigh = weighted_sum.FORMS.get(spec.form, weighted_sum.folded)
        return weigh(outputs, sources, gate_values, projections)

    def run(
        self, first: int, block: stacked.Block, parameters: Any, outputs: BlockOutputs
    ) -> Any:
        """Runs several blocks of one shape by the form `stacked`.

        Args:
          first: number of the first one.
          block: the pure function (parameters of one block, x_i) -> (y_i, auxiliary).
          parameters: each leaf [blocks, ...].
          outputs: y_0 to y_{first-1}; those of the blocks are appended.

        Returns:
          The auxiliary trees, each leaf [blocks, ...].
        """
        topology = self.spec.topology
        blocks = range(first, first + len(jax.tree.leaves(parameters)[0]))
        edges = [(i, k) for i in blocks for k in topology.sources(i)]
        if not edges:
            return _run_plain(block, parameters, outputs, self.spec.unroll)

        # The buffer: what is read from before, the base, and the blocks' outputs.
        before = sorted({k for _, k in edges if k < first - 1})
        buffered = (*before, *range(first - 1, blocks[-1]))
        stage = topology.input_stage(first)
        own = [
            (i, k)
            for i, k in edges
            if topology.source_stage(k) == stage and self._projection(i, k)
        ]
        through_kernel = frozenset(k for _, k in own)
        kernel = self._projection(*own[0])["kernel"] if own else None
        gate_values = self._gate_values_of([i for i in blocks if topology.sources(i)])
        offsets = self._offsets(blocks, edges, gate_values)

        def shifted(given: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            one, offset = given
            if offset is not None:
                x = x + offset.astype(x.dtype)[None, None, None]
            return block(one, x)

        start = [self._buffered(first, k, outputs, through_kernel) for k in before]
        last, buffer, auxiliary = stacked.run(
            shifted,
            self.spec.unroll,
            any(i not in blocks and k in blocks[:-1] for i, k in topology.edges),
            (parameters, offsets),
            _mixing(blocks, edges, gate_values, buffered, through_kernel),
            kernel,
            jnp.stack([*start, outputs.last]),
        )
        outputs.extend([*buffer[len(before) + 1 :], last])
        return auxiliary

    def gate_values(self) -> dict[int, jax.Array]:
        """Computes F(w), {block: [sources] or [sources, channels]}, float32."""
        return {i: self._gate_values(i) for i in self.spec.topology.readers}

    def _gate_values(self, block: int) -> jax.Array:
        return self.spec.gate_function(*self._raw_gates(block))

    def _gate_values_of(self, blocks: Sequence[int]) -> jax.Array:
        """F(w) of several readers in one array, [edges] or [edges, channels]."""
        raw = [self._raw_gates(i) for i in blocks]
        function = self.spec.gate_function
        if gates.GATES[self.spec.gate].compares_sources:
            return jnp.concatenate([function(*of_block) for of_block in raw])
        # One operation for all, so that the program does not grow with the blocks.
        weights = jnp.concatenate([weights for weights, _ in raw])
        sharpness = raw[0][1]
        if self._has_sharpness("per_block", "per_edge"):
            sharpness = jnp.concatenate([jnp.broadcast_to(k, w.shape) for w, k in raw])
        return function(weights, sharpness)

    def _raw_gates(self, block: int) -> tuple[jax.Array, jax.Array]:
        """The weights of a reader, and the sharpness in a shape that broadcasts."""
        parameters = self.blocks.get(str(block), {})
        sharpness = jnp.ones(())
        if gates.GATES[self.spec.gate].has_sharpness:
            shared = self._has_sharpness("global")
            raw = self.sharpness if shared else parameters["gate_sharpness"]
            sharpness = gates.positive(raw)
        if self._shares_weights:
            edges = [(block, k) for k in self.spec.topology.sources(block)]
            places = np.asarray([self.spec.place(SHARED, edge) for edge in edges])
            weights = self.weights[places]
        else:
            weights = parameters["gate_weights"]
        if weights.ndim > sharpness.ndim > 0:
            sharpness = sharpness[:, None]
        return weights, sharpness

    def _projection(self, block: int, source: int) -> Mapping[str, jax.Array]:
        """What P_ik is made of, as a weighted sum takes it."""
        if self._has_own_projection(block, source):
            return self.blocks[str(block)][f"from_{source}"]
        match self.spec.shared_projections(block, source):
            case (name,):
                return self.stages[name]
            case (narrowing, name):
                before = self.stages[narrowing]["kernel"]
                return {"narrowing": before, **self.stages[name]}
        return {}

    @property
    def _shared_projections(self) -> dict[str, tuple[Callable[..., Any], tuple]]:
        """How each projection between stages starts, and the shape of its kernel."""
        result: dict[str, tuple[Callable[..., Any], tuple]] = {}
        topology = self.spec.topology
        into = collections.Counter(
            topology.input_stage(i)
            for i, k in topology.edges
            if topology.crosses_stages(i, k)
        )
        for i, k in topology.edges:
            shape = self.channels[k], self.channels[i - 1]
            match self.spec.shared_projections(i, k):
                case (name,):
                    result[name] = self._init_projection, shape
                case (narrowing, name):
                    rank = min(self.spec.projection_rank, shape[0])
                    result[narrowing] = _init_kernel, (shape[0], rank)
                    count = into[topology.input_stage(i)]
                    result[name] = self._init_projection, (rank, shape[1], count)
        return result

    def _buffered(
        self, block: int, source: int, outputs: BlockOutputs, as_it_is: frozenset[int]
    ) -> jax.Array:
        """y_k as it stands in the buffer of this block and those like it."""
        if source in as_it_is:
            return outputs[source]
        projection, size = self._projection(block, source), outputs.size(-1)
        if "narrowing" in projection:
            narrowings = [projection["narrowing"]]
            pooled = outputs.narrowed((source,), size, narrowings)
        else:
            pooled = outputs.pooled((source,), size)
        if "kernel" not in projection:
            return pooled
        return pooled @ projection["kernel"].astype(pooled.dtype)

    def _offsets(
        self, blocks: range, edges: Sequence[tuple[int, int]], gate_values: jax.Array
    ) -> jax.Array | None:
        """sum_k F(w_ik) b_k of each block, [blocks, channels]; None without biases."""
        names = [self.spec.shared_projections(i, k)[-1:] for i, k in edges]
        projected = [n for n, name in enumerate(names) if name]
        if not projected or not self.spec.has_biases:
            return None
        order = sorted({names[n][0] for n in projected})
        rows = np.asarray([edges[n][0] - blocks.start for n in projected])
        columns = np.asarray([order.index(names[n][0]) for n in projected])
        biases = jnp.stack([self.stages[name]["bias"] for name in order])
        # A weight per channel is its bias's; others are all the channels'.
        of_edges = gate_values[np.asarray(projected)].reshape(len(projected), -1)
        total = jnp.zeros((len(blocks), len(order), of_edges.shape[1]))
        return (total.at[rows, columns].add(of_edges) * biases[None]).sum(axis=1)

    def _has_own_projection(self, block: int, source: int) -> bool:
        matches = self.channels[source] == self.channels[block - 1]
        by_need = self.spec.projection == "matching" and not matches
        return self.spec.projection == "per_edge" or by_need

    @property
    def _shares_weights(self) -> bool:
        spec = self.spec
        return bool(spec.topology.edges) and spec.weights == "by_distance"

    def _has_sharpness(self, *granularities: str) -> bool:
        """Whether there is a k, and it is shared in one of these ways."""
        spec = self.spec
        needed = spec.topology.edges and gates.GATES[spec.gate].has_sharpness
        return bool(needed) and spec.sharpness_granularity in granularities

    def _init_weights(self, key: jax.Array, starts: jax.Array) -> jax.Array:
        """Starting weights, the nearest source first."""
        if self.spec.initial_gate != "published":
            return starts
        return jax.random.uniform(key, starts.shape, maxval=0.1).at[0].set(1.0)

    def _init_block(self, key: jax.Array, block: int) -> dict[str, Any]:
        """The weights, the k and the projections that it owns."""
        spec, sources = self.spec, self.spec.topology.sources(block)
        out_channels = self.channels[block - 1]
        parameters: dict[str, Any] = {}
        if not self._shares_weights:
            per_channel = spec.weights == "per_channel"
            shape = (len(sources), out_channels) if per_channel else (len(sources),)
            # Reversed, since the newest source is the last of a block's.
            starts = jnp.asarray(
                [spec.starting_weight(block, k) for k in sources[::-1]]
            ).reshape(-1, *[1] * (len(shape) - 1))
            weights = self._init_weights(
                jax.random.fold_in(key, len(sources)), jnp.broadcast_to(starts, shape)
            )
            parameters["gate_weights"] = weights[::-1]
        if self._has_sharpness("per_block", "per_edge"):
            per_edge = spec.sharpness_granularity == "per_edge"
            parameters["gate_sharpness"] = jnp.full(
                len(sources) if per_edge else (), gates.positive_inverse(spec.sharpness)
            )
        keys = jax.random.split(key, len(sources))
        for k, edge_key in zip(sources, keys, strict=True):
            if self._has_own_projection(block, k):
                parameters[f"from_{k}"] = self._init_projection(
                    edge_key, self.channels[k], out_channels
                )
        return parameters

    def _init_projection(
        self, key: jax.Array, channels: int, out_channels: int, edges: int = 1
    ) -> dict[str, jax.Array]:
        """A projection; shared by many edges, so small that they do not add much."""
        projection = _init_kernel(key, channels, out_channels)
        if edges > 1:
            projection["kernel"] /= edges
        if self.spec.has_biases:
            projection["bias"] = jnp.zeros(out_channels)
        return projection


def _init_kernel(key: jax.Array, *shape: int) -> dict[str, jax.Array]:
    return {"kernel": nn.initializers.lecun_normal()(key, shape)}


def _run_plain(
    block: stacked.Block, parameters: Any, outputs: BlockOutputs, unroll: int
) -> Any:
    """Runs blocks that read nothing but the one before them, as `Connections.run`.

    Rematerialised as connected blocks are by `stacked`: their inputs alone are kept.
    """

    def step(y: jax.Array, one: Any) -> tuple[jax.Array, Any]:
        y, auxiliary = jax.checkpoint(block)(one, y)
        return y, (y, auxiliary)

    last, (ys, auxiliary) = jax.lax.scan(step, outputs.last, parameters, unroll=unroll)
    outputs.extend([*ys[:-1], last])
    return auxiliary


def _mixing(
    blocks: range,
    edges: Sequence[tuple[int, int]],
    gate_values: jax.Array,
    buffered: Sequence[int],
    through_kernel: frozenset[int],
) -> jax.Array:
    """The weight of each y_k in the input of each block, as `stacked.run` takes it.

    The gate values are [edges] or [edges, channels]; `buffered` are the k that stand in
    the buffer, and `through_kernel` those of the second sum.
    """
    sums = 2 if through_kernel else 1
    shape = (len(blocks), sums, len(buffered), *gate_values.shape[1:])
    places = {k: place for place, k in enumerate(buffered)}
    of_edges = np.asarray(
        [(i - blocks.start, k in through_kernel, places[k]) for i, k in edges]
    )
    of_bases = np.asarray([(i - blocks.start, 0, places[i - 1]) for i in blocks])
    mixing = jnp.zeros(shape).at[tuple(of_edges.T)].set(gate_values)
    return mixing.at[tuple(of_bases.T)].add(1.0)
