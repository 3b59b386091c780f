"""What `predict`, `verify` and `enroll` are worth on classes that the network never saw: the table of docs/tools.md.

    python tools/unknown_rates.py [--data-root DIR] [--probability P] [digits mnist fsdd ...]

The last two classes of each data set are held out of a training with its quick recipe. --margin and --weight-update
take the place of the loss's defaults.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

from cssoftmax import CSSoftmaxLoss, jobs, metrics, runs
from cssoftmax.data import hold_out_classes, load_dataset
from cssoftmax.embedder import Embedder
from cssoftmax.similarity import default_scale


def measured(
    name: str, data_root: Path | None, factors: dict[str, float], probability: float | None, folder: Path
) -> list[str]:
    dataset = load_dataset(name, data_root=data_root)
    held_out = dataset.classes[-2:]
    classes = len(dataset.classes) - 2
    scale = default_scale(CSSoftmaxLoss(1, classes, **factors).similarity, classes, probability)
    source = runs.Source(name, data_root, held_out_classes=held_out)
    run = jobs.train(source, folder / name, loss_settings={**factors, "scale": scale}, cpu=True)
    embedder = Embedder.load(run, device="cpu")
    known, unknown = hold_out_classes(dataset, held_out)
    strangers, friends = (torch.cat([embedder._network(b) for b in s.inputs.split(500)]) for s in (unknown, known.test))
    cells = [name, f"{len(unknown.target):,}"]
    for far in (0.01, 0.05):
        accepted = [
            float((embedder._nearest(x)[1] >= embedder.threshold(far)).double().mean()) for x in (strangers, friends)
        ]
        cells += [f"{100 * share:.1f} %" for share in accepted]
    scores, same = metrics.pair_scores(strangers, unknown.target)
    at = scores >= embedder.threshold(0.01, "pair")
    cells += [f"{100 * float(at[~same].double().mean()):.1f} %", f"{100 * float(at[same].double().mean()):.1f} %"]
    examples = [(unknown.target == index).nonzero().flatten()[:5] for index in range(2)]
    for class_name, rows in zip(held_out, examples, strict=True):
        embedder.enrolled[class_name] = normalize(normalize(strangers[rows], dim=1).mean(0), dim=0)
    rest = torch.ones(len(strangers), dtype=torch.bool)
    rest[torch.cat(examples)] = False
    right = embedder._nearest(strangers[rest])[0] == len(known.classes) + unknown.target[rest]
    kept = embedder._nearest(friends)[0] == known.test.target
    cells += [f"{100 * float(x.double().mean()):.1f} %" for x in (right, kept)]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=["digits", "mnist", "fsdd"])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--probability", type=float, help="of a perfect embedding, which sets the scale")
    parser.add_argument("--margin", type=float)
    parser.add_argument("--weight-update", type=float)
    arguments = parser.parse_args()
    factors = {key: getattr(arguments, key) for key in ("margin", "weight_update")}
    factors = {key: value for key, value in factors.items() if value is not None}
    head = [
        "data",
        "unknown samples",
        "1 %: unknown accepted",
        "known accepted",
        "5 %: unknown accepted",
        "known accepted",
    ]
    head += ["verify at 1 %: different accepted", "same accepted", "enrolled: right", "the others: right"]
    print(f"| {' | '.join(head)} |")
    print(f"|{'---|' * len(head)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sources:
            cells = measured(name, arguments.data_root, factors, arguments.probability, Path(folder))
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
