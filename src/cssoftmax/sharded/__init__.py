"""The head over many processes: each class's weights live on one rank of a device mesh.

Every rank calls the loss with its own rows and labels among all classes. The rows are gathered; each rank maps their
cosines to the classes it has; and of the (N, C) matrix only numbers per row, (N,), travel: the cosine to the own class,
from the rank that has it to all, and the log-sum-exp of the others, as a maximum and a sum. Gradients of class weights
arise where the weights are; those of the embeddings return to the ranks that the rows came from.

Gradients follow the convention of ``DistributedDataParallel`` and FSDP: what is minimised is the *mean over ranks* of
what each rank runs backward. "mean" and "sum" are over the rows of all ranks, and every rank has the same value. So
class weights have the gradient that the whole head would have; embeddings have theirs times the number of ranks, which
the average over ranks that DDP and FSDP take of the network's gradients divides out again.
"""

from cssoftmax.sharded.drawn_rows import step_drawn_rows
from cssoftmax.sharded.head import Sharded, shard_loss

__all__ = ["Sharded", "shard_loss", "step_drawn_rows"]
