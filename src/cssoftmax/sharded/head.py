"""The loss on the classes that a rank has, and what the ranks tell each other of it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

from cssoftmax import engine, functional
from cssoftmax.engine import chunked, eager, rowwise, triton
from cssoftmax.losses import SimilarityLoss
from cssoftmax.sharded import collectives
from cssoftmax.sharded.collectives import Group, Ranks
from cssoftmax.similarity import CosFace, Similarity

L = TypeVar("L", bound=SimilarityLoss)

# Cosines held at a time where a class is looked for: 64 MiB in float32.
BLOCK = 2**24


def shard_loss(loss: L, mesh: DeviceMesh, *, sample_rate: float = 1.0) -> L:
    """Turns a loss into its class-parallel form, in place, and returns it. Every rank of the mesh must call this.

    ``loss.weight`` (and the bias of the plain softmax) becomes a DTensor, split by classes over the last dimension of
    the mesh as ``torch.chunk`` splits (the last ranks may have fewer) and the same along all others. Optimizers and
    ``torch.distributed.checkpoint`` take it as it is. Names and shapes in ``state_dict`` stay as they were, so that a
    checkpoint fits any number of ranks.

    Then ``loss(embeddings, target)`` takes the rank's own rows (n, D), whose number may differ by rank and may be 0,
    and labels (n,) among all C classes. Reductions and state (a moving scale, running means) are over the rows of all
    ranks. ``logits``, ``similarities`` and ``classify`` also take and give the rank's own rows, over all classes: every
    rank must call them. See the module's documentation for the gradients.

    Args:
        loss: any loss of the family, the same on every rank; the weights are those of the mesh's first rank. Made with
            ``device="meta"``, it has none, and each rank draws those of its own classes: for heads that fit no device.
        mesh: of one dimension, or of several, like ``init_device_mesh("cuda", (2, 4), mesh_dim_names=("data",
            "class"))``: two groups of four ranks, and each group holds all classes.
        sample_rate: in (0, 1]: the share of the classes without a row in the batch that is drawn in each training
            forward to stand for all of those (Partial FC). Each of them counts 1 / share times, so that the sum over
            the others is right on average. See :func:`step_drawn_rows` for the optimizer.

    Raises:
        TypeError, ValueError: an argument that is none of these, or a loss that is sharded already.

    Source of the sampling: An et al., "Partial FC: Training 10 Million Identities on a Single Machine", 2021,
    arXiv:2010.05222, and "Killing Two Birds with One Stone", 2022, arXiv:2203.15565. Departure: there the drawn classes
    count once, which makes the loss lower than that of all classes.

    >>> import torch.distributed as dist
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from cssoftmax import CSSoftmaxLoss
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> loss = shard_loss(CSSoftmaxLoss(8, 10), init_device_mesh("cpu", (1,)))
    >>> loss(torch.randn(4, 8), torch.tensor([1, 2, 3, 9])).backward()
    >>> loss.weight.grad.placements
    (Shard(dim=0),)
    >>> dist.destroy_process_group()
    """
    if not isinstance(loss, SimilarityLoss):
        raise TypeError(f"loss: a loss of this package is needed, got {type(loss).__name__}")
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh: a torch.distributed DeviceMesh is needed, got {type(mesh).__name__}")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float)):
        raise TypeError(f"sample_rate: a number in (0, 1] is needed, got {type(sample_rate).__name__}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate: {sample_rate} is outside (0, 1]")
    if isinstance(loss, Sharded):
        raise ValueError("loss: it is sharded already")
    if loss.implementation == "fused":
        raise ValueError("implementation: 'fused' has no sharded form; 'eager', 'chunked' and 'triton' have one")
    if any(buffer.is_meta for buffer in loss.buffers()):
        raise ValueError('loss: its state is on the meta device; give device="meta" to the loss itself')

    device = torch.device(mesh.device_type)
    placements: list[Placement] = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    parameters = dict(loss.named_parameters())
    drawn = _drawn_anew(loss, Ranks(mesh), device) if loss.weight.is_meta else None
    for name, whole in parameters.items():
        if drawn is None:
            value = distribute_tensor(whole.detach().to(device), mesh, placements)
        else:
            value = DTensor.from_local(
                drawn[name], mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
        setattr(loss, name, nn.Parameter(value, requires_grad=whole.requires_grad))
    for name, buffer in loss.named_buffers():
        setattr(loss, name, buffer.to(device))
    loss.__class__ = type(f"Sharded{type(loss).__name__}", (Sharded, type(loss)), {})
    assert isinstance(loss, Sharded)
    loss.sample_rate = float(sample_rate)
    loss._watch()
    return loss


class Sharded(SimilarityLoss):
    """What a loss does differently once it is sharded; :func:`shard_loss` puts it in front of the loss's own class.

    Within ``forward`` the rows are those of all ranks that share out the classes, which all compute the same; outside
    they are the rank's own.
    """

    sample_rate: float

    @property
    def ranks(self) -> Ranks:
        assert isinstance(self.weight, DTensor)
        return Ranks(self.weight.device_mesh)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The loss of the rows of all ranks, of which ``embeddings`` (n, D) and ``target`` (n,) are this rank's."""
        sizes = self._sizes(embeddings, target)
        reduction, self.reduction = self.reduction, "none"
        try:
            values: Tensor = super().forward(
                self._gathered(embeddings, sizes), collectives.gather(target, sizes, self.ranks.classes)
            )
        finally:
            self.reduction = reduction
        values = self._own(values, sizes)
        if reduction == "none":
            return values
        if reduction == "sum":
            return self._over_all(values.sum())
        share = (target != self.ignore_index).to(values)
        if self.class_weight is not None:
            share = share * self.class_weight.to(values)[target.clamp(0, self.num_classes - 1)]
        sums = self._over_all(torch.stack([values.sum(), share.sum()]))
        return sums[0] / sums[1]

    def logits(self, embeddings: Tensor) -> Tensor:
        """scale * c for every class, no margin, (n, C), of the rank's own rows; every rank must call it."""
        sizes = self._sizes(embeddings)
        with functional.no_autocast(embeddings.device.type):
            x = self._gathered(embeddings, sizes)
            c, _ = self._cosines(x, *self._whole_classes(x))
            return self._own_columns(self.scale * c, sizes)

    def similarities(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """P, (n,), and N, (n, C) with -inf in the target's column, of the rank's own rows; every rank must call it."""
        sizes = self._sizes(embeddings, target, ignore_index=None)
        with functional.no_autocast(embeddings.device.type):
            x = self._gathered(embeddings, sizes)
            c, norm = self._cosines(x, *self._whole_classes(x))
            y = collectives.gather(target, sizes, self.ranks.classes)
            here, column = self._here(y)
            own = self._over_classes(c.new_zeros(len(c)).index_put((here,), c[here, column]))
            similarity = self.similarity
            rows = similarity.rows(own, norm, y)
            positive = self._own(similarity.positive(own, rows), sizes)
            negative = self._own_columns(similarity.negative(c, eager.columns(rows)), sizes)
        return positive, negative.scatter(1, target[:, None], -math.inf)

    @torch.no_grad()
    def classify(self, embeddings: Tensor) -> Tensor:
        """The class of the largest logit of each of the rank's own rows, (n,); every rank must call it."""
        sizes = self._sizes(embeddings)
        with functional.no_autocast(embeddings.device.type):
            x = self._gathered(embeddings, sizes)
            w, bias = self._whole_classes(x)
            first, last = self._classes_of(self.ranks.rank)
            best = x.new_full((len(x),), -math.inf)
            found = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            height = max(1, BLOCK // max(last - first, 1))
            for start in range(0, len(x) if last > first else 0, height):
                rows = slice(start, start + height)
                best[rows], found[rows] = self._cosines(x[rows], w, bias)[0].max(1)
            group = self.ranks.classes
            best, found = (collectives.all_gathered(values, group).view(-1, len(x)) for values in (best, found + first))
            return self._own(found.gather(0, best.argmax(0)[None]).squeeze(0), sizes)

    def _similarity_loss(
        self, embeddings: Tensor, target: Tensor, similarity: Similarity, scale: float | Tensor
    ) -> Tensor:
        """The loss of each row, (N,)."""
        functional.check_scale(scale)
        with functional.no_autocast(embeddings.device.type):
            class_weight = None if self.class_weight is None else self.class_weight.to(embeddings)
            y = target.clamp(0, self.num_classes - 1)
            positive, others, total = self._per_row(embeddings, target, similarity, scale, class_weight)
            positive = scale * positive
            smooth = None
            if total is None:
                nll = F.softplus(others - positive, threshold=rowwise.STEEP)
            else:
                log_sum = torch.logaddexp(positive, others)
                nll = log_sum - positive
                mean, own = (1.0, 1.0) if class_weight is None else (class_weight.mean(), class_weight[y])
                smooth = mean * log_sum - own * positive / self.num_classes - total
            ignored = target == self.ignore_index
            return rowwise.reduce(nll, smooth, y, ignored, class_weight, "none", self.label_smoothing)

    def _per_row(
        self, x: Tensor, target: Tensor, similarity: Similarity, scale: float | Tensor, class_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :func:`cssoftmax.engine.chunked.per_row`, over the classes of all ranks."""
        w, bias = self._whole_classes(x)
        y = target.clamp(0, self.num_classes - 1)
        first, last = self._classes_of(self.ranks.rank)
        index = torch.where((target != self.ignore_index) & (y >= first) & (y < last), y - first, -1)
        shares = None
        if self.label_smoothing:
            weights = w.new_ones(last - first) if class_weight is None else class_weight[first:last]
            shares = weights / self.num_classes
        run = self._engine(x, w, similarity, scale)
        own: list[Tensor] = []

        def add_up(local: Tensor) -> Tensor:
            own.append(self._over_classes(local))
            return own[-1]

        if self.sample_rate == 1 or not self.training or first == last:
            positive, others, total = run(x, w, bias, index, similarity, scale, shares, eager.Part(y, add_up))
            others = others[None]
        else:
            kept, drawn = self._draw(index, last - first)
            count = (last - first - len(kept)) / max(len(drawn), 1)
            column = torch.full((last - first,), -1, device=w.device)
            column[kept] = torch.arange(len(kept), device=w.device)
            index = torch.where(index < 0, -1, column[index])
            positive, others, total = run(
                x, *self._some(kept, w, bias), index, similarity, scale, _at(shares, kept), eager.Part(y, add_up)
            )
            others = others[None]
            if len(drawn):
                # No row's own class is among these; what they need of the rows is known by now.
                known = eager.Part(y, lambda _: own[0].detach().clone())
                nobody = torch.full_like(index, -1)
                _, more, rest = run(
                    x, *self._some(drawn, w, bias), nobody, similarity, scale, _at(shares, drawn), known
                )
                others = torch.stack([others[0], more + math.log(count)])
                total = None if total is None or rest is None else total + count * rest
        others = collectives.LogSumExp.apply(others, self.ranks.classes)  # type: ignore[no-untyped-call]
        return positive, others, None if total is None else self._over_classes(total)

    def _engine(self, x: Tensor, w: Tensor, similarity: Similarity, scale: float | Tensor) -> Callable[..., Any]:
        """The same on every rank: they exchange numbers in the same order."""
        largest, _ = self.ranks.bounds(self.num_classes, 1)
        large = len(x) * (largest or self.num_classes) > engine.SMALL
        empty = self._classes_of(self.ranks.number - 1)[0] == self.num_classes  # the last has none
        name = self.implementation
        if name == "auto":
            name = "eager" if not large else "triton" if x.is_cuda and triton.INSTALLED else "chunked"
        if self.sub_centers == 1 and not empty and not x.is_meta:
            if name == "chunked" and rowwise.suits(x, w.detach(), similarity, scale):
                return partial(chunked.per_row, precision=self.precision)
            if name == "triton":
                triton.check_runs(x.device)
                if triton.suits(x, w.detach(), similarity, scale):
                    return partial(_tiled, precision=self.precision)
        return partial(eager.per_row, sub_centers=self.sub_centers)

    def _draw(self, index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Of the classes here: those with a row in the batch, or else one; and a sample of the others."""
        kept = torch.zeros(classes, dtype=torch.uint8, device=index.device)
        kept[index[index >= 0]] = 1
        seed = torch.randint(2**62, (1,), device=index.device)
        for group in self.ranks.data:  # that have the same classes, and must draw the same
            collectives.all_reduce(kept, group, distributed.ReduceOp.MAX)
            collectives.all_reduce(seed, group, distributed.ReduceOp.MAX)
        if not kept.any():
            kept[0] = 1
        others = (kept == 0).nonzero().squeeze(1)
        generator = torch.Generator(index.device).manual_seed(int(seed) + self.ranks.rank)
        order = torch.randperm(len(others), generator=generator, device=index.device)
        return kept.nonzero().squeeze(1), others[order[: math.ceil(self.sample_rate * len(others))]]

    def _some(self, classes: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = (classes[:, None] * self.sub_centers + torch.arange(self.sub_centers, device=w.device)).flatten()
        return w[rows], _at(bias, classes)

    def _own_cosines(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), functional.no_autocast(embeddings.device.type):
            directions, norm = eager.normalize(embeddings)
            w, _ = self._whole_classes(embeddings)
            here, row = self._here(target.where(target != self.ignore_index, -1))
            found = (directions[here] * eager.normalize(w[row])[0]).sum(1)
            own = self._over_classes(norm.new_zeros(len(norm)).index_put((here,), found))
            counts = (target != self.ignore_index) & own.isfinite() & norm.isfinite()
            return torch.where(counts, own, 0), torch.where(counts, norm, 0), counts

    @torch.no_grad()
    def _log_others(self, embeddings: Tensor, target: Tensor) -> Tensor:
        rate, smoothing = self.sample_rate, self.label_smoothing
        self.sample_rate, self.label_smoothing = 1.0, 0.0
        try:
            with functional.no_autocast(embeddings.device.type):
                return self._per_row(embeddings, target, CosFace(), self.scale, None)[1]
        finally:
            self.sample_rate, self.label_smoothing = rate, smoothing

    def _over_processes(self, sums: Tensor) -> Tensor:
        # Those that share out the classes have seen the same rows.
        for group in self.ranks.data:
            collectives.all_reduce(sums, group)
        return sums

    def _same_everywhere(self, random: Tensor) -> Tensor:
        group = self.ranks.classes
        return collectives.broadcast(random, group)

    def _sizes(self, embeddings: Tensor, target: Tensor | None = None, ignore_index: int | None = -100) -> list[int]:
        """How many rows each of the ranks that share out the classes has.

        All ranks learn here that one of them refuses its rows: else they would wait for it in vain.
        """
        refusal = None
        try:
            functional.check_embeddings(embeddings, self.weight)
            if target is not None:
                if ignore_index is not None:
                    ignore_index = self.ignore_index
                functional.check_target(embeddings, target, self.num_classes, ignore_index)
        except (TypeError, ValueError, IndexError) as error:
            refusal = error
        ranks = self.ranks
        # Numbers that the host needs travel from host to host where they can: a GPU need not be waited for.
        backends = distributed.get_backend_config(ranks.classes)
        device = torch.device("cpu" if "cpu:" in backends else self.ranks.mesh.device_type)
        sizes = collectives.all_gathered(
            torch.tensor([-1 if refusal else len(embeddings)], device=device), ranks.classes
        )
        total = torch.stack([sizes.clamp(min=0).sum(), -sizes.amin().clamp(max=0)])
        refused = total[1:].clone()
        rows = total[:1].clone()
        for group in ranks.data:
            collectives.all_reduce(refused, group, distributed.ReduceOp.MAX)
            collectives.all_reduce(rows, group)
        if refusal is not None:
            raise refusal
        if int(refused) > 0:
            at = sizes.tolist().index(-1) if -1 in sizes.tolist() else "of another group"
            raise ValueError(f"embeddings: rank {at} refused its rows, its own message says why")
        if target is not None and self.reduction == "mean" and int(rows) == 0:
            raise ValueError('embeddings: no rank has a row, which has no mean loss; skip it, or pass reduction="sum"')
        found: list[int] = sizes.tolist()
        return found

    def _classes_of(self, rank: int) -> tuple[int, int]:
        """The first class of a rank, and the first after its last: those whose first class weight it has."""
        k = self.sub_centers
        first, last = self.ranks.bounds(self.num_classes * k, rank)
        return -(-first // k), -(-last // k)

    def _here(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose own class is here, and where: among the classes here, not among all."""
        first, last = self._classes_of(self.ranks.rank)
        here = ((target >= first) & (target < last)).nonzero().squeeze(1)
        return here, target[here] - first

    def _whole_classes(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class weights and biases here, as plain tensors whose gradients find the DTensors."""
        ranks = self.ranks
        w, bias = (
            None if parameter is None else _local(parameter, ranks.data).to(like.dtype)
            for parameter in (self.weight, self.bias)
        )
        assert w is not None
        k = self.sub_centers
        if k > 1:  # of a class that begins here, the rest may be on the next ranks
            first, last = ranks.bounds(self.num_classes * k)
            begins, ends = (k * number for number in self._classes_of(ranks.rank))
            sizes = [min(k - 1, stop - start) for start, stop in map(self._bounds_of, range(ranks.number))]
            heads = collectives.Gather.apply(w[: k - 1], sizes, ranks.classes)  # type: ignore[no-untyped-call]
            after = sum(sizes[: ranks.rank + 1])
            w = torch.cat([w[begins - first :], heads[after : after + ends - last]])
        return w, bias

    def _bounds_of(self, rank: int) -> tuple[int, int]:
        return self.ranks.bounds(self.num_classes * self.sub_centers, rank)

    def _cosines(self, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the similarity maps, of the classes here, (N, classes); and the embeddings' lengths, (N,)."""
        left, right, norm = eager.sides(x, w, self.similarity)
        return eager.inner_products(left, right, bias, self.sub_centers), norm

    def _gathered(self, embeddings: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, (N, D), float32 or float64; they travel in their own type."""
        ranks = self.ranks
        embeddings = collectives.Scaled.apply(embeddings, ranks.mesh.size())  # type: ignore[no-untyped-call]
        gathered: Tensor = collectives.Gather.apply(embeddings, sizes, ranks.classes)  # type: ignore[no-untyped-call]
        return gathered.to(functional.compute_dtype(embeddings, self.weight))

    def _own(self, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """Of values of all rows those of the rank's own."""
        ranks = self.ranks
        start = sum(sizes[: ranks.rank])
        own = values[start : start + sizes[ranks.rank]]
        scaled: Tensor = collectives.Scaled.apply(own, 1 / ranks.mesh.size()) if own.is_floating_point() else own  # type: ignore[no-untyped-call]
        return scaled

    def _own_columns(self, columns: Tensor, sizes: list[int]) -> Tensor:
        """From the columns here of all rows, (N, classes here), to all columns of the rank's own rows, (n, C)."""
        ranks = self.ranks
        widths = [last - first for first, last in map(self._classes_of, range(ranks.number))]
        own: Tensor = collectives.Transpose.apply(columns, sizes, widths, ranks.rank, ranks.classes)  # type: ignore[no-untyped-call]
        scaled: Tensor = collectives.Scaled.apply(own, 1 / ranks.mesh.size())  # type: ignore[no-untyped-call]
        return scaled

    def _over_classes(self, local: Tensor) -> Tensor:
        total: Tensor = collectives.Sum.apply(local, [self.ranks.classes])  # type: ignore[no-untyped-call]
        return total

    def _over_all(self, local: Tensor) -> Tensor:
        total: Tensor = collectives.Sum.apply(local, [*self.ranks.data, self.ranks.classes])  # type: ignore[no-untyped-call]
        return total


def _tiled(*arguments: Any, precision: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Triton's kernels; what they cannot do, in plain PyTorch."""
    found = partial(triton.per_row, precision=precision)(*arguments)
    return eager.per_row(*arguments) if found is None else found


def _at(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


def _local(parameter: Tensor, data: list[Group]) -> Tensor:
    """The rank's part of a parameter. Its gradient is summed over the groups that have the same part."""
    assert isinstance(parameter, DTensor)
    local: Tensor = parameter.to_local(grad_placements=parameter.placements)
    if data:
        local = collectives.SumBackward.apply(local, data)  # type: ignore[no-untyped-call]
    return local


def _drawn_anew(loss: SimilarityLoss, ranks: Ranks, device: torch.device) -> dict[str, Tensor]:
    """First values of the rank's own part of each parameter of a loss that is on the meta device."""
    first, last = ranks.bounds(len(loss.weight))
    whole = dict(loss.named_parameters())
    seed = torch.randint(2**62, (1,), device=device)
    for group in [*ranks.data, ranks.classes]:
        collectives.broadcast(seed, group)
    for name, parameter in whole.items():
        setattr(loss, name, nn.Parameter(torch.empty_like(parameter[first:last], device=device)))
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(seed) + ranks.rank)
        loss.reset_parameters()
    return {name: getattr(loss, name).detach() for name in whole}
