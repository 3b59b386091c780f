"""CS-Softmax in the Hugging Face `Trainer`: an image transformer and an audio transformer, built from a config.

    python examples/hugging_face_trainer.py

Needs transformers and accelerate. Loss and class weights are part of the model, so that the Trainer optimises, saves
and restores them with it. With a pretrained checkpoint, `AutoModel.from_pretrained(NAME)` takes the place of
`from_config`.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ASTConfig, AutoModel, PretrainedConfig, Trainer, TrainingArguments, ViTConfig

from cssoftmax import CSSoftmaxLoss

IMAGE = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=96, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
AUDIO = ASTConfig(
    num_mel_bins=16, max_length=24, patch_size=8, frequency_stride=8, time_stride=8, hidden_size=48,
    num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)  # fmt: skip


class Embedding(nn.Module):
    """A transformer whose first token is the embedding, and the loss: what the Trainer calls, it answers to."""

    def __init__(self, config: PretrainedConfig, input_name: str, num_classes: int) -> None:
        super().__init__()
        self.transformer = AutoModel.from_config(config)
        self.input_name = input_name
        self.loss = CSSoftmaxLoss(config.hidden_size, num_classes)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        embeddings = self.transformer(**{self.input_name: inputs}).last_hidden_state[:, 0]
        output = {"logits": self.loss.logits(embeddings)}
        return output if labels is None else {"loss": self.loss(embeddings, labels), **output}


def images() -> tuple[Tensor, Tensor]:
    """Digits, (N, 1, 8, 8)."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)


def spectrograms(number: int = 800) -> tuple[Tensor, Tensor]:
    """Noise with a tone in one of four bands, (N, frames, mels)."""
    labels = torch.arange(number) % 4
    sounds = torch.randn(number, 24, 16)
    for band in range(4):
        sounds[labels == band, :, 4 * band : 4 * band + 2] += 3
    return sounds, labels


def train(model: Embedding, inputs: Tensor, labels: Tensor, epochs: float) -> float:
    """The accuracy on the last fifth, after training on the rest."""
    samples = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    cut = len(samples) * 4 // 5
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=2e-3, warmup_steps=20,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            model,
            arguments,
            train_dataset=samples[:cut],
            eval_dataset=samples[cut:],
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        )
        trainer.train()
        return float(trainer.evaluate()["eval_accuracy"])


def main(epochs: float = 8) -> tuple[float, float]:
    torch.manual_seed(0)
    seen = train(Embedding(IMAGE, "pixel_values", 10), *images(), epochs)
    heard = train(Embedding(AUDIO, "input_values", 4), *spectrograms(), epochs)
    print(f"accuracy: images {seen:.3f}, sounds {heard:.3f}")
    return seen, heard


if __name__ == "__main__":
    main()
