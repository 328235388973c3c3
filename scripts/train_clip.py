"""Train small CLIPs from scratch on classes of an image data set and what is said of them."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from train_vit import Images, augment, pixel_values, save_trained
from training import fit
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

import hf_zip

TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of the {}")
_WORDS = 700  # letters, single bytes, and more than all pieces of the words there are


@dataclass(frozen=True)
class Setting:
    """How a model is made and trained.

    Args:
        width: Features of the image encoder's stream.
        layers: Its blocks.
        heads: Its attention heads.
        patch: Height and width of a patch, in pixels.
        mlp_ratio: Hidden units of an MLP, relative to the width; of both encoders.
        text_width: Features of the text encoder's stream.
        text_layers: Its blocks.
        projection: Features of the joint space.
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: Peak of the warmup and cosine schedule.
        weight_decay: Decay of AdamW.
        shift: Random crops move an image by up to this many pixels.
    """

    width: int = 96
    layers: int = 4
    heads: int = 4
    patch: int = 7
    mlp_ratio: float = 2.0
    text_width: int = 64
    text_layers: int = 2
    projection: int = 48
    epochs: int = 12
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    shift: int = 2


def train_tokenizer(names: Sequence[str]) -> CLIPTokenizer:
    """Returns a tokenizer of CLIP's kind, trained on all that is said of some classes."""
    texts = [template.format(name) for template in TEMPLATES for name in names]
    return CLIPTokenizer().train_new_from_iterator([texts], vocab_size=_WORDS)


def untrained(images: Images, tokenizer: CLIPTokenizer, setting: Setting) -> CLIPModel:
    """Returns a CLIP for images and texts like these, of new weights."""
    channels, size = images.pixels.shape[1:3]
    texts = [template.format(name) for template in TEMPLATES for name in images.names]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=setting.text_width,
        num_hidden_layers=setting.text_layers,
        num_attention_heads=4,
        intermediate_size=round(setting.mlp_ratio * setting.text_width),
        max_position_embeddings=max(map(len, tokenizer(texts)["input_ids"])),
        projection_dim=setting.projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        intermediate_size=round(setting.mlp_ratio * setting.width),
        image_size=size,
        patch_size=setting.patch,
        num_channels=channels,
        projection_dim=setting.projection,
    )
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=setting.projection)
    )


def train(images: Images, tokenizer: CLIPTokenizer, setting: Setting, seed: int) -> CLIPModel:
    """Returns a CLIP trained to tell by texts the classes of all the images.

    In every step one template, drawn at random, says something of every class, and the loss is the
    cross-entropy among these texts.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    model = untrained(images, tokenizer, setting)
    said = [
        tokenizer([t.format(name) for name in images.names], padding=True, return_tensors="pt")
        for t in TEMPLATES
    ]
    pixels = pixel_values(images.pixels)

    def loss(chosen: Tensor) -> Tensor:
        shown = augment(pixels[chosen], setting.shift)
        logits = model(pixel_values=shown, **draw.choice(said)).logits_per_image
        return functional.cross_entropy(logits, images.labels[chosen])

    @torch.no_grad()
    def limit() -> None:
        model.logit_scale.clamp_(max=4.6052)  # as CLIP's is, a factor of 100

    fit(model, len(pixels), setting, loss, limit)
    return model


def train_and_save(
    training: Images,
    validation: Images,
    classes: Sequence[int],
    setting: Setting,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Trains on some classes, writes the zero-shot classifier and returns its record.

    Args:
        training: Images to train on, of all classes.
        validation: Images to measure the accuracy on, of all classes.
        classes: The classes to learn.
        setting: How to make and train the model.
        seed: Decides initialisation, order and augmentation.
        folder: Folder to write.
    """
    tokenizer = train_tokenizer(training.names)
    training, validation = training.of_classes(classes), validation.of_classes(classes)
    started = time.perf_counter()
    model = train(training, tokenizer, setting, seed)
    classifier = hf_zip.zero_shot_classifier(model, tokenizer, training.names, TEMPLATES)
    return save_trained(
        classifier,
        training,
        validation,
        classes,
        setting,
        seed,
        time.perf_counter() - started,
        folder,
        logit_scale=model.logit_scale.exp().item(),
    )
