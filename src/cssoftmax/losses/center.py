"""A regulariser to add to any loss: embeddings are drawn to the centres of their classes."""

import torch
from torch import Tensor, nn

from cssoftmax import functional
from cssoftmax.functional import Reduction
from cssoftmax.losses.base import check_sizes, over_processes


class CenterLoss(nn.Module):
    """Center loss: half the squared distance of each embedding to its class's center; a term to add to another loss.

    Centers are a buffer, not a parameter: no optimizer moves them. Each training forward moves them, after the loss was
    computed, by the paper's rule, with n_j the number of rows of class j::

        center_j <- center_j - alpha * sum_{i: y_i = j} (center_j - x_i) / (1 + n_j)

    Args:
        in_features: embedding size D.
        num_classes: C.
        alpha: in [0, 1]. Default: the authors' 0.5.
        reduction: "mean", "sum" (the paper's) or "none", over rows.
        ignore_index: rows with this label have no loss and move no center.
        device, dtype: of the centers.

    Attributes:
        centers: (C, D), zero at first (the paper does not say). With several processes their rows count together, in
            one all-reduce of (C, D + 1) numbers.

    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, equations 2
    to 4. The authors' weight in the sum with softmax is 0.003 on faces.

    >>> from cssoftmax import CenterLoss, CSSoftmaxLoss
    >>> loss, center = CSSoftmaxLoss(8, 3), CenterLoss(8, 3)
    >>> x, y = torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 2, 0])
    >>> (loss(x, y) + 0.01 * center(x, y)).backward()
    """

    centers: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        alpha: float = 0.5,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, num_classes)
        functional.check_unit_interval("alpha", alpha)
        functional.check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.alpha = alpha
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("centers", torch.zeros(num_classes, in_features, device=device, dtype=dtype))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The loss of ``embeddings`` (N, D) with labels ``target`` (N,): a scalar, or (N,) with reduction="none".

        float32, or float64 where an input is, whatever autocast says.
        """
        functional.check_embeddings(embeddings, self.centers)
        functional.check_target(embeddings, target, len(self.centers), self.ignore_index)
        if self.reduction == "mean" and len(embeddings) == 0:
            raise ValueError('embeddings: an empty batch, (0, D), has no mean loss; skip it, or pass reduction="sum"')
        dtype = functional.compute_dtype(embeddings, self.centers)
        index = target.clamp(0, len(self.centers) - 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            away = embeddings.to(dtype) - self.centers.to(dtype)[index]
            value = functional.reduce(
                away.square().sum(1) / 2,
                target,
                class_weight=None,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
            )
            if self.training:
                self._move_centers(away.detach(), target, index)
        return value

    def _move_centers(self, away: Tensor, target: Tensor, index: Tensor) -> None:
        counts = (target != self.ignore_index) & away.isfinite().all(1)
        rows = torch.cat([torch.where(counts[:, None], away, 0), counts[:, None].to(away)], 1)
        sums = over_processes(rows.new_zeros(len(self.centers), rows.shape[1]).index_add_(0, index, rows))
        self.centers.add_((self.alpha * sums[:, :-1] / (1 + sums[:, -1:])).to(self.centers.dtype))

    def extra_repr(self) -> str:
        num_classes, in_features = self.centers.shape
        return f"in_features={in_features}, num_classes={num_classes}, alpha={self.alpha}"
