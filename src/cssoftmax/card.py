"""The model card of a run: README.md, as people and the Hugging Face hub read it."""

import json
from collections.abc import Mapping
from typing import Any

from cssoftmax.metrics import MEASURES, format_value

SHOWN = 20
"""Class names that are listed."""
RECIPE = ("epochs", "batch_size", "lr", "weight_decay", "schedule")
"""Settings that are listed."""


def model_card(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Markdown with the hub's header, from a run's ``config.json`` and ``summary.json`` alone.

    What comes from data, names of classes and data sets, is escaped.
    """
    recipe, loss, measures = config["recipe"], config["loss"], summary["measures"]
    kind = "images" if config["kind"] == "image" else "sounds"
    data, name = _escaped(config["dataset"]), str(loss["name"])
    factors = ", ".join(f"{key} {_short(value)}" for key, value in loss.items() if key != "name" and value is not None)
    classes = ", ".join(map(_escaped, config["classes"][:SHOWN]))
    more = f", and {len(config['classes']) - SHOWN} more" if len(config["classes"]) > SHOWN else ""
    rows = "\n".join(
        f"| {measure.title} | {format_value(measure, measures[measure.key])} |"
        for measure in MEASURES
        if measures.get(measure.key) is not None
    )
    chosen = "held out of the training split" if summary["split"] == "validation" else "that was not trained on"
    return f"""---
{_header(config, summary)}
---

# {_escaped(recipe["network"])} on {data}, {name}

An embedding network for {kind}: {summary["parameters"]:,} parameters, embeddings of {recipe["embedding_size"]} numbers.
It was trained with cssoftmax {summary["versions"]["cssoftmax"]} to tell {len(config["classes"])} classes apart, with
embeddings of one class close together and those of different classes far apart.

## Use

```python
from cssoftmax.embedder import Embedder

embedder = Embedder.load("RUN")  # this folder, its exported file, or hf:OWNER/NAME
vectors = embedder.embed(["one.file", "another.file"])  # of length one: inner products are cosines
predictions = embedder.predict(["one.file"], far=0.05)  # the class, or None where it seems to be of none
```

## Measures

On the {summary["split"]} split of {data}, {chosen}; one run, seed {config["seed"]}, the weights after the last epoch.

| measure | value |
| :-- | --: |
{rows}

## Training

- classes: {classes}{more}
- loss: {name}, {factors or "no factors"}
- recipe: {", ".join(f"{key} {_short(recipe[key])}" for key in RECIPE)}
- device: {_escaped(summary["device"])}; {summary["seconds"]:.0f} s
- versions: {", ".join(f"{key} {value}" for key, value in summary["versions"].items())}

`config.json` has every setting.

## Limits

It knows the classes above, from data like those above. Measures on other data will be lower. The threshold of "unknown"
is an estimate: samples of unknown classes can be nearer to a known one. Nothing was examined for bias between groups of
people. The licence of the training data may bind what is made from them.
"""


def _header(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """YAML, written as JSON, which is YAML."""
    task = f"{'image' if config['kind'] == 'image' else 'audio'}-classification"
    fields = {
        "library_name": "cssoftmax",
        "pipeline_tag": task,
        "tags": ["cssoftmax", "metric-learning", "embeddings", str(config["loss"]["name"])],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": f"{config['recipe']['network']}-{config['dataset']}-{config['loss']['name']}",
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"name": config["dataset"], "type": config["dataset"], "split": summary["split"]},
                        "metrics": [{"type": "accuracy", "value": summary["measures"].get("accuracy")}],
                    }
                ],
            }
        ],
    }
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"one per class, {min(value):.4g} to {max(value):.4g}"
    return f"{value:.4g}" if isinstance(value, float) else _escaped(str(value))


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#!~" else letter for letter in plain)
