"""PEFT adapters for tests: of every kind, trained by chance, as PEFT writes them."""

import copy
import json

import torch
from peft import LoraConfig, get_peft_model


def lora(base, seed=1, **settings):
    """A LoRA on a copy of a base, every one of its weights random."""
    values = {"r": 2, "lora_alpha": 3, "target_modules": ["query", "value"], **settings}
    return adapted(base, LoraConfig(**values), seed)


def adapted(base, settings, seed=1):
    """An adapter on a copy of a base, every one of its weights random."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(model, folder, base=None, **changes):
    """Writes an adapter as PEFT does; `base` is what it says that it is an adapter of."""
    model.save_pretrained(folder)
    change_settings(folder, base_model_name_or_path=base and str(base), **changes)
    return folder


def change_settings(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
