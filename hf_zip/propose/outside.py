"""The roles of what stands outside the blocks: embeddings, last norms, poolers, readers, heads."""

from dataclasses import dataclass, field

import torch
from torch import nn

from hf_zip.errors import HfZipError
from hf_zip.propose.survey import Survey, is_norm
from hf_zip.task_head import find_heads


@dataclass
class OutsideDraft:
    """What was found outside the blocks of one or several classes of a family.

    Args:
        embeddings: See `Adapter`; so are the others up to `heads`.
        embedding_norms: See `Adapter`.
        embedding_projection: See `Adapter`.
        embedding_output: See `Adapter`.
        norms: See `Adapter`.
        readers: See `Adapter`.
        poolers: The readers and the normalisations of every pooler's features.
        outputs: See `Adapter`.
        heads: See `Adapter`.
        head_parts: See `Adapter`.
        open: What could not be decided, one sentence each.
    """

    embeddings: dict[str, int] = field(default_factory=dict)
    embedding_norms: list[str] = field(default_factory=list)
    embedding_projection: str = ""
    embedding_output: str = "embeddings"
    norms: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    poolers: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    head_parts: int = 1
    open: list[str] = field(default_factory=list)

    # Of the class that is being added: its projection, its linear layers after the blocks, and the
    # modules whose parameters have a role.
    _projection: str = field(default="", init=False, repr=False)
    _after: list[str] = field(default_factory=list, init=False, repr=False)
    _handled: set[str] = field(default_factory=set, init=False, repr=False)

    def add(self, survey: Survey) -> None:
        """Adds what the survey of one more class shows."""
        self._linears(survey)
        self._embedding_output(survey)
        for name in dict(survey.model.named_parameters()):
            owner = name.rpartition(".")[0]
            module = survey.modules[owner]
            if name.startswith(f"{survey.layers}.") or owner in self._handled:
                continue
            if is_norm(module):
                self._norm(survey, owner)
            else:
                self._parameter(survey, name)

    def _linears(self, survey: Survey) -> None:
        """The linear layers: a projection before the blocks, poolers and readers after them."""
        self._projection, self._after, self._handled = "", [], set()
        try:
            heads = find_heads(survey.model)
        except HfZipError as error:
            self.open.append(str(error))
            heads = ()
        after = self._after
        for name in survey.linears(inside=False):
            given = survey.seen[name].given
            if not survey.before_blocks(name):
                after.append(name)
            elif given is not None and given.requires_grad:
                self.embedding_projection = survey.short(name)
                self._projection = name
                self._handled.add(name)
        fed_by = {
            reader: [writer for writer in after[:position] if _fed(survey, writer, reader)]
            for position, reader in enumerate(after)
        }
        for name in after:
            self._handled.add(name)
            short, module = survey.short(name), survey.modules[name]
            writers = fed_by[name]
            if writers:
                readers, _ = self.poolers.setdefault(survey.short(writers[-1]), ([], []))
                _append(readers, short)
            elif module.in_features % survey.width:
                self.open.append(
                    f"{name} reads {module.in_features} features, which are neither those of the "
                    f"stream ({survey.width}) nor a pooler's"
                )
            elif name not in heads and not any(name in found for found in fed_by.values()):
                _append(self.readers, short)
            if name in heads:
                _append(self.heads, short)
                if not writers:
                    parts = module.in_features // survey.width
                    self.head_parts = max(self.head_parts, parts)

    def _norm(self, survey: Survey, name: str) -> None:
        self._handled.add(name)
        short, size = survey.short(name), survey.modules[name].weight.shape[0]
        if name not in survey.seen:
            self.open.append(f"{short} never ran in {type(survey.model).__name__}")
            if size == survey.width:
                _append(self.norms, short)
            return
        if survey.before_blocks(name):
            _append(self.embedding_norms, short)
            return
        writers = [w for w in self._after if survey.feeds(w, name)]
        if writers:
            _, norms = self.poolers.setdefault(survey.short(writers[-1]), ([], []))
            _append(norms, short)
        else:
            _append(self.norms, short)

    def _parameter(self, survey: Survey, name: str) -> None:
        """A parameter of neither a linear layer nor a normalisation."""
        shape = tuple(survey.model.get_parameter(name).shape)
        short, owner = survey.short(name), name.rpartition(".")[0]
        if owner not in survey.seen and isinstance(survey.modules[owner], nn.Linear):
            self.open.append(f"{short}, of shape {shape}, belongs to a layer that never ran")
            return
        width = survey.width
        if self._projection:
            width = survey.modules[self._projection].in_features
        dims = [dim for dim, size in enumerate(shape) if size == width]
        rows = [survey.modules[linear].out_features for linear in self._after]
        if len(shape) == 1 and not dims and shape[0] in rows:
            _append(self.outputs, short)
            return
        if len(dims) != 1:
            self.open.append(
                f"{short}, of shape {shape}, has {len(dims)} dimensions of the stream's {width} "
                "features and no role in a table"
            )
            return
        self.embeddings[short] = dims[0]
        if owner not in survey.seen or not survey.before_blocks(owner):
            self.open.append(
                f"{short} was not seen to run before the blocks; it is taken for a part of the "
                "stream"
            )

    def _embedding_output(self, survey: Survey) -> None:
        """The module that gives what the first block, or the projection before it, reads."""
        reader = self._projection or survey.block
        read = survey.seen[reader].given
        giving = [
            name
            for name, call in survey.seen.items()
            if name
            and survey.before_blocks(name)
            and read is not None
            and call.output is not None
            and call.output.shape == read.shape
            and torch.equal(call.output, read)
        ]
        if giving:
            name = min(giving, key=lambda name: (name.count("."), survey.seen[name].order))
            self.embedding_output = survey.short(name)
        else:
            self.open.append(
                f"no module of {type(survey.model).__name__} gives what {reader} reads, so the "
                "stream before the blocks cannot be observed (embedding_output)"
            )


def _fed(survey: Survey, writer: str, reader: str) -> bool:
    """Whether a linear layer reads the features of another one, changed one by one."""
    sizes = survey.modules[writer].out_features, survey.modules[reader].in_features
    return sizes[0] == sizes[1] and survey.feeds(writer, reader)


def _append(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
