"""A Space that answers an image or a text with every task of a merged model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

FOLDER = Path(__file__).parent
SETTINGS: Mapping[str, Any] = json.loads((FOLDER / "space.json").read_text(encoding="utf-8"))
MOST = 5  # labels shown of a task


def load() -> tuple[Any, Any]:
    """Returns the model and its image processor or tokenizer.

    The environment's `MODEL` may name a folder or another repository to load them from.
    """
    local = os.environ.get("MODEL")
    place = local or SETTINGS["model"]
    revision = {} if local or not SETTINGS["revision"] else {"revision": SETTINGS["revision"]}
    auto_class = getattr(transformers, SETTINGS["auto_class"])
    model = auto_class.from_pretrained(
        place, trust_remote_code=SETTINGS["trust_remote_code"], **revision
    )
    processor = AutoTokenizer if SETTINGS["takes"] == "text" else AutoImageProcessor
    return model.eval(), processor.from_pretrained(place, **revision)


@torch.inference_mode()
def answers(model: Any, processor: Any, given: Image.Image | str) -> list[Any]:
    """Returns what every task answers, as the components of `interface` show it.

    Args:
        model: The merged model.
        processor: Its image processor or tokenizer.
        given: An image or a text.
    """
    if not given:
        return [None for _ in SETTINGS["tasks"]]
    spans = None
    if isinstance(given, str):
        inputs = processor(given, return_tensors="pt", truncation=True)
        spans = processor(given, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    else:
        inputs = processor(given.convert("RGB"), return_tensors="pt")
        inputs = inputs.to(model.dtype)
    apart = SETTINGS["apart"]
    logits = None if apart else model(**inputs).logits[0]
    return [
        shown(
            task,
            model(**inputs, task=task["name"]).logits[0]
            if logits is None
            else logits[..., task["start"] : task["start"] + len(task["labels"])],
            given,
            spans,
        )
        for task in SETTINGS["tasks"]
    ]


def shown(task: Mapping[str, Any], logits: Tensor, given: Any, spans: Any) -> Any:
    """Returns the answer to one task, from the logits of its labels."""
    logits, labels, kind = logits.float(), task["labels"], task["kind"]
    if kind == "token-classification":
        best = [labels[int(i)] for i in logits.argmax(dim=-1)]
        words = zip(spans, best, strict=True)
        return [(given[start:stop], label) for (start, stop), label in words if stop > start]
    if kind == "regression":
        return dict(zip(labels, logits.tolist(), strict=True))
    one_label = kind == "classification"
    shares = logits.softmax(dim=-1) if one_label else logits.sigmoid()
    return dict(zip(labels, shares.tolist(), strict=True))


def interface(model: Any, processor: Any) -> Any:
    """Returns the page."""
    import gradio as gr  # type: ignore[import-not-found]  # of Spaces, and of nothing else here

    texts = SETTINGS["takes"] == "text"
    with gr.Blocks(title=SETTINGS["title"]) as page:
        gr.Markdown(f"# {SETTINGS['title']}\n\nOne model, {len(SETTINGS['tasks'])} tasks.")
        with gr.Row():
            with gr.Column():
                given = (
                    gr.Textbox(label="Text", lines=4) if texts else gr.Image(type="pil", height=320)
                )
                button = gr.Button("Answer", variant="primary")
            with gr.Column():
                places = [component(gr, task) for task in SETTINGS["tasks"]]
        button.click(lambda value: answers(model, processor, value), given, places)
        with gr.Accordion("How it was made and measured", open=False):
            gr.Markdown((FOLDER / "report.md").read_text(encoding="utf-8"))
    return page


def component(gr: Any, task: Mapping[str, Any]) -> Any:
    """Returns what shows the answer to a task."""
    if task["kind"] == "token-classification":
        return gr.HighlightedText(label=task["name"])
    if task["kind"] == "regression":
        return gr.JSON(label=task["name"])
    return gr.Label(label=task["name"], num_top_classes=min(MOST, len(task["labels"])))


if __name__ == "__main__":
    interface(*load()).launch()
