"""CS-Softmax in a LightningModule.

    python examples/lightning_module.py

Needs lightning. The loss is a submodule: Lightning moves, saves and restores its class weights with the network.
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from cssoftmax import CSSoftmaxLoss, param_groups
from cssoftmax.metrics import equal_error_rate, pair_scores


class Embedding(L.LightningModule):
    def __init__(self, embedding_size: int = 32, num_classes: int = 10, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, embedding_size), nn.BatchNorm1d(embedding_size)
        )
        self.loss = CSSoftmaxLoss(embedding_size, num_classes)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        return self.loss(self.network(inputs), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, labels = batch
        embeddings = self.network(inputs)
        self.seen.append((embeddings, labels))
        self.log("accuracy", (self.loss.logits(embeddings).argmax(1) == labels).float().mean())

    def on_validation_epoch_end(self) -> None:
        embeddings, labels = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        self.seen.clear()
        self.log("eer", equal_error_rate(*pair_scores(embeddings, labels)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = param_groups(self.network, self.loss, lr=self.hparams.lr, weight_decay=5e-4)
        return torch.optim.SGD(groups, momentum=0.9)


def main(epochs: int = 10) -> dict[str, float]:
    L.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    whole = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, test = random_split(whole, [1400, 397])
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Embedding()
    trainer.fit(model, DataLoader(train, 64, shuffle=True), DataLoader(test, 397))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
