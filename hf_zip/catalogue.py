"""The lists of merge methods and of supported models, for the terminal and the README."""

import dataclasses
import inspect
from collections.abc import Iterator

import transformers

from hf_zip.adapters import adapters, distilbert
from hf_zip.method import MergeMethod
from hf_zip.methods import methods
from hf_zip.support import support
from hf_zip.tiny import tiny
from hf_zip.training.options import TrainingOptions

# What the tests merge, save and load again; classes that are not listed may do as well.
CLASSES = (
    "ViTModel",
    "ViTForImageClassification",
    "DeiTModel",
    "DeiTForImageClassification",
    "BeitModel",
    "BeitForImageClassification",
    "Dinov2Model",
    "Dinov2ForImageClassification",
    "SwinModel",
    "SwinForImageClassification",
    "ConvNextModel",
    "ConvNextForImageClassification",
    "ResNetForImageClassification",
    "ASTModel",
    "ASTForAudioClassification",
    "Wav2Vec2Model",
    "Wav2Vec2ForSequenceClassification",
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaForQuestionAnswering",
    "XLMRobertaModel",
    "XLMRobertaForSequenceClassification",
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "ElectraModel",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "AlbertModel",
    "AlbertForMaskedLM",
    "AlbertForSequenceClassification",
    "MPNetModel",
    "MPNetForSequenceClassification",
    "DebertaV2Model",
    "DebertaV2ForSequenceClassification",
    "DebertaV2ForTokenClassification",
    "ModernBertModel",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "T5EncoderModel",
    "CLIPModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPForImageClassification",
    "SiglipModel",
    "SiglipVisionModel",
    "SiglipTextModel",
    "SiglipForImageClassification",
)


def methods_text() -> str:
    """Returns the merge methods with their needs and options, as plain text."""
    return "\n\n".join(_method_text(method) for method in methods().values())


def adapters_text() -> str:
    """Returns the supported families, as plain text."""
    width = max(len(name) for name in adapters())
    return "\n".join(
        f"{name:<{width}}  {', '.join(adapter.model_types)}" for name, adapter in adapters().items()
    )


def methods_table() -> str:
    """Returns the merge methods as a Markdown table."""
    rows = ["| method | what it does | needs | options |", "|---|---|---|---|"]
    for method in methods().values():
        options = ", ".join(f"`{name}={default}`" for name, default in _in_short(method.options))
        link = f"[`{method.name}`]({method.reference})" if method.reference else f"`{method.name}`"
        rows.append(f"| {link} | {method.title} | {_needs(method)} | {options} |")
    return "\n".join(rows)


def adapters_table() -> str:
    """Returns the supported families as a Markdown table."""
    rows = ["| family | `model_type` | task heads |", "|---|---|---|"]
    for name, adapter in adapters().items():
        types = ", ".join(f"`{model_type}`" for model_type in adapter.model_types)
        tables = (adapter, *adapter.towers.values())
        heads = ", ".join(f"`{head}`" for table in tables for head in table.heads)
        rows.append(f"| {name} | {types} | {heads} |")
    return "\n".join(rows)


def table_example() -> str:
    """Returns the table of one family, DistilBERT, as a Markdown block of code."""
    source = inspect.getsource(distilbert)
    return f"```python\n{source[source.index('ENTRY =') :]}```"


def classes_table() -> str:
    """Returns which classes of transformers which methods merge, as a Markdown table."""
    rows = ["| class | parameter by parameter | methods that match features |", "|---|---|---|"]
    for name in CLASSES:
        matched = "yes" if support(tiny(getattr(transformers, name))).groups else "no"
        rows.append(f"| `{name}` | yes | {matched} |")
    return "\n".join(rows)


def _method_text(method: MergeMethod) -> str:
    lines = [f"{method.name}: {method.title}", f"    needs: {_needs(method)}"]
    if method.reference:
        lines.append(f"    source: {method.reference}")
    for where, options in (
        ("parameters", _options(method)),
        ("models[].parameters", _options(method, of_models=True)),
    ):
        lines += [f"    {where}.{name} = {default}" for name, default in options]
    return "\n".join(lines)


def _needs(method: MergeMethod) -> str:
    needs = {
        "a shared initialisation": method.requires.shared_init,
        "a base model": method.requires.base,
        "the bases of models that have another": method.requires.own_bases,
        "unlabelled inputs": method.requires.calibration and not method.requires.own_inputs,
        "unlabelled inputs, of all models or of each": method.requires.own_inputs,
        f"{method.requires.models} models": method.requires.models is not None,
    }
    return ", ".join(name for name, needed in needs.items() if needed) or "nothing more"


def _options(method: MergeMethod, of_models: bool = False) -> list[tuple[str, object]]:
    return list(_defaults(method.model_options if of_models else method.options))


def _in_short(record: type) -> Iterator[tuple[str, object]]:
    """The options of a record with their defaults; of a training, what is not as in others."""
    for name, default in _fields(record):
        if isinstance(default, TrainingOptions):
            usual = dict(_fields(TrainingOptions))
            own = [(k, v) for k, v in _fields(type(default)) if v != usual[k]]
            yield name, "{" + ", ".join(f"{k}: {v}" for k, v in own) + "}"
        else:
            yield name, default


def _defaults(record: type, before: str = "") -> Iterator[tuple[str, object]]:
    """The options of a record with their defaults, those of a record in it by dotted names."""
    for name, default in _fields(record):
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            yield from _defaults(type(default), f"{before}{name}.")
        else:
            yield before + name, default


def _fields(record: type) -> Iterator[tuple[str, object]]:
    """The fields of a record with their defaults."""
    for field in dataclasses.fields(record):
        made = field.default_factory
        yield field.name, field.default if made is dataclasses.MISSING else made()
